"""Subjects on disk: finding them, reading and writing NIfTI, labels, a phantom."""
