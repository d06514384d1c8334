"""Complete exams as scanned: what each of the three stages does."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from app.batch.clinic.completion import Wish, check_wish
from app.batch.clinic.results import (
    Forms,
    Places,
    is_good_enough,
    is_whole,
    read_record,
    request_of,
    send_result,
    write_result,
)
from app.batch.clinic.studies import StudyCase
from app.batch.outcomes import OutputRecord
from app.batch.output_files import KeptOutput
from app.batch.processors.synthesis_processor import SynthesisProcessor, provenance_of
from app.batch.stages import CaseLog, WrittenCase
from app.core.config import ClinicConfig
from app.core.constants import MODALITIES, Modality
from app.core.errors import CaseError
from app.data.cases import Case
from app.data.nifti_reader import Volume
from app.dicom.destination import Destination
from app.dicom.selection import SeriesRules
from app.dicom.site_names import read_site_names
from app.inference.clinic.pipeline import AlignedCase, CompletedExam, align_case, maker_of, synthesize_exam
from app.inference.clinic.scans import choose_target
from app.inference.clinic.study import Study, open_study

log = logging.getLogger(__name__)

#: Parts of a request that say what makes the result, not from what.
_MAKERS: Final = frozenset({"model", "fusion"})


@dataclass(frozen=True)
class LoadedStudy:
    """Hold an exam whose sequences are aligned.

    Attributes:
        requests: per sequence to make, all that the result depends on.
    """

    log: CaseLog
    study: Study
    aligned: AlignedCase
    requests: Mapping[Modality, Mapping[str, Any]]


@dataclass(frozen=True)
class CompletedStudy:
    """Hold an exam whose sequences are made."""

    loaded: LoadedStudy
    exams: tuple[CompletedExam, ...]

    @property
    def log(self) -> CaseLog:
        """Give the log of the loaded exam."""
        return self.loaded.log


class ClinicProcessor(SynthesisProcessor[LoadedStudy, CompletedStudy]):
    """Make what exams as scanned lack.

    Raises:
        WeightsError, UsageError, DeviceError: the model cannot be loaded.
    """

    config: ClinicConfig

    def __init__(self, config: ClinicConfig) -> None:
        super().__init__(config)
        send_to = None if config.send is None else Destination.parse(config.send)
        forms = Forms(config.dicom or send_to is not None, config.view, config.stamp)
        self._rules = SeriesRules(across_studies=config.allow_other_study, site=read_site_names(config.series_names))
        self._wish = Wish(forms=forms, send_to=send_to, overwrite=config.overwrite)

    # ------------------------------------------------------------ read

    def _read(self, case: Case, case_log: CaseLog) -> LoadedStudy | WrittenCase:
        study = self._open(case)
        check_wish(study, self._wish)
        case_log.lacked = self._targets(study)
        if not case_log.lacked:
            return WrittenCase(case_log, "complete")
        sequences = {m: read() for m, read in study.readers.items()}
        case_log.input_sha256 = {m: volume.sha256 for m, volume in sequences.items()}
        model = self.synthesizer.model
        requests = {m: request_of(sequences, maker_of(model, m, sequences)) for m in case_log.lacked}
        if not self.config.overwrite and self._keep_good(study, requests, case_log):
            self._send_all(study, case_log)
            return WrittenCase(case_log, "kept")
        case_log.inputs = {m: str(f) for m, f in study.files.items()}
        return self._align(study, sequences, requests, case_log)

    def _open(self, case: Case) -> Study:
        if not isinstance(case, StudyCase):
            raise CaseError(f"{case.subject} is no exam as scanned; leave out --clinic.")
        own = [folder for folder in (self.config.output_dir, self.config.report_dir) if folder is not None]
        # Named by its folder: two exams may have files of one name.
        study = open_study(case.folder, naming=self.config.naming, exclude=own, rules=self._rules)
        return replace(study, name=case.subject)

    def _targets(self, study: Study) -> tuple[Modality, ...]:
        """List the sequences to make."""
        absent = tuple(m for m in MODALITIES if m not in study.readers)
        if absent:
            choose_target(study.readers, absent[0])
        if len(absent) > 1 and not self.config.complete_all:
            raise CaseError(f"{study.name} lacks {', '.join(absent)}; give --complete-all to have all of them made.")
        return absent

    def _keep_good(self, study: Study, requests: Mapping[Modality, Mapping[str, Any]], case_log: CaseLog) -> bool:
        """Note the results that are there, if they are all that the exam lacks."""
        good = [kept for m, request in requests.items() if (kept := self._find_good(study, m, request)) is not None]
        if len(good) < len(requests):
            return False
        for kept in good:
            case_log.outputs.append(kept.record)
            case_log.warnings.extend(kept.warnings)
        return True

    def _find_good(self, study: Study, target: Modality, request: Mapping[str, Any]) -> KeptOutput | None:
        """Look for a result that is whole and, unless any is kept, was made from these inputs."""
        places = self._places(study, target)
        if not is_whole(places, self._wish.forms):
            return None
        record = read_record(places.record)
        if not is_good_enough(record, self.config.model.min_expected_ssim):
            log.warning("%s is not known to reach what --min-expected-ssim asks for; it is made again.", places.image)
            return None
        before: Mapping[str, Any] = record.get("request", {})
        others = {name for name in request if before.get(name) != request[name]}
        same_inputs = others <= _MAKERS
        if not same_inputs and self.config.resume == "same":
            log.warning("%s was made from other inputs than are there now; it is made again.", places.image)
            return None
        warnings = []
        if others:
            what = "in another way" if same_inputs else "from other inputs than are there now (--resume any)"
            warnings.append(f"{places.image} is kept, but was made {what}; --overwrite makes it again.")
        output = OutputRecord(
            target, str(places.image), record["image_sha256"], origin=record.get("model"),
            picture=str(places.picture), view=self._view(places),
        )  # fmt: skip
        return KeptOutput(output, tuple(warnings), same_inputs)

    def _align(
        self, study: Study, sequences: Mapping[Modality, Volume], requests: Mapping[Modality, Any], case_log: CaseLog
    ) -> LoadedStudy:
        aligned = align_case(sequences, target=case_log.lacked[0])
        case_log.warnings.extend(study.warnings)
        return LoadedStudy(case_log, study, aligned, requests)

    # ------------------------------------------------------------ network, write

    def _compute(self, loaded: LoadedStudy) -> CompletedStudy:
        model = self.synthesizer.model
        return CompletedStudy(loaded, tuple([synthesize_exam(loaded.aligned, model, m) for m in loaded.requests]))

    def _write_all(self, computed: CompletedStudy) -> WrittenCase:
        study, case_log = computed.loaded.study, computed.log
        for exam in computed.exams:
            case_log.warnings.extend(w for w in exam.warnings if w not in case_log.warnings)
            case_log.outputs.append(self._write(computed.loaded, exam))
        self._send_all(study, case_log)
        return WrittenCase(case_log, "made")

    def _write(self, loaded: LoadedStudy, exam: CompletedExam) -> OutputRecord:
        places = self._places(loaded.study, exam.target)
        sha256 = write_result(loaded.study, exam, loaded.requests[exam.target], places, self._wish.forms)
        scanned = {m: scan.volume for m, scan in loaded.aligned.scans.items()}
        model = maker_of(self.synthesizer.model, exam.target, scanned)
        provenance = provenance_of(model, exam.reference, expectation=exam.expectation)
        picture = str(places.picture)
        return OutputRecord(
            exam.target, str(places.image), sha256, provenance, picture=picture, view=self._view(places)
        )

    def _send_all(self, study: Study, case_log: CaseLog) -> None:
        """Send the derived series, where that is wanted.

        Raises:
            SendError: one was not taken; the results are written.
        """
        if self._wish.send_to is None:
            return
        for target in case_log.lacked:
            send_result(self._places(study, target), self._wish.send_to)

    def _places(self, study: Study, target: Modality) -> Places:
        return Places(self.config.output_dir, f"{study.name}-{target}")

    def _view(self, places: Places) -> str | None:
        return str(places.view) if self._wish.forms.view else None
