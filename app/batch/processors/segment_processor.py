"""Segment subjects: what each of the three stages does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.batch.outcomes import OutputRecord, Provenance
from app.batch.output_files import KeptOutput, OutputFiles, write_image
from app.batch.processors.subject_processor import SubjectProcessor, opened
from app.batch.stages import CaseLog, WrittenCase
from app.core.config import SegmentConfig
from app.core.constants import SEGMENTATION, Content, Modality
from app.core.errors import VolumeError
from app.data.cases import Case, Plan, plan
from app.data.loading import input_warnings, load_inputs
from app.data.nifti_reader import Volume, file_sha256
from app.inference.provenance import mark_inputs
from app.inference.tumour.segmenter import (
    SegmentedExam,
    check_enough,
    describe_labels,
    labels_image,
    missing_of,
    open_segmenting_model,
    reference_of,
)
from app.registry.manifest import read_manifest


@dataclass(frozen=True)
class LoadedExam:
    """Hold a subject that the network can take.

    Attributes:
        target: the sequence that lacks; None where none does.
        reference: the sequence whose geometry the outputs have.
    """

    log: CaseLog
    subject: str
    volumes: dict[Modality, Volume]
    target: Modality | None
    reference: Modality


@dataclass(frozen=True)
class ComputedExam:
    """Hold a subject that is segmented."""

    loaded: LoadedExam
    answer: SegmentedExam

    @property
    def log(self) -> CaseLog:
        """Give the log of the loaded exam."""
        return self.loaded.log


class SegmentProcessor(SubjectProcessor[LoadedExam, ComputedExam]):
    """Segment the tumours of subjects with four sequences, or three.

    Raises:
        WeightsError, UsageError, DeviceError: the model cannot be loaded.
    """

    config: SegmentConfig

    def __init__(self, config: SegmentConfig) -> None:
        super().__init__(config)
        self._labels = OutputFiles(config.output_dir, None, config.resume)
        made = config.synthesis_dir
        self._sequences = None if made is None else OutputFiles(made, None, config.resume)
        manifest = read_manifest(config.model.weights_dir)
        self.model = opened(lambda: open_segmenting_model(manifest, config.model, config.runtime), config)

    @property
    def runtime(self) -> str:
        """Say what the model runs on, and why."""
        return str(self.model.runtime)

    @property
    def on_gpu(self) -> bool:
        """Tell whether its network runs on a GPU."""
        return self.model.runtime.device.startswith("cuda")

    @property
    def model_record(self) -> Mapping[str, Any]:
        """Name the model and what it is made of."""
        return self.model.record

    # ------------------------------------------------------------ read

    def _read(self, case: Case, case_log: CaseLog) -> LoadedExam | WrittenCase:
        check_enough(case)
        first = plan(case, self.config.on_error)
        case_log.lacked = first.targets
        target = missing_of(case, first)
        if not self.config.overwrite and self._keep_good(case, first, target, case_log):
            return WrittenCase(case_log, "kept")
        case, final, volumes = load_inputs(case, self.config.on_error, complete_too=True)
        # Decoding may have shown that another one lacks.
        target = missing_of(case, final)
        case_log.lacked = final.targets
        case_log.warnings.extend([*final.warnings, *input_warnings(volumes)])
        case_log.inputs = {m: str(case.files[m]) for m in final.inputs}
        case_log.input_sha256 = {m: volumes[m].sha256 for m in final.inputs}
        return LoadedExam(case_log, case.subject, volumes, target, reference_of(final))

    def _keep_good(self, case: Case, first: Plan, target: Modality | None, case_log: CaseLog) -> bool:
        """Note the outputs that are there, if they are all that is wanted."""
        try:
            sha256s = {m: file_sha256(case.files[m]) for m in first.inputs}
        except VolumeError:
            # Whoever decodes it says what is wrong with it.
            return False
        reference = case.files[reference_of(first)]
        wanted: list[tuple[OutputFiles, Content]] = [(self._labels, SEGMENTATION)]
        if self._sequences is not None and target is not None:
            wanted.append((self._sequences, target))
        good: list[KeptOutput] = []
        for files, content in wanted:
            output = files.check(case.subject, content, reference, sha256s, fallback=None)
            if output is None:
                return False
            good.append(output)
        if all(output.same_inputs for output in good):
            case_log.input_sha256 = sha256s
        case_log.warnings.extend(first.warnings)
        for output in good:
            case_log.outputs.append(output.record)
            case_log.warnings.extend([*output.warnings, *self._origin_warnings(output.record, len(first.inputs))])
        return True

    def _origin_warnings(self, output: OutputRecord, inputs: int) -> list[str]:
        """Warn of a kept segmentation that another model, or another version, made."""
        expected = describe_labels(self.model, inputs)
        if output.target != SEGMENTATION or output.origin == expected:
            return []
        return [
            f"{output.path} is kept as it is: it was made as {output.origin!r}, this run would make {expected!r}; "
            "--overwrite makes it again."
        ]

    # ------------------------------------------------------------ network, write

    def _compute(self, loaded: LoadedExam) -> ComputedExam:
        return ComputedExam(loaded, self.model.run(loaded.volumes, loaded.target, loaded.reference))

    def _write_all(self, computed: ComputedExam) -> WrittenCase:
        loaded, answer = computed.loaded, computed.answer
        if answer.expectation is not None:
            strange = answer.expectation.warning(loaded.subject, self.model.identity.name)
            computed.log.warnings.extend([] if strange is None else [strange])
        reference = loaded.volumes[loaded.reference]
        if self._sequences is not None and loaded.target is not None and answer.synthesis is not None:
            # First: the next run looks for the segmentation, and keeps both.
            computed.log.outputs.append(self._write(self._sequences, loaded, loaded.target, answer.synthesis))
        labels = labels_image(answer.labels, reference, describe_labels(self.model, len(loaded.volumes)))
        computed.log.outputs.append(self._write(self._labels, loaded, SEGMENTATION, labels))
        return WrittenCase(computed.log, "made")

    def _write(self, files: OutputFiles, loaded: LoadedExam, content: Content, image: Any) -> OutputRecord:
        path = files.image_path(loaded.subject, content)
        mark_inputs(image, loaded.log.input_sha256)
        identity = self.model.identity
        provenance = Provenance(
            reference=loaded.reference,
            model=identity.name,
            model_sha256=identity.refined_by(None),
            weights_sha256=identity.sha256,
            refiner_sha256=None,
            fusion=None,
            device=self.model.runtime.device,
        )
        return OutputRecord(content, str(path), write_image(image, path), provenance)
