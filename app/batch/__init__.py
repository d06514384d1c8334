"""Many subjects, one model."""
