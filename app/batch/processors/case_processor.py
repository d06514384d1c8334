"""Complete subjects: what each of the three stages does."""

from __future__ import annotations

from app.batch.outcomes import OutputRecord
from app.batch.output_files import OutputFiles, write_image
from app.batch.processors.synthesis_processor import SynthesisProcessor, provenance_of
from app.batch.stages import CaseLog, LoadedCase, PredictedCase, Prediction, Synthesis, WrittenCase
from app.core.config import RunConfig
from app.core.constants import Modality
from app.core.errors import DoubtfulError, VolumeError
from app.data.cases import Case, Plan, plan
from app.data.loading import input_warnings, load_inputs
from app.data.nifti_reader import file_sha256
from app.data.origin import SYNTHETIC
from app.inference.pipeline import (
    describe,
    expect,
    fingerprint_of,
    finish,
    finish_confidence,
    predict,
    prepare,
    refine,
    synthesize_case,
)
from app.inference.provenance import mark_expectation, mark_inputs


class CaseProcessor(SynthesisProcessor[LoadedCase, PredictedCase]):
    """Make what subjects lack.

    Raises:
        WeightsError, UsageError, DeviceError: the model cannot be loaded.
    """

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.files = OutputFiles.of(config)

    # ------------------------------------------------------------ read

    def _read(self, case: Case, case_log: CaseLog) -> LoadedCase | WrittenCase:
        config = self.config
        first = plan(case, config.on_error, config.complete_all)
        case_log.lacked = first.targets
        if not first.targets:
            return WrittenCase(case_log, "complete")
        if not config.overwrite and self._keep_good(case, first, case_log):
            return WrittenCase(case_log, "kept")
        return self._load(case, case_log)

    def _keep_good(self, case: Case, first: Plan, case_log: CaseLog) -> bool:
        """Note the outputs that are there, if they are all that the subject lacks."""
        try:
            sha256s = {m: file_sha256(case.files[m]) for m in first.inputs}
        except VolumeError:
            # Whoever decodes it says what is wrong with it.
            return False
        good = self.files.find_good(case, first, self.synthesizer.fallback_name, sha256s)
        if len(good) < len(first.targets):
            return False
        if all(output.same_inputs for output in good):
            case_log.input_sha256 = sha256s
        case_log.outputs.extend(output.record for output in good)
        case_log.warnings.extend(first.warnings)
        for target, output in zip(first.targets, good, strict=True):
            case_log.warnings.extend(output.warnings)
            case_log.warnings.extend(self._origin_warnings(output.record, target, len(first.inputs)))
        return True

    def _load(self, case: Case, case_log: CaseLog) -> LoadedCase:
        config = self.config
        case, final, volumes = load_inputs(case, config.on_error, config.complete_all)
        case_log.lacked = final.targets
        case_log.warnings.extend(final.warnings)
        case_log.warnings.extend(input_warnings(volumes))
        case_log.inputs = {m: str(case.files[m]) for m in final.inputs}
        case_log.input_sha256 = {m: volumes[m].sha256 for m in final.inputs}
        return LoadedCase(case_log, case, final, volumes, prepare(volumes, self.synthesizer.model))

    def _origin_warnings(self, output: OutputRecord, target: Modality, inputs: int) -> list[str]:
        """Warn of a kept output that was made in another way than this run would make it."""
        model = self.synthesizer.model.model_for(target)
        expected = describe(model, target, inputs)
        # Version 0.1.0 named the checksum of the weights file alone.
        before = expected.replace(f" {fingerprint_of(model)[:8]}", f" {model.identity.sha256[:8]}")
        if not (output.origin or "").startswith(SYNTHETIC) or output.origin in {expected, before}:
            return []
        return [
            f"{output.path} is kept as it is: it was made as {output.origin!r}, this run would make {expected!r}; "
            "--overwrite makes it again."
        ]

    # ------------------------------------------------------------ network

    def _compute(self, loaded: LoadedCase) -> PredictedCase:
        return PredictedCase(loaded, tuple([self._predict(loaded, target) for target in loaded.plan.targets]))

    def _predict(self, loaded: LoadedCase, target: Modality) -> Prediction | Synthesis:
        model = self.synthesizer.model.model_for(target)
        try:
            fused = predict(loaded.prepared, target, model)
            expectation = expect(fused, loaded.prepared, target, model)
            return Prediction(target, model, refine(fused, loaded.prepared, target, model), expectation)
        except DoubtfulError as error:
            # Asked for: a fallback would hide it.
            path = self.files.image_path(loaded.case.subject, target)
            there = f" {path}, of an earlier run, is still there: remove it." if path.exists() else ""
            raise DoubtfulError(f"{error}{there}") from None
        except Exception as error:
            if not self._has_fallback:
                raise
            return self._fall_back(loaded, target, error)

    @property
    def _has_fallback(self) -> bool:
        # Nothing tells what to expect of a fallback's image.
        judges = self.config.model.min_expected_ssim is not None
        return self.config.on_error == "fallback" and self.synthesizer.fallback_name is not None and not judges

    def _fall_back(self, loaded: LoadedCase, target: Modality, error: Exception) -> Synthesis:
        """Make a sequence with the fallback after the network broke on it."""
        model, fallback = self.synthesizer.model.model_for(target), self.synthesizer.fallback
        loaded.log.warnings.append(
            f"{loaded.case.subject}: {model.identity.name} could not make {target} ({error}); "
            f"the fallback ({fallback.identity.name}) made it instead."
        )
        made = synthesize_case(loaded.volumes, target, loaded.plan.reference_of(target), fallback)
        return Synthesis(target, fallback, made.image)

    # ------------------------------------------------------------ write

    def _write_all(self, predicted: PredictedCase) -> WrittenCase:
        case_log = predicted.log
        for prediction in predicted.predictions:
            case_log.outputs.append(self._write(predicted.loaded, self._finish(predicted.loaded, prediction)))
        return WrittenCase(case_log, "made")

    def _finish(self, loaded: LoadedCase, prediction: Prediction | Synthesis) -> Synthesis:
        if isinstance(prediction, Synthesis):
            return prediction
        try:
            return self._to_images(loaded, prediction)
        except Exception as error:
            if not self._has_fallback:
                raise
            return self._fall_back(loaded, prediction.target, error)

    def _to_images(self, loaded: LoadedCase, prediction: Prediction) -> Synthesis:
        """Turn normalized voxels into the image and, where it is wanted, the confidence map."""
        target, model, fused = prediction.target, prediction.model, prediction.fused
        reference = loaded.plan.reference_of(target)
        image = finish(fused.volume, loaded.prepared, target, reference, model)
        confidence = None
        if fused.error is not None and self.files.confidence_folder is not None:
            confidence = finish_confidence(fused.error, loaded.prepared, target, reference, model)
        return Synthesis(target, model, image, confidence, prediction.expectation)

    def _write(self, loaded: LoadedCase, synthesis: Synthesis) -> OutputRecord:
        target, model = synthesis.target, synthesis.model
        path = self.files.image_path(loaded.case.subject, target)
        mark_inputs(synthesis.image, loaded.log.input_sha256)
        mark_expectation(synthesis.image, synthesis.expectation)
        # First, so that an output that is there, and is kept by the next run, has its map.
        confidence = self._write_confidence(loaded, synthesis)
        sha256 = write_image(synthesis.image, path)
        if synthesis.expectation is not None:
            strange = synthesis.expectation.warning(loaded.case.subject, model.identity.name)
            loaded.log.warnings.extend([] if strange is None or strange in loaded.log.warnings else [strange])
        provenance = provenance_of(model, loaded.plan.reference_of(target), confidence, synthesis.expectation)
        return OutputRecord(target, str(path), sha256, provenance)

    def _write_confidence(self, loaded: LoadedCase, synthesis: Synthesis) -> str | None:
        """Write the confidence map, where one is wanted; give its path for the record."""
        path = self.files.confidence_path(loaded.case.subject, synthesis.target)
        if path is None:
            return None
        if synthesis.confidence is None:
            loaded.log.warnings.append(
                f"{loaded.case.subject}: {synthesis.target} has no map of confidence, "
                f"since {synthesis.model.identity.name} made it."
            )
            # A map of what another model made before would be taken for this one's.
            path.unlink(missing_ok=True)
            return None
        mark_inputs(synthesis.confidence, loaded.log.input_sha256)
        write_image(synthesis.confidence, path)
        return str(path)
