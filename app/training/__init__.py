"""How models are made. Only the command line imports this package."""
