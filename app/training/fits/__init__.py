"""Fits that need no network: lines and constants from training subjects."""
