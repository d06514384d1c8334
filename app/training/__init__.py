"""Training of models, from recipes to exports. Only the command line imports this package."""
