"""Tasks that a recipe can train, one a file."""
