"""Processor time of the official score against torchmetrics' own, on one phantom of BraTS size.

`python -m benchmarks ssim`. torchmetrics runs once (it takes minutes), ours three times (median).
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
import torchmetrics
from numpy.typing import NDArray
from torchmetrics.functional.image import structural_similarity_index_measure

from app.evaluation.metrics.ssim import official_score
from app.preprocessing.normalization import rescale_as_scored
from benchmarks._common import brats_phantom


def _theirs(prediction: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    # In float32, as the challenge's script: in float64 its convolution asks for hundreds of gigabytes.
    p, t = (torch.from_numpy(v).float()[None, None] for v in (prediction, truth))
    score = structural_similarity_index_measure(p, t)
    assert isinstance(score, torch.Tensor)
    return float(score)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    phantom = brats_phantom()
    prediction, truth, tumour = phantom.volumes["t1n"], phantom.volumes["t1c"], phantom.labels > 0
    ours = []
    for _ in range(3):
        began = time.process_time()
        score = official_score(prediction, truth, tumour)
        ours.append(time.process_time() - began)
    began = time.process_time()
    p, t = rescale_as_scored(prediction), rescale_as_scored(truth)
    theirs = [_theirs(p * mask, t * mask) for mask in (~tumour, tumour)]
    reference = time.process_time() - began
    print(f"torchmetrics {torchmetrics.__version__}: {reference:.1f} processor-seconds, scores {theirs}")
    print(
        f"tetrad: {statistics.median(ours):.1f} processor-seconds, {reference / statistics.median(ours):.0f} times less"
    )
    print(f"largest difference: {np.abs(np.array(theirs) - np.array(score)).max():.1e}")


if __name__ == "__main__":
    main()
