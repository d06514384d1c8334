"""From intensities to what networks see: foreground, normalisation, slices, the target's brightness."""
