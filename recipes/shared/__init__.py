"""What recipes and main.py share: the command line, checks of a config, paths of outputs."""
