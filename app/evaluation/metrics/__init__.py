"""Compute scores by pure functions on arrays, without torch."""
