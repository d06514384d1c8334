"""What is asked for of a run's result, and the refusal of what cannot be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from app.core.constants import MODALITIES, Modality
from app.core.errors import UsageError
from app.data.cases import Case, also_in
from app.data.discovery import scan
from app.inference.device import Machine, choose_device
from app.registry.manifest import MANIFEST, read_manifest
from app.registry.spec import GeneratorSpec
from app.training.checkpoint import State
from app.training.config import Recipe, recipe_from_json

R = TypeVar("R", bound=Recipe)


@dataclass(frozen=True)
class ExportRequest:
    """What is asked for of a run's result.

    Attributes:
        run: folder of the run; state: the checkpoint of it that is taken.
        weights, name: the folder that gets the model, and the model's name.
        data, cache: what the run was trained on.
        output: values of the recipe's section `output` that are to be others.
        cases, masks: complete subjects to score on, and their segmentations; none where nothing is scored.
        make_default, specialist_of, refines, force, device: as in `app.training.export.export_run`.
    """

    run: Path
    state: State
    weights: Path
    name: str
    data: Path
    cache: Path
    output: Mapping[str, Any] = field(default_factory=dict)
    cases: Sequence[Case] = ()
    masks: Mapping[str, Path] = field(default_factory=dict)
    make_default: bool = False
    specialist_of: str | None = None
    refines: str | None = None
    force: bool = False
    device: str = "auto"

    @property
    def torch_device(self) -> torch.device:
        """The device that scores."""
        return torch.device(choose_device(self.device, Machine.probe())[0])

    def recipe_of(self, kind: type[R]) -> R:
        """Give the run's recipe with the output that is asked for.

        Args:
            kind: its class.

        Raises:
            UsageError: a value cannot be.
        """
        recipe: Recipe = self.state.recipe
        if self.output:
            form = recipe.to_json()
            form["output"] |= self.output
            recipe = recipe_from_json(form, f"the recipe of {self.run}")
        assert isinstance(recipe, kind)
        return recipe


def scoring_cases(score_on: Path, known: Iterable[str]) -> list[Case]:
    """Give the complete subjects of a folder.

    Args:
        known: names of all who taught what is scored, or what it was made from.

    Raises:
        UsageError: one of them is among those, or there is none.
    """
    cases = [c for c in scan(score_on).cases if not c.absent]
    if both := also_in([c.subject for c in cases], set(known)):
        raise UsageError(f"{both[0]} of {score_on} was trained on; score on patients that the model has not seen.")
    if not cases:
        raise UsageError(f"{score_on} holds no complete subject to score on.")
    return cases


def check_kind(weights: Path, name: str, kind: str) -> None:
    """Refuse to put a model in the place of one that does something else.

    Raises:
        UsageError: there is one of that name.
    """
    entries = read_manifest(weights).entries if (weights / MANIFEST).exists() else {}
    if name in entries and entries[name].spec.kind != kind:
        raise UsageError(f"{name!r} of {weights} is a {entries[name].spec.kind}; give the {kind} another name.")


def check_slot(request: ExportRequest, targets: Sequence[Modality]) -> None:
    """Refuse what would leave sequences to nobody, and a specialist of what cannot have one.

    Args:
        targets: the sequences that the run's generator makes.

    Raises:
        UsageError: the default, or the only model, would not make every sequence; or one of this name makes a sequence
            that the run does not; or the request's host cannot leave it any.
    """
    weights, name, host_name = request.weights, request.name, request.specialist_of
    manifest = read_manifest(weights) if (weights / MANIFEST).exists() else None
    there = None if manifest is None else manifest.entries.get(name)
    before = there.spec.targets if there is not None and isinstance(there.spec, GeneratorSpec) else ()
    if lost := [m for m in before if m not in targets]:
        raise UsageError(f"{name!r} of {weights} makes {', '.join(lost)} and the run does not; give it another name.")
    if host_name is None:
        alone = request.make_default or manifest is None or manifest.default is None
        if len(targets) < len(MODALITIES) and alone:
            raise UsageError(
                f"the run makes {', '.join(targets)} only and cannot be the default; name the model that shall leave "
                "it to this one with --specialist-of."
            )
        return
    if len(targets) == len(MODALITIES):
        raise UsageError(_NO_SPECIALIST)
    host = read_manifest(weights).entry(host_name)
    fits = (
        isinstance(host.spec, GeneratorSpec) and host.spec.normalization == request.state.recipe.normalization.build()
    )
    if not fits or host.name == name or request.make_default:
        raise UsageError(
            f"{name!r} cannot be a specialist of {host.name!r}: name another model, one that sees scores as training "
            "does, and leave out --make-default."
        )


_NO_SPECIALIST = "a specialist makes some of the four sequences (data.targets); leave out --specialist-of."


def check_no_specialist(request: ExportRequest) -> None:
    """Refuse a specialist that makes no sequence by itself.

    Raises:
        UsageError: one is asked for.
    """
    if request.specialist_of is not None:
        raise UsageError(_NO_SPECIALIST)


def check_no_host(request: ExportRequest) -> None:
    """Refuse another model's T1c to what is no enhancer.

    Raises:
        UsageError: it is asked for.
    """
    if request.refines is not None:
        raise UsageError("an enhancer, and nothing else, is for another model's T1c: leave out --refines.")


def check_no_images(request: ExportRequest, reason: str = "a segmenter makes no images") -> None:
    """Refuse the options of models that complete exams.

    Args:
        reason: why it takes none, the beginning of the sentence.

    Raises:
        UsageError: one is given.
    """
    if request.output or request.make_default:
        raise UsageError(
            f"{reason}; leave out --contrast, --highlights, --detail, --fusion, --flip-average, --views and "
            "--make-default."
        )
