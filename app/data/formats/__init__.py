"""Open images of each format by their content."""
