"""One subject through three stages: read, network, write; `app.batch.prefetch` takes many through them at once."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib

from app.batch.outcomes import Outcome
from app.batch.tracing import Trace
from app.core.atomic_io import save_bytes
from app.core.config import RunConfig
from app.core.constants import Modality
from app.core.errors import DeviceError, TetradError, VolumeError
from app.data.cases import Case, Plan, plan
from app.data.loading import input_warnings, load_inputs
from app.data.nifti_reader import Volume, load_volume, read_grid
from app.data.nifti_writer import DESCRIPTION, encode_image
from app.inference.models import Model
from app.inference.pipeline import (
    describe,
    finish,
    finish_confidence,
    predict,
    prepare,
    refine,
    synthesize_case,
)
from app.inference.prepared import Prepared
from app.inference.synthesizer import Synthesizer
from app.inference.view_fusion import FusedPrediction

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Made:
    """One sequence on its way to the disk: an image, or scores that the writer turns into one."""

    target: Modality
    model: Model
    predicted: FusedPrediction | None = None
    image: nib.Nifti1Image | None = None
    confidence: nib.Nifti1Image | None = None


@dataclass
class Job:
    """One subject on its way from the reader through the network to the writer."""

    case: Case
    outcome: Outcome
    todo: Plan | None = None
    volumes: dict[Modality, Volume] = field(default_factory=dict)
    prepared: Prepared | None = None
    made: list[_Made] = field(default_factory=list)


class CaseProcessor:
    """Takes subjects through three stages, each in its own thread, with one model."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.trace = Trace(keep=config.profile_file is not None)
        # A device or a model that is not there must be known before an hour of work, and when all is kept.
        try:
            self.synthesizer = Synthesizer.from_options(config.model, config.runtime)
        except RuntimeError as error:
            # A GPU that is full, or in another's exclusive use.
            reason = f"the model could not be loaded on device {config.runtime.device} ({str(error).splitlines()[0]})"
            raise DeviceError(f"{reason}; free it, or use --device cpu.") from None

    # ------------------------------------------------------------ the three stages

    def read(self, case: Case) -> Job:
        """What the subject needs, decoded and in model space; a failure is noted in the job's outcome."""
        job = Job(case, Outcome(case.subject, "failed"))
        with self._isolated(job, "read"):
            self._read(job)
        return job

    def compute(self, job: Job) -> None:
        """Runs the network on what is to be made."""
        if job.todo is None:
            return
        with self._isolated(job, "network"):
            for target in job.todo.targets:
                job.made.append(self._make(job, job.todo, target))

    def write(self, job: Job) -> Outcome:
        """Finishes and writes the images; the outcome is final then."""
        outcome = job.outcome
        if job.todo is not None and outcome.error is None:
            with self._isolated(job, "write"):
                for made in job.made:
                    outcome.outputs.append(self._write(job, job.todo, made))
                outcome.status = "made"
        outcome.stages = {stage: round(seconds, 3) for stage, seconds in outcome.stages.items()}
        outcome.seconds = round(sum(outcome.stages.values()), 3)
        return outcome

    @contextlib.contextmanager
    def _isolated(self, job: Job, stage: str) -> Iterator[None]:
        """Whatever happens to one subject stays with it; only a signal gets through."""
        try:
            with self.trace.span(stage, job.case.subject, job.outcome.stages):
                yield
        except TetradError as error:
            job.outcome.error = str(error)
            job.todo = None
        except Exception as error:
            job.outcome.error = f"unexpected {type(error).__name__}: {error}; please report it with the file concerned."
            log.debug("%s", job.case.subject, exc_info=True)
            job.todo = None

    # ------------------------------------------------------------ their details

    def _read(self, job: Job) -> None:
        config, outcome = self.config, job.outcome
        first = plan(job.case, config.on_error, config.complete_all)
        outcome.lacked = first.targets
        if not first.targets:
            outcome.status = "complete"
            return
        kept = [] if config.overwrite else self._good_outputs(job.case, first)
        if len(kept) == len(first.targets):
            outcome.outputs = kept
            outcome.status = "kept"
            outcome.warnings.extend(first.warnings)
            outcome.warnings.extend(w for k in kept if (w := self._other_origin(k, first)))
            return
        job.case, todo, job.volumes = load_inputs(job.case, config.on_error, config.complete_all)
        outcome.warnings.extend(todo.warnings)
        outcome.lacked = todo.targets
        outcome.warnings.extend(input_warnings(job.volumes))
        outcome.inputs = {m: str(job.case.files[m]) for m in todo.inputs}
        job.prepared = prepare(job.volumes, self.synthesizer.model)
        job.todo = todo

    def _make(self, job: Job, todo: Plan, target: Modality) -> _Made:
        model = self.synthesizer.model.model_for(target)
        assert job.prepared is not None
        try:
            predicted = predict(job.prepared, target, model)
            return _Made(target, model, predicted=refine(predicted, job.prepared, target, model))
        except Exception as error:
            if not self._may_stand_in:
                raise
            return self._stand_in(job, todo, target, error)

    @property
    def _may_stand_in(self) -> bool:
        return self.config.on_error == "fallback" and self.synthesizer.fallback_name is not None

    def _stand_in(self, job: Job, todo: Plan, target: Modality, error: Exception) -> _Made:
        """The fallback's image after the network broke."""
        model, fallback = self.synthesizer.model.model_for(target), self.synthesizer.fallback
        job.outcome.warnings.append(
            f"{job.case.subject}: {model.identity.name} could not make {target} ({error}); "
            f"the fallback ({fallback.identity.name}) made it instead."
        )
        return _Made(target, fallback, image=synthesize_case(job.volumes, target, todo.reference_of(target), fallback))

    def _write(self, job: Job, todo: Plan, made: _Made) -> dict[str, Any]:
        reference = todo.reference_of(made.target)
        if made.predicted is not None:
            assert job.prepared is not None
            try:
                made = self._finished(made, made.predicted, job.prepared, reference)
            except Exception as error:
                if not self._may_stand_in:
                    raise
                made = self._stand_in(job, todo, made.target, error)
        assert made.image is not None
        path = self._output_path(job.case.subject, made.target)
        content = encode_image(made.image)
        # First, so that an output that is there, and is kept by the next run, has its map.
        confidence = self._write_confidence(job, made)
        save_bytes(content, path)
        runtime = made.model.runtime
        return {
            "target": made.target,
            "path": str(path),
            "sha256": hashlib.sha256(content).hexdigest(),
            "reference": reference,
            "model": made.model.name,
            "weights_sha256": made.model.identity.sha256,
            "refiner_sha256": None if made.model.refiner is None else made.model.refiner.identity.sha256,
            "joined": None if made.model.fusion is None else made.model.fusion.name,
            "device": "cpu" if runtime is None else runtime.device,
            **confidence,
        }

    def _finished(self, made: _Made, fused: FusedPrediction, prepared: Prepared, reference: Modality) -> _Made:
        """The images of what the network made."""
        image = finish(fused.volume, prepared, made.target, reference, made.model)
        confidence = None
        if fused.error is not None and self.config.confidence_dir is not None:
            confidence = finish_confidence(fused.error, prepared, made.target, reference, made.model)
        return replace(made, image=image, confidence=confidence, predicted=None)

    def _write_confidence(self, job: Job, made: _Made) -> dict[str, str]:
        """Writes the map if there is one; its place for the record."""
        path = self._confidence_path(job.case.subject, made.target)
        if path is None:
            return {}
        if made.confidence is None:
            job.outcome.warnings.append(
                f"{job.case.subject}: {made.target} has no map of confidence, since {made.model.identity.name} made it."
            )
            # A map of what another model made before would be taken for this one's.
            path.unlink(missing_ok=True)
            return {}
        save_bytes(encode_image(made.confidence), path)
        return {"confidence": str(path)}

    def _confidence_path(self, subject: str, target: Modality) -> Path | None:
        folder = self.config.confidence_dir
        return None if folder is None else folder / f"{subject}-{target}-confidence.nii.gz"

    def _output_path(self, subject: str, target: Modality) -> Path:
        return self.config.output_dir / f"{subject}-{target}.nii.gz"

    def _good_outputs(self, case: Case, todo: Plan) -> list[dict[str, Any]]:
        """The outputs that are there already, readable to the end and on their reference's grid."""
        good = []
        for target in todo.targets:
            path = self._output_path(case.subject, target)
            if not path.exists():
                continue
            try:
                grid = load_volume(path).grid
                origin = bytes(grid.header["descrip"].item()).decode("ascii", "replace")
                if not grid.same_as(read_grid(case.files[todo.reference_of(target)])):
                    continue
                if origin.startswith("synthetic") and f"from {len(todo.inputs)}," not in origin:
                    # It was made when fewer inputs could be read (or more, which have gone since).
                    continue
                if f", {self.synthesizer.fallback_name} " in origin:
                    # The network broke on it; perhaps it does not now.
                    continue
                confidence = self._confidence_path(case.subject, target)
                if confidence is not None and not confidence.exists():
                    continue
                good.append({"target": target, "path": str(path), "sha256": _sha256(path), "origin": origin})
            except VolumeError as error:
                log.warning("%s It is made again.", error)
        return good

    def _other_origin(self, kept: Mapping[str, Any], todo: Plan) -> str | None:
        """What is to be said of an output that is kept and was made in another way than this run would make it."""
        expected = describe(self.synthesizer.model.model_for(kept["target"]), kept["target"], len(todo.inputs))
        if not kept["origin"].startswith("synthetic") or kept["origin"] == expected[:DESCRIPTION]:
            return None
        return (
            f"{kept['path']} is kept as it is: it was made as {kept['origin']!r}, this run would make {expected!r}; "
            "--overwrite makes it again."
        )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def runtime_of(worker: CaseProcessor) -> str:
    """What the worker's model runs on, and why."""
    model = worker.synthesizer.model
    if model.runtime is None:
        return "numpy on cpu in fp32 (a voxel-wise regression needs no more)"
    return f"{model.runtime}" if model.refiner is None else f"{model.runtime}, refined by {model.refiner.identity.name}"
