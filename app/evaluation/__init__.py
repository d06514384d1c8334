"""Score synthesised sequences and compare them with baselines and other predictions."""
