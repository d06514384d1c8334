"""Prepare volumes for networks: foreground, normalisation, slices, intensities of the target."""
