"""Measurements, each run by `python -m benchmarks NAME`. Not tests: nothing here passes or fails."""
