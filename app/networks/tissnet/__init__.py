"""TISS-Net: a missing sequence and the tumour in one pass.

Source: Wu et al., TISS-net: Brain tumor image synthesis and segmentation using cascaded dual-task networks and
error-prediction consistency, Neurocomputing 2023; numbers of equations are its.
"""
