"""Models opened, and the class that completes exams with one of them from Python."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path

import nibabel as nib

from app.core.config import BACKENDS, FUSIONS, PRECISIONS, WEIGHTS_DIR, BackendName, FusionName, Precision
from app.core.constants import MODALITIES, Modality
from app.core.errors import CaseError, UsageError, WeightsError
from app.core.weights_dir import BUILTIN_WEIGHTS
from app.data.cases import Case
from app.data.discovery import inspect, scan
from app.data.loading import input_warnings, load_inputs
from app.inference.loading import choose_fusion, fusion_of, learned_fusion, open_fallback, open_model, refiner_of
from app.inference.pipeline import Model, synthesize_case
from app.registry.manifest import read_manifest

log = logging.getLogger(__name__)


class Synthesizer:
    """Completes exams with one model, loaded once.

    Args:
        model: a name in the weights folder's manifest; its default if not given.
        weights: the folder with `manifest.json`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        backend: `auto`, `torch` or `onnx`.
        precision: `auto`, `bf16`, `fp16` or `fp32`.
        batch_size: slices per network call; the device decides if not given.
        cuda_graphs: record what the network launches on a GPU, and replay it.
        refine: pass what is made through the model's 3D refiner; the manifest decides if not given.
        specialists: let other models make the sequences that the manifest says they make better.
        fusion: how the views are joined: `mean`, `median` or `confidence`; the model's own way if not given.
        flip_average: average what is made of the exam and of its mirror image; the model's own way if not given.
        with_error: have the network say how wrong it expects to be (`predict` gives it).

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
        cuda_graphs: bool = False,
        refine: bool | None = None,
        specialists: bool = True,
        fusion: FusionName | None = None,
        flip_average: bool | None = None,
        with_error: bool = False,
    ) -> None:
        if fusion is not None and fusion not in FUSIONS:
            raise UsageError(f"fusion={fusion!r} does not exist; use one of {', '.join(FUSIONS)}.")
        if backend not in BACKENDS or precision not in PRECISIONS or (batch_size is not None and batch_size < 1):
            raise UsageError(f"backend={backend!r}, precision={precision!r}, batch_size={batch_size!r} do not exist.")
        self._manifest = read_manifest(Path(weights))
        entry = self._manifest.entry(model)
        joining = choose_fusion(entry, fusion, flip_average, with_error)
        refiner = refiner_of(self._manifest, entry, refine)
        if refiner is not None and (learned := learned_fusion(refiner)) is not None:
            given = fusion_of(entry, joining)
            if learned != given:
                log.warning("The refiner %s learned on views joined as %r and gets %r now.",
                            refiner.name, learned, given)  # fmt: skip
        others = self._manifest.specialists_of(entry) if specialists else {}
        # A specialist is refined where its own entry says so: what is asked for is this model's refiner.
        own = None if refine else refine
        # One network may make several sequences, and is loaded once.
        opened = {
            name: replace(
                open_model(
                    one, device, backend, precision, batch_size, cuda_graphs, refiner_of(self._manifest, one, own)
                ),
                joining=choose_fusion(one, fusion, flip_average, with_error),
            )
            for name, one in {e.name: e for e in others.values()}.items()
        }
        self.model = replace(
            open_model(entry, device, backend, precision, batch_size, cuda_graphs, refiner),
            joining=joining,
            specialists={target: opened[one.name] for target, one in others.items()},
        )
        # Somebody's own folder of networks has no regression; a subject that one breaks on must not be lost by that.
        self._rescue = self._manifest
        if self._manifest.fallback is None:
            with contextlib.suppress(WeightsError):
                self._rescue = read_manifest(BUILTIN_WEIGHTS)
        self._fallback: Model | None = self.model if entry.spec.kind == "regression" else None

    @property
    def stand_in(self) -> str | None:
        """Name of the model that is used where the chosen one breaks; None where the chosen one is it."""
        return None if self.model.spec.kind == "regression" else self._rescue.fallback

    @property
    def fallback(self) -> Model:
        """The voxel-wise regression, for what the network breaks on: the weights folder's, or else the project's own.

        Raises:
            WeightsError: there is none.
        """
        if self._fallback is None:
            self._fallback = open_fallback(self._rescue)
        return self._fallback

    def __call__(
        self, case: Case | str | PathLike[str] | Mapping[Modality, str | PathLike[str]], target: Modality | None = None
    ) -> nib.Nifti1Image:
        """The missing sequence as an image with the header of its reference.

        Args:
            case: a subject's folder, or a mapping from sequence to file, or a `Case` of `app.data.discovery.scan`.
            target: the sequence to make where several are missing, or to make again.

        Raises:
            CaseError: the subject cannot be done; the message says why.
            UsageError: `case` names no subject, or more than one; or `target` is no sequence.
        """
        if target is not None and target not in MODALITIES:
            raise UsageError(f"{target!r} is no sequence; use one of {', '.join(MODALITIES)}.")
        subject = _as_case(case)
        if target is None and len(subject.absent) > 1:
            raise CaseError(f"{subject.subject} lacks {', '.join(subject.absent)}; name one of them with `target`.")
        if target is not None:
            kept = {m: f for m, f in subject.files.items() if m != target}
            subject = inspect(subject.subject, {m: [f] for m, f in kept.items()})
        _, todo, volumes = load_inputs(subject, "skip", complete_all=target is not None)
        if not todo.targets:
            raise CaseError(f"{subject.subject} has all four sequences; name the one to make with `target`.")
        for note in (*todo.warnings, *input_warnings(volumes)):
            log.warning("%s", note)
        wanted = target or todo.targets[0]
        return synthesize_case(volumes, wanted, todo.reference_of(wanted), self.model)


def _as_case(case: Case | str | PathLike[str] | Mapping[Modality, str | PathLike[str]]) -> Case:
    if isinstance(case, Case):
        return case
    if isinstance(case, Mapping):
        if unknown := [m for m in case if m not in MODALITIES]:
            raise UsageError(f"{unknown[0]!r} is no sequence; use {', '.join(MODALITIES)}.")
        if not case:
            raise UsageError("the mapping names no sequence; give at least one file.")
        return inspect("subject", {m: [Path(f)] for m, f in case.items()})
    found = scan(Path(case)).cases
    if len(found) != 1:
        raise UsageError(f"{case} holds {len(found)} subjects; give the folder of one, or use `python -m app`.")
    return found[0]
