"""TISS-Net: a missing sequence and the tumour in one pass.

Source: Xie et al., Synthesizing missing modality for brain tumor segmentation (TISS-Net); numbers of equations are its.
"""
