"""The tumour of an exam: 3D segmenters, TISS-Net, and what a user calls."""
