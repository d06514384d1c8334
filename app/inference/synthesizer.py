"""The class that completes exams from Python."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import nibabel as nib

from app.core.config import WEIGHTS_DIR, BackendName, FusionName, ModelOptions, Precision, Quality, RuntimeOptions
from app.core.constants import MODALITIES, Modality
from app.core.errors import CaseError, UsageError, WeightsError
from app.core.weights_dir import BUILTIN_WEIGHTS
from app.data.cases import Case
from app.data.discovery import inspect, scan
from app.data.loading import input_warnings, load_inputs
from app.inference.loading import open_fallback, open_model
from app.inference.models import Model, RegressionModel
from app.inference.pipeline import synthesize_case
from app.inference.provenance import mark_expectation, mark_inputs
from app.registry.manifest import read_manifest

log = logging.getLogger(__name__)


class Synthesizer:
    """Complete exams with one model, loaded once.

    Args:
        model: a name in the weights folder's manifest; its default if not given.
        weights: the folder with `manifest.json`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        backend: `auto`, `torch` or `onnx`.
        precision: `auto`, `bf16`, `fp16`, `fp32` or `int8` (on a processor).
        batch_size: slices per network call; the device decides if not given.
        refine: correct predictions by the model's 3D refiner; the manifest decides if not given.
        specialists: let other models make the sequences that the manifest says they make better.
        fusion: how the views are fused: `mean`, `median` or `confidence`; the model's own way if not given.
        flip_average: run the mirrored exam too, and average both; the model's own way if not given.
        quality: `fast`, `default` (the model's own way) or `best`; `flip_average` goes before it.
        intensity: `mean`, `sample` or a number from 0 to 1, for models with intensity encoding.
        min_expected_ssim: refuse an exam of which less is expected, SSIM inside the brain, 0 to 1.
        with_error: have the network expect its error too (`app.inference.pipeline.predict` returns it).

    The expected SSIM of an image stands in its header's `intent_name`.

    Raises:
        WeightsError: the weights are missing or do not match their checksum.
        DeviceError: the device is not there.
        UsageError: a combination that does not exist.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        weights: str | PathLike[str] = WEIGHTS_DIR,
        device: str = "auto",
        backend: BackendName = "auto",
        precision: Precision = "auto",
        batch_size: int | None = None,
        refine: bool | None = None,
        specialists: bool = True,
        fusion: FusionName | None = None,
        flip_average: bool | None = None,
        quality: Quality = "default",
        intensity: str | float | None = None,
        min_expected_ssim: float | None = None,
        with_error: bool = False,
    ) -> None:
        runtime = RuntimeOptions(device, backend, precision, batch_size)
        options = ModelOptions(
            weights_dir=Path(weights),
            model=model,
            refine=refine,
            specialists=specialists,
            fusion=fusion,
            flip_average=flip_average,
            quality=quality,
            intensity=None if intensity is None else str(intensity),
            min_expected_ssim=min_expected_ssim,
            with_error=with_error,
        )
        self._open(options, runtime)

    @classmethod
    def from_options(cls, model: ModelOptions, runtime: RuntimeOptions) -> Synthesizer:
        """Open the model that a command line describes; raises as the class does."""
        synthesizer = cls.__new__(cls)
        synthesizer._open(model, runtime)
        return synthesizer

    def _open(self, options: ModelOptions, runtime: RuntimeOptions) -> None:
        self._manifest = read_manifest(options.weights_dir)
        self.model = open_model(self._manifest, options, runtime)
        # Somebody's own folder of networks has no regression; a subject that one breaks on must not be lost by that.
        if self._manifest.fallback is None:
            with contextlib.suppress(WeightsError):
                self._manifest = read_manifest(BUILTIN_WEIGHTS)
        self._fallback: Model | None = self.model if isinstance(self.model, RegressionModel) else None

    @property
    def fallback_name(self) -> str | None:
        """Name of the model for cases that the chosen one breaks on; None where it is the same."""
        return None if isinstance(self.model, RegressionModel) else self._manifest.fallback

    @property
    def fallback(self) -> Model:
        """The voxel-wise regression: the weights folder's, or else the project's own.

        Raises:
            WeightsError: there is none.
        """
        if self._fallback is None:
            self._fallback = open_fallback(self._manifest)
        return self._fallback

    def __call__(
        self, case: Case | str | PathLike[str] | Mapping[Modality, str | PathLike[str]], target: Modality | None = None
    ) -> nib.Nifti1Image:
        """Synthesize the missing sequence, as an image with the header of its reference.

        Args:
            case: a subject's folder, or a mapping from sequence to file, or a `Case` of `app.data.discovery.scan`.
            target: the sequence to make where several are missing, or to make again.

        Raises:
            CaseError: the subject cannot be done; the message says why.
            UsageError: `case` names no subject, or more than one; or `target` is no sequence.
        """
        if target is not None and target not in MODALITIES:
            raise UsageError(f"{target!r} is no sequence; use one of {', '.join(MODALITIES)}.")
        subject = as_case(case)
        if target is None and len(subject.absent) > 1:
            raise CaseError(f"{subject.subject} lacks {', '.join(subject.absent)}; name one of them with `target`.")
        if target is not None:
            subject = inspect(subject.subject, {m: [f] for m, f in subject.files.items() if m != target})
        _, todo, volumes = load_inputs(subject, "skip", complete_all=target is not None)
        if not todo.targets:
            raise CaseError(f"{subject.subject} has all four sequences; name the one to make with `target`.")
        for warning in (*todo.warnings, *input_warnings(volumes)):
            log.warning("%s", warning)
        wanted = target or todo.targets[0]
        made = synthesize_case(volumes, wanted, todo.reference_of(wanted), self.model)
        if made.expectation is not None:
            strange = made.expectation.warning(subject.subject, self.model.model_for(wanted).identity.name)
            if strange is not None:
                log.warning("%s", strange)
        mark_inputs(made.image, {m: volume.sha256 for m, volume in volumes.items()})
        mark_expectation(made.image, made.expectation)
        return made.image


def as_case(case: Case | str | PathLike[str] | Mapping[Modality, str | PathLike[str]]) -> Case:
    """Find the one case that the caller means."""
    if isinstance(case, Case):
        return case
    if isinstance(case, Mapping):
        if unknown := [m for m in case if m not in MODALITIES]:
            raise UsageError(f"{unknown[0]!r} is no sequence; use {', '.join(MODALITIES)}.")
        if not case:
            raise UsageError("the mapping names no sequence; give at least one file.")
        return inspect("subject", {m: [Path(f)] for m, f in case.items()})
    cases = scan(Path(case)).cases
    if len(cases) != 1:
        raise UsageError(f"{case} holds {len(cases)} subjects; give the folder of one, or use `python -m app`.")
    return cases[0]
