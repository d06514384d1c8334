"""What a recipe can train, one task a file: its recipe, batches, networks, steps, validation and export."""
