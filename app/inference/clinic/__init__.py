"""The way of an exam as scanned: read, align, find the brain, synthesise, bring back."""
