"""What a run was asked to do. Importing this module needs no third-party package."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from app.core import weights_dir

OnError = Literal["fallback", "skip", "stop"]
BackendName = Literal["auto", "torch", "onnx"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
#: How views become one volume: see `app.inference.view_fusion`.
FusionName = Literal["mean", "median", "confidence"]

ON_ERROR: Final[tuple[OnError, ...]] = ("fallback", "skip", "stop")
BACKENDS: Final[tuple[BackendName, ...]] = ("auto", "torch", "onnx")
PRECISIONS: Final[tuple[Precision, ...]] = ("auto", "bf16", "fp16", "fp32")
FUSIONS: Final[tuple[FusionName, ...]] = ("mean", "median", "confidence")

#: The weights unless `--weights` names others.
WEIGHTS_DIR: Final = weights_dir.WEIGHTS_DIR


@dataclass(frozen=True)
class RunConfig:
    """One `synthesize` run.

    Attributes:
        input_dir, output_dir: folders.
        report_dir: where the run record goes; None writes none.
        weights_dir, model: which model; None is the manifest's default.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        backend, precision: see `app.inference.device.choose_runtime`.
        batch_size: slices per network call; None lets the device decide.
        cuda_graphs: record what the network launches on a GPU, and replay it.
        refine: pass what is made through the model's 3D refiner; None leaves it to the manifest.
        specialists: let other models make the sequences that the manifest says they make better.
        jobs: threads that decode subjects beside the network; None lets the machine decide.
        fusion: how the views are joined; None is the model's own way.
        flip_average: average what is made of the exam and of its mirror image; None is the model's own way.
        confidence_dir: gets a map of confidence per output; None writes none.
        on_error: what a subject that cannot be done normally becomes.
        complete_all: make every sequence that a subject lacks, not just one.
        overwrite: make outputs again that are already there and good.
        profile_file: gets a Chrome trace of the run.
        part_id, num_parts: this process does every `num_parts`-th subject, from `part_id` (0-based).
    """

    input_dir: Path
    output_dir: Path
    report_dir: Path | None = None
    weights_dir: Path = WEIGHTS_DIR
    model: str | None = None
    device: str = "auto"
    backend: BackendName = "auto"
    precision: Precision = "auto"
    batch_size: int | None = None
    cuda_graphs: bool = False
    refine: bool | None = None
    specialists: bool = True
    jobs: int | None = None
    fusion: FusionName | None = None
    flip_average: bool | None = None
    confidence_dir: Path | None = None
    on_error: OnError = "fallback"
    complete_all: bool = False
    overwrite: bool = False
    profile_file: Path | None = None
    part_id: int = 0
    num_parts: int = 1

    def to_json(self) -> dict[str, Any]:
        """For the run record."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}
