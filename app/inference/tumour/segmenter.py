"""Tumours of exams that lack a sequence, or none."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Final, Protocol

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from app import __version__
from app.core.config import WEIGHTS_DIR, ModelOptions, Precision, RuntimeOptions
from app.core.constants import MODALITIES, SEGMENTATION, TUMOUR_SEGMENTER, Modality
from app.core.errors import CaseError, WeightsError
from app.core.types import VolumeArray
from app.data.cases import Case, Plan
from app.data.loading import input_warnings, load_inputs
from app.data.nifti_reader import Volume
from app.data.nifti_writer import DESCRIPTION, scale_to_type, to_array, to_image
from app.inference.device import Machine, Runtime, choose_runtime, without_int8
from app.inference.loading import check_not_exchanged, open_model
from app.inference.models import Model
from app.inference.pipeline import fingerprint_of, synthesize_case
from app.inference.provenance import mark_inputs
from app.inference.synthesizer import as_case
from app.inference.tumour.outlines import OutlineModel
from app.inference.tumour.segmentation import TumourSegmenter
from app.inference.tumour.tissnet import CompletingSegmenter
from app.preprocessing.expected_quality import Expectation
from app.preprocessing.normalization import measure
from app.preprocessing.target_intensity import IntensityPredictor
from app.registry.checkpoints import load_intensity
from app.registry.identity import Identity, identity_record
from app.registry.manifest import Entry, Manifest, read_manifest
from app.registry.spec import CgSamrSpec, Segmenter3dSpec, TissNetSpec

log = logging.getLogger(__name__)

#: The model that completes an exam by the default generator, and segments it by the tumour segmenter.
COMPLETED: Final = "completed"
_ENOUGH: Final = "a tumour is segmented from three or four sequences."


@dataclass(frozen=True)
class SegmentedExam:
    """Hold what a model finds in one exam.

    Attributes:
        labels: uint8, axes L, P, S: 0 none, 1 core without enhancement, 2 oedema, 3 enhancing tumour.
        synthesis: the sequence that lacked, as an image in the reference's geometry; None for a complete exam.
        expectation: what that is expected to be worth; None where nobody tells.
    """

    labels: NDArray[np.uint8]
    synthesis: nib.Nifti1Image | None
    expectation: Expectation | None = None


class SegmentingModel(Protocol):
    """Find the tumour of an exam that lacks one sequence, or none."""

    @property
    def identity(self) -> Identity:
        """Name and checksums."""

    @property
    def record(self) -> Mapping[str, object]:
        """Name it and what it is made of, for records."""

    @property
    def runtime(self) -> Runtime:
        """How its network is run."""

    def run(self, volumes: Mapping[Modality, Volume], target: Modality | None, reference: Modality) -> SegmentedExam:
        """Segment an exam.

        Args:
            volumes: the sequences that are there, on one grid.
            target: the one that lacks; None where none does.
            reference: the sequence whose geometry a made one has.

        Raises:
            CaseError: the exam cannot be done.
        """


@dataclass(frozen=True)
class TissNetModel:
    """A TISS-Net, with the brightness of what it makes.

    Attributes:
        intensity: predicts how bright the made sequence is in the file's units.
    """

    identity: Identity
    segmenter: CompletingSegmenter
    intensity: IntensityPredictor | None
    runtime: Runtime

    @property
    def record(self) -> Mapping[str, object]:
        """Name it."""
        return identity_record(self.identity, {})

    def run(self, volumes: Mapping[Modality, Volume], target: Modality | None, reference: Modality) -> SegmentedExam:
        """Segment an exam; see `SegmentingModel.run`."""
        arrays = {m: v.data for m, v in volumes.items()}
        answer = self.segmenter.run(arrays, target)
        if target is None or answer.synthesis is None:
            return SegmentedExam(answer.labels, None)
        scheme = self.segmenter.spec.normalization
        measured = {m: measure(a, m, scheme) for m, a in arrays.items()}
        if self.intensity is None:
            raise CaseError(f"model {self.identity.name!r} does not know how bright {target} is.")
        restored = brighten(answer.synthesis, self.intensity.predict(measured, target).mean)
        grid = volumes[reference].grid
        text = _describe(target, len(volumes), self.identity)
        return SegmentedExam(answer.labels, to_image(scale_to_type(restored, grid), grid, text))


@dataclass(frozen=True)
class UnpairedModel:
    """A UCG-SAMR; it makes no sequence that lacks."""

    model: OutlineModel

    @property
    def identity(self) -> Identity:
        """Name and checksums."""
        return self.model.identity

    @property
    def record(self) -> Mapping[str, object]:
        """Name it."""
        return identity_record(self.identity, {})

    @property
    def runtime(self) -> Runtime:
        """How its network is run."""
        return self.model.runtime

    def run(self, volumes: Mapping[Modality, Volume], target: Modality | None, reference: Modality) -> SegmentedExam:
        """Segment a complete exam; see `SegmentingModel.run`."""
        return SegmentedExam(self.model.labels({m: v.data for m, v in volumes.items()}), None)


@dataclass(frozen=True)
class CompletedModel:
    """A generator that makes what lacks, and the 3D segmenter that then sees four sequences."""

    generator: Model
    segmenter: TumourSegmenter
    segmenter_identity: Identity
    runtime: Runtime

    @property
    def identity(self) -> Identity:
        """A fingerprint over all models that take part."""
        models = [self.generator, *self.generator.specialists.values()]
        texts = [fingerprint_of(m) for m in models]
        joined = " ".join([*texts, self.segmenter_identity.fingerprint or self.segmenter_identity.sha256])
        return Identity(COMPLETED, self.segmenter_identity.sha256, hashlib.sha256(joined.encode()).hexdigest())

    @property
    def record(self) -> Mapping[str, object]:
        """Name it, its generator with its specialists, and its segmenter."""
        specialists = {m: s.identity for m, s in self.generator.specialists.items()}
        return {
            **identity_record(self.identity, {}),
            "generator": identity_record(self.generator.identity, specialists),
            "segmenter": identity_record(self.segmenter_identity, {}),
        }

    def run(self, volumes: Mapping[Modality, Volume], target: Modality | None, reference: Modality) -> SegmentedExam:
        """Segment an exam; see `SegmentingModel.run`."""
        arrays = {m: v.data for m, v in volumes.items()}
        if target is None:
            return SegmentedExam(self.segmenter.segment(arrays), None)
        made = synthesize_case(volumes, target, reference, self.generator)
        arrays[target] = to_array(made.image, volumes[reference].grid)
        return SegmentedExam(self.segmenter.segment(arrays), made.image, made.expectation)


def open_segmenting_model(manifest: Manifest, options: ModelOptions, runtime: RuntimeOptions) -> SegmentingModel:
    """Open a model that segments.

    Args:
        options: `model` names a TISS-Net, a UCG-SAMR (which segments complete exams), a 3D segmenter (then the
            manifest's default generator completes exams for it), or `completed`, which is that with the manifest's
            tumour segmenter, and the default.

    Raises:
        WeightsError: the weights are missing or damaged, or the model does not segment.
        DeviceError: the device is not there.
        UsageError: a combination that does not exist.
    """
    name = options.model
    entry = manifest.entry(TUMOUR_SEGMENTER if name in {None, COMPLETED} else name)
    if isinstance(entry.spec, TissNetSpec):
        return _open_tissnet(entry, runtime)
    if isinstance(entry.spec, CgSamrSpec):
        chosen = choose_runtime(entry.files, Machine.probe(), RuntimeOptions(runtime.device, "torch", "fp32"))
        return UnpairedModel(OutlineModel.on(entry, chosen))
    if not isinstance(entry.spec, Segmenter3dSpec):
        raise WeightsError(f"model {entry.name!r} segments no exams; name a tissnet or segmenter3d of `info`.")
    check_not_exchanged(manifest, entry)
    generator = open_model(manifest, ModelOptions(manifest.folder), runtime)
    # The generator may run on ONNX; the segmenter has torch weights alone.
    chosen = _without_fp16(entry, RuntimeOptions(runtime.device, "torch", runtime.precision))
    return CompletedModel(generator, TumourSegmenter.on(entry, chosen), entry.identity, chosen)


def _without_fp16(entry: Entry, options: RuntimeOptions) -> Runtime:
    """Settle how a network of volumes is run: in float32 where others run in float16, and so it is recorded."""
    options = replace(options, precision=without_int8(options.precision))
    chosen = choose_runtime(entry.files, Machine.probe(), options)
    return replace(chosen, precision="fp32") if chosen.precision == "fp16" else chosen


def _open_tissnet(entry: Entry, options: RuntimeOptions) -> TissNetModel:
    chosen = _without_fp16(entry, options)
    return TissNetModel(entry.identity, CompletingSegmenter.on(entry, chosen), load_intensity(entry), chosen)


def brighten(synthesis: VolumeArray, mean: float) -> VolumeArray:
    """Bring a sequence from [-1, 1], background -1, to a mean over the brain, background 0."""
    shares = (synthesis + 1) / 2
    brain = shares > 0
    factor = mean / float(shares[brain].mean()) if brain.any() else 1.0
    return np.asarray(shares * np.float32(factor), dtype=np.float32)


def _describe(target: str, inputs: int, identity: Identity) -> str:
    """Describe an output in its header, so that nobody takes it for a scan or for an expert's drawing."""
    begin = f"synthetic {target} from {inputs}, tetrad {__version__}, "
    end = f" {identity.refined_by(None)[:8]}"
    return begin + identity.name[: DESCRIPTION - len(begin) - len(end)] + end


def describe_labels(model: SegmentingModel, inputs: int) -> str:
    """Describe a label map in its header."""
    return _describe(SEGMENTATION, inputs, model.identity)


def labels_image(labels: NDArray[np.uint8], reference: Volume, description: str) -> nib.Nifti1Image:
    """Put labels into the geometry of a sequence, as uint8."""
    return to_image(labels.astype(np.float32), reference.grid, description, dtype=np.dtype(np.uint8))


def reference_of(plan: Plan) -> Modality:
    """Choose the sequence whose geometry the outputs have."""
    return plan.reference_of(plan.targets[0]) if plan.targets else plan.inputs[0]


def check_enough(case: Case) -> None:
    """Refuse an exam that lacks too much to be segmented, whatever may be wrong with its files.

    Raises:
        CaseError: it lacks more than one sequence.
    """
    if case.problem is None and len(case.absent) > 1:
        raise CaseError(f"{case.subject} lacks {', '.join(case.absent)}; {_ENOUGH}")


def missing_of(case: Case, plan: Plan) -> Modality | None:
    """Name the one sequence that an exam lacks; None where it lacks none.

    Raises:
        CaseError: it lacks more than one.
    """
    absent = [m for m in MODALITIES if m not in plan.inputs]
    if len(absent) > 1:
        raise CaseError(f"{case.subject} has no usable {', '.join(absent)}; {_ENOUGH}")
    return absent[0] if absent else None


class Segmenter:
    """Find the tumours of exams with one model, loaded once.

    Args:
        model: a TISS-Net or a 3D segmenter of the weights folder's manifest, or `completed`, the default: the default
            generator makes what lacks, and the tumour segmenter sees four sequences.
        weights: the folder with `manifest.json`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `auto`, `bf16` or `fp32`.

    Raises:
        WeightsError: the weights are missing or do not match their checksum, or the model does not segment.
        DeviceError: the device is not there.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        weights: str | PathLike[str] = WEIGHTS_DIR,
        device: str = "auto",
        precision: Precision = "auto",
    ) -> None:
        options = ModelOptions(Path(weights), model)
        self.model = open_segmenting_model(
            read_manifest(options.weights_dir), options, RuntimeOptions(device, "auto", precision)
        )

    def __call__(
        self, case: Case | str | PathLike[str] | Mapping[Modality, str | PathLike[str]]
    ) -> tuple[nib.Nifti1Image, nib.Nifti1Image | None]:
        """Segment an exam with four sequences, or three.

        Args:
            case: a subject's folder, or a mapping from sequence to file, or a `Case` of `app.data.discovery.scan`.

        Returns:
            The labels (0 none, 1 core without enhancement, 2 oedema, 3 enhancing tumour) in the geometry of a present
            sequence, and the sequence that was made for it; None for a complete exam.

        Raises:
            CaseError: the subject cannot be done; the message says why.
            UsageError: `case` names no subject, or more than one.
        """
        subject = as_case(case)
        check_enough(subject)
        subject, todo, volumes = load_inputs(subject, "skip", complete_too=True)
        target = missing_of(subject, todo)
        for warning in (*todo.warnings, *input_warnings(volumes)):
            log.warning("%s", warning)
        reference = reference_of(todo)
        answer = self.model.run(volumes, target, reference)
        image = labels_image(answer.labels, volumes[reference], describe_labels(self.model, len(volumes)))
        for made in filter(None, (image, answer.synthesis)):
            mark_inputs(made, {m: volume.sha256 for m, volume in volumes.items()})
        return image, answer.synthesis
