"""Vary what a network is shown in training: places, brightness, tumours, scanners."""
