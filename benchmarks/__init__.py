"""How long things take here, next to what they could take at best."""
