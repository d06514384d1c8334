"""A network of slices over whole volumes: batches, slices between, and the fusion of views."""
