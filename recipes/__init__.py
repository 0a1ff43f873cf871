"""The recipes: one file each, with a function of the same name."""
