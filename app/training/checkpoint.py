"""The whole state of a run in one file, written whole or not at all.

Random numbers need no state of their own: those of step k are seeded by k (see `app.training.data.slices`). So the step
is the position in the data, in the schedule and in every random sequence.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from app.core.atomic_io import save_bytes
from app.core.errors import UsageError
from app.registry.identity import Identity
from app.registry.lineage import Lineage, ModelScores, TrainingRecord
from app.registry.spec import FirstStage
from app.training.config import Recipe, recipe_from_json

LAST, BEST = "last.pt", "best.pt"
_SCHEMA = 3
#: What torch lets through of a damaged file.
_DAMAGE = (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError)


@dataclass
class State:
    """Where a run stands.

    Attributes:
        recipe: what it follows.
        step: updates done; minutes: of training, over all resumptions.
        networks, average, optimizers: torch's state dicts.
        task_state: what the task keeps beside its weights (`app.training.tasks.base.Task.task_state`).
        best: score of the best validation so far; None before the first.
        pieces: parts into which batches are cut for memory.
        processes: how many shared each step.
        subjects: names trained on; held_out: names kept for validation.
        unpaired: names of those trained on that lacked the sequence which the others teach.
        simulated: names of the simulated exams among those trained on.
        simulated_from: names of the patients whose lesions and brains these have, or who taught what made them.
        started_from: the model that it started from; None for random weights.
        first_stage: the generator that a refiner is taught behind; None for other tasks.
        teacher: the frozen segmenter; None where none teaches.
        lineage: trainings of these three models and of all that they were made from.
        validated: names of the subjects that `best` is of; None before the first validation.
        start_share: of `started_from` in `average`, where they were mixed for an export.
    """

    recipe: Recipe
    step: int = 0
    minutes: float = 0.0
    networks: dict[str, Any] = field(default_factory=dict)
    average: dict[str, Any] = field(default_factory=dict)
    optimizers: dict[str, Any] = field(default_factory=dict)
    task_state: dict[str, float] = field(default_factory=dict)
    best: float | None = None
    pieces: int = 1
    processes: int = 1
    subjects: list[str] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)
    unpaired: list[str] = field(default_factory=list)
    simulated: list[str] = field(default_factory=list)
    simulated_from: list[str] = field(default_factory=list)
    started_from: Identity | None = None
    first_stage: FirstStage | None = None
    teacher: Identity | None = None
    lineage: Lineage = field(default_factory=Lineage)
    validated: list[str] | None = None
    start_share: float | None = None

    @property
    def rounded_average(self) -> dict[str, Tensor]:
        """The averaged weights as they are published: half the size.

        The rounding is below that of the bfloat16 in which most machines run them.
        """
        return {k: v.half() for k, v in self.average.items()}

    @property
    def seen(self) -> list[str]:
        """Names of all that were trained on, whatever they lacked, and of whom simulated exams are made."""
        both = [*self.subjects, *self.unpaired]
        return [*both, *(name for name in self.simulated_from if name not in both)]

    def load_into(self, network: nn.Module) -> None:
        """Give a network the weights that a user's machine will load.

        So the network that is scored is the one that is written.
        """
        network.load_state_dict({k: v.float() for k, v in self.rounded_average.items()})

    def record(self, name: str, scores: ModelScores | None) -> TrainingRecord:
        """Give what a lineage keeps of the training of a model.

        Args:
            name: of the model.
        """
        return TrainingRecord(
            model=name,
            task=self.recipe.task,
            recipe=self.recipe.changes(),
            subjects=tuple(self.seen),
            seed=self.recipe.seed,
            steps=self.step,
            slices=self.step * self.recipe.schedule.batch_size * self.processes,
            minutes=round(self.minutes, 1),
            started_from=None if self.started_from is None else self.started_from.sha256,
            first_stage=None if self.first_stage is None else self.first_stage.sha256,
            teacher=None if self.teacher is None else self.teacher.sha256,
            start_share=self.start_share,
            scores=scores,
        )


def save_state(state: State, path: Path) -> None:
    """Write a checkpoint.

    Raises:
        OutputError: it cannot be written; the one before is still there.
    """
    form = {**vars(state), "recipe": state.recipe.to_json(), "schema": _SCHEMA}
    form["lineage"] = state.lineage.to_json()
    for name in ("started_from", "teacher"):
        form[name] = None if form[name] is None else asdict(form[name])
    form["first_stage"] = None if state.first_stage is None else state.first_stage.model_dump()
    buffer = io.BytesIO()
    torch.save(form, buffer)
    save_bytes(buffer.getvalue(), path)


def load_state(path: Path) -> State:
    """Read a checkpoint.

    Only plain values and tensors are accepted, nothing is executed.

    Raises:
        UsageError: it is missing, damaged or of another version.
    """
    try:
        form = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); give the folder of a run.") from None
    except _DAMAGE as error:
        reason = (str(error).splitlines() or [""])[0][:100] or type(error).__name__
        raise UsageError(f"{path} is no checkpoint ({reason}); start the run again.") from None
    if not isinstance(form, dict) or form.pop("schema", None) != _SCHEMA:
        raise UsageError(f"{path} is a checkpoint of another version of Tetrad; start the run again.")
    needed, known = {"recipe", "networks", "average", "optimizers"}, {f.name for f in fields(State)}
    if not needed <= form.keys() <= known:
        raise UsageError(f"{path} is no whole checkpoint; start the run again.")
    form["recipe"] = recipe_from_json(form["recipe"], str(path))
    try:
        form["lineage"] = Lineage.from_json(form["lineage"])
        for name, kind in (("started_from", Identity), ("teacher", Identity), ("first_stage", FirstStage)):
            form[name] = None if form[name] is None else kind(**form[name])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UsageError(f"{path} is no whole checkpoint; start the run again.") from None
    return State(**form)
