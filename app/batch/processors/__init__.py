"""What takes the subjects of a run through a model: read, network, write."""
