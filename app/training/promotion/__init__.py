"""Promotion of a trained network to a model."""
