"""Complete many subjects with one model."""
