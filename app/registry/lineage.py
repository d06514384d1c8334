"""What models learnt from: one flat record per training, each once, beside the manifest (`lineage.json`).

No run needs it. Training and export do: nobody may be scored on who taught a model or any that it was made from, and a
new model is compared with the scores of the one that it would replace.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import Field, ValidationError

from app.core.constants import MODALITIES, Modality
from app.core.errors import WeightsError
from app.registry.plain_files import read_json
from app.registry.spec import Strict

LINEAGE: Final = "lineage.json"
_SCHEMA: Final = 1


class ModelScores(Strict):
    """Mean scores of a model on subjects that it had not seen.

    Attributes:
        subjects: their names.
        mean: per metric, over all volumes.
        by_target: the same per sequence that it makes.
        unrefined: `mean` of the first stage alone; of refiners only.
    """

    subjects: tuple[str, ...]
    mean: dict[str, float]
    by_target: dict[Modality, dict[str, float]] = Field(default_factory=dict)
    unrefined: dict[str, float] | None = None


class TrainingRecord(Strict):
    """One training, and what it gave.

    Attributes:
        model: name of the model that it gave.
        task: what was trained; None where nothing was (an import, a fit).
        recipe: what the recipe said otherwise than the defaults of its task.
        subjects: names of the subjects that it learnt from.
        steps, slices: updates, and slices or patches shown.
        minutes: of training.
        started_from, first_stage, teacher: checksums of the weights that it began with, of the generator that it
            refines, and of the frozen segmenter that taught it.
        start_share: how much of the weights is `started_from`'s, where they were mixed after the training.
        source: the public checkpoint that was imported.
        scores: of the result.
    """

    model: str
    task: str | None = None
    recipe: dict[str, Any] = Field(default_factory=dict)
    subjects: tuple[str, ...] = ()
    seed: int | None = None
    steps: int | None = None
    slices: int | None = None
    minutes: float | None = None
    started_from: str | None = None
    first_stage: str | None = None
    teacher: str | None = None
    start_share: float | None = None
    source: dict[str, str] | None = None
    scores: ModelScores | None = None

    @property
    def parents(self) -> tuple[str, ...]:
        """Checksums of the weights that it was made from."""
        return tuple(p for p in (self.started_from, self.first_stage, self.teacher) if p is not None)


class Lineage(Strict):
    """Trainings by the checksum of the weights that they gave."""

    trainings: dict[str, TrainingRecord] = Field(default_factory=dict)

    def ancestry(self, sha256s: Iterable[str]) -> Lineage:
        """Give those weights' records with all that they were made from, as far as they are known."""
        pending, records = list(sha256s), dict[str, TrainingRecord]()
        while pending:
            sha256 = pending.pop()
            if sha256 in self.trainings and sha256 not in records:
                records[sha256] = self.trainings[sha256]
                pending.extend(records[sha256].parents)
        return Lineage(trainings=records)

    @property
    def subjects(self) -> set[str]:
        """Names of all subjects that any of its trainings learnt from."""
        return {name for record in self.trainings.values() for name in record.subjects}

    def joined(self, other: Lineage) -> Lineage:
        """Give both; where both know a training, `other` counts."""
        return Lineage(trainings={**self.trainings, **other.trainings})

    def scores_of(self, sha256: str) -> ModelScores | None:
        """Give the scores of those weights, if they are known."""
        record = self.trainings.get(sha256)
        return None if record is None else record.scores

    def to_json(self) -> dict[str, Any]:
        """Give plain values, every list of subjects once; `from_json` is the inverse."""
        lists: dict[str, list[str]] = {}
        form: dict[str, Any] = {"schema": _SCHEMA, "subject_lists": lists, "trainings": {}}
        for sha256, record in self.trainings.items():
            values = record.model_dump(mode="json", exclude_defaults=True)
            values["subjects"] = _listed(record.subjects, lists)
            if record.scores is not None:
                values["scores"]["subjects"] = _listed(record.scores.subjects, lists)
            form["trainings"][sha256] = values
        return form

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> Lineage:
        """Read what `to_json` gave.

        Raises:
            ValueError: it is of another schema, or damaged.
        """
        if form.get("schema") != _SCHEMA:
            raise ValueError(f"schema {form.get('schema')} is not {_SCHEMA}")
        lists, trainings = form["subject_lists"], {}
        for sha256, stated in form["trainings"].items():
            values = {**stated, "subjects": lists[stated["subjects"]]}
            if "scores" in values:
                values["scores"] = {**values["scores"], "subjects": lists[values["scores"]["subjects"]]}
            trainings[sha256] = TrainingRecord.model_validate(values)
        return cls(trainings=trainings)


def read_lineage(folder: Path) -> Lineage:
    """Read `lineage.json`; empty where a folder has none.

    Raises:
        WeightsError: it is damaged or of a later schema.
    """
    path = folder / LINEAGE
    try:
        return Lineage.from_json(read_json(path, folder))
    except FileNotFoundError:
        return Lineage()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}); put the weights back in place.") from None
    except (ValidationError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise WeightsError(f"{path} is damaged or of a later version ({reason}); fetch it again.") from None


def trained_targets(record: TrainingRecord) -> tuple[Modality, ...] | None:
    """Give the sequences that a generator was trained to make; None where the record does not tell."""
    data = record.recipe.get("data", {})
    if record.task != "synthesis" or not isinstance(data, dict):
        return None
    stated = data.get("targets", MODALITIES)
    return tuple(m for m in MODALITIES if m in stated)


def _listed(names: Iterable[str], lists: dict[str, list[str]]) -> str:
    """Add a list of names to `lists` once; its key there."""
    content = list(names)
    key = f"{len(content)}-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]}"
    lists[key] = content
    return key
