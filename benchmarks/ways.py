"""Which way of running a network is fastest on a device: torch or onnxruntime.

`python -m benchmarks ways [--device cuda:0] [--model NAME] [--repeats 5] [--shape small]`: one phantom of BraTS size,
decoded and prepared beforehand, taken through each way in turn (A B C, A B C); medians. The volumes lie in the
processor's memory before and after. The first two rounds are not counted: in them libraries make their plans.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.cli.argument_types import positive
from app.core.constants import MODALITIES, Modality
from app.data.nifti_reader import load_volume
from app.data.phantom import write_phantom
from app.inference.device import Machine, choose_device
from app.inference.pipeline import predict, prepare
from app.inference.synthesizer import Synthesizer
from benchmarks._common import machine, phantom_of

TARGET: Modality = "t2f"
WAYS: dict[str, dict[str, Any]] = {
    "torch": {"backend": "torch"},
    "torch, fp32": {"backend": "torch", "precision": "fp32"},
    "onnxruntime, fp32": {"backend": "onnx"},
}
#: Rounds that are not counted.
ROUNDS_BEFORE = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--model", help="default: the manifest's")
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--shape", choices=["brats", "small"], default="brats")
    options = parser.parse_args()
    device = choose_device(options.device, Machine.probe())[0]
    with tempfile.TemporaryDirectory() as name:
        write_phantom(phantom_of(options.shape), Path(name), "s", leave_out=(TARGET,))
        volumes = {m: load_volume(Path(name) / "s" / f"s-{m}.nii.gz") for m in MODALITIES if m != TARGET}
    models = {n: Synthesizer(options.model, device=device, **w).model.model_for(TARGET) for n, w in WAYS.items()}
    prepared = {n: prepare(volumes, model) for n, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    made = {}
    for _ in range(ROUNDS_BEFORE + options.repeats):
        for name, model in models.items():
            began = time.perf_counter()
            made[name] = predict(prepared[name], TARGET, model).volume
            seconds[name].append(time.perf_counter() - began)
    plain = made["torch, fp32"]
    medians = {name: statistics.median(spent[ROUNDS_BEFORE:]) for name, spent in seconds.items()}
    print("| way | s a subject | times faster than the first | first two rounds, s | furthest from fp32, deviations |")
    print("|---|---|---|---|---|")
    for name, spent in medians.items():
        away = np.abs(made[name] - plain).max() / plain.std()
        faster = medians["torch"] / spent
        print(f"| {name} | {spent:.3f} | {faster:.2f} | {sum(seconds[name][:ROUNDS_BEFORE]):.2f} | {away:.4f} |")
    where = torch.cuda.get_device_name(device) if device != "cpu" else machine()
    print(f"model {models['torch'].name}, {models['torch'].runtime}; {where}")


if __name__ == "__main__":
    main()
