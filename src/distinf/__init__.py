"""Multi-GPU diagnostic inference for AI weather forecasts."""
