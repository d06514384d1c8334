"""What all processors share that make missing sequences: the model, what records say of it, and of what it made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.batch.outcomes import Provenance
from app.batch.processors.subject_processor import Computed, Loaded, SubjectProcessor, opened
from app.core.config import RunConfig
from app.core.constants import Modality
from app.inference.models import Model
from app.inference.pipeline import fingerprint_of
from app.inference.synthesizer import Synthesizer
from app.preprocessing.expected_quality import Expectation
from app.registry.identity import identity_record


class SynthesisProcessor(SubjectProcessor[Loaded, Computed]):
    """Base of the processors whose model makes sequences.

    Raises:
        WeightsError, UsageError, DeviceError: the model cannot be loaded.
    """

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        # A device or a model that is not there must be known before an hour of work, and when all is kept.
        self.synthesizer = opened(lambda: Synthesizer.from_options(config.model, config.runtime), config)

    @property
    def runtime(self) -> str:
        """Say what the model runs on, and why."""
        model = self.synthesizer.model
        if model.runtime is None:
            return "numpy on cpu in fp32 (a voxel-wise regression needs no more)"
        return f"{model.runtime}" + ("" if model.refiner is None else f", refined by {model.refiner.identity.name}")

    @property
    def on_gpu(self) -> bool:
        """Tell whether its network runs on a GPU."""
        runtime = self.synthesizer.model.runtime
        return runtime is not None and runtime.device.startswith("cuda")

    @property
    def model_record(self) -> Mapping[str, Any]:
        """Name the model and its specialists."""
        model = self.synthesizer.model
        return identity_record(model.identity, {m: s.identity for m, s in model.specialists.items()})


def provenance_of(
    model: Model, reference: Modality, confidence: str | None = None, expectation: Expectation | None = None
) -> Provenance:
    """Say how a sequence was made.

    Args:
        model: the one that made it, specialists chosen.
        reference: the sequence whose geometry it has.
        confidence: path of its confidence map, if one was written.
        expectation: what it is expected to be worth, where the model tells.
    """
    return Provenance(
        reference=reference,
        model=model.name,
        model_sha256=fingerprint_of(model),
        weights_sha256=model.identity.sha256,
        refiner_sha256=None if model.refiner is None else model.refiner.identity.sha256,
        fusion=None if model.fusion is None else model.fusion.name,
        device="cpu" if model.runtime is None else model.runtime.device,
        confidence=confidence,
        expected=None if expectation is None else expectation.to_json(),
    )
