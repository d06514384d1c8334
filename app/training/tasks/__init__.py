"""What a recipe can teach, one task a file."""
