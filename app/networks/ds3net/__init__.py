"""DS3-Net: learning to make a sequence from few exams that have it and many that lack it.

Source: Huang et al., DS3-Net: Difficulty-perceived Common-to-T1ce Semi-Supervised Multimodal MRI Synthesis Network
(MICCAI 2022); numbers of equations are its.
"""
