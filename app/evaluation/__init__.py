"""Scores of synthesised sequences, and what they are compared with."""
