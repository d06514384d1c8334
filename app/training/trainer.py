"""The training loop: from a recipe and subjects to checkpoints, logs and pictures."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from app.core.constants import Modality
from app.core.errors import CaseError, UsageError
from app.core.signals import Interrupted, SignalGuard
from app.inference.backends import is_memory_error
from app.registry.identity import Identity
from app.registry.lineage import Lineage, read_lineage
from app.registry.manifest import Entry
from app.training.checkpoint import BEST, LAST, State, save_state
from app.training.config import Recipe
from app.training.data.cache import CachedSubject, build_cache
from app.training.data.simulated import check_simulated, open_simulated
from app.training.data.splits import split, validation_cases
from app.training.data.unpaired import check_unpaired
from app.training.distributed import Processes, processes
from app.training.logger import RunLog
from app.training.optimization import learning_rate, new_optimizer
from app.training.progress import TrainingProgress
from app.training.run_directory import alone, previous_state
from app.training.tasks.base import TrainingContext, lineage_of, task_of

log = logging.getLogger(__name__)

#: Updates in a row whose gradients are not finite before a run is given up.
MAX_SKIPPED = 20
#: Of a validation, what is said.
_SHOWN = {"official_healthy", "official_tumour", "ssim_brain", "psnr_brain", "dice_WT", "dice_TC", "dice_ET"}
#: Longest time without a checkpoint; an epoch of a thousand subjects may take hours.
_SAVE_MINUTES = 10.0


@dataclass(frozen=True)
class TrainingPaths:
    """Where a run reads and writes.

    Attributes:
        data: folder of complete subjects to train on.
        run: gets checkpoints, logs and pictures.
        cache: prepared arrays; `<run>/cache` if not given.
        validation: folder of complete subjects to validate on, instead of those held out of `data`.
        unpaired: folder of exams that lack a sequence; for tasks that learn from them too.
        simulated: folder of simulated exams that are mixed in.
    """

    data: Path
    run: Path
    cache: Path | None = None
    validation: Path | None = None
    unpaired: Path | None = None
    simulated: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """End of a run: where it stands, and the signal that stopped it, if one did."""

    state: State
    signal_number: int | None = None


def train(
    recipe: Recipe,
    paths: TrainingPaths,
    *,
    device: str = "cpu",
    resume: bool = False,
    segmenter: Entry | None = None,
    start: Entry | None = None,
    stage_one: Entry | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Train until the recipe's steps or minutes are over, or a signal comes.

    The whole state is saved either way.

    Args:
        device: `cpu`, `cuda` or `cuda:N`.
        resume: go on from the run folder's last checkpoint.
        segmenter: the frozen segmenter; needed by the Tversky loss and the refiner's Dice loss.
        start: a model of the recipe's kind whose weights a new run starts from, instead of random ones.
        stage_one: the generator whose volumes a refiner learns to correct; needed by the task `refinement`.
        clock: seconds that the time budget counts.

    Raises:
        UsageError: the data, the recipe or the run folder cannot be used.
        CaseError: not even one slice fits into memory, or the gradients stay not finite.
    """
    with processes(device) as group:
        if not group.first:
            logging.getLogger("app").setLevel(logging.WARNING)
        # On a processor two runs of one seed are equal. On a GPU cuDNN's part of them is; some gradients (of reflected
        # borders) add up in any order there.
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        # As in use (`app.inference.backends`), and so before and after a validation.
        torch.backends.cudnn.allow_tf32 = False
        with alone(paths.run, group, resume):
            return _Run(recipe, paths, group, resume, segmenter, start, stage_one).go(clock)


class _Run:
    """One run from its start, or from where it stood, to its end."""

    def __init__(
        self,
        recipe: Recipe,
        paths: TrainingPaths,
        group: Processes,
        resume: bool,
        segmenter: Entry | None,
        start: Entry | None,
        stage_one: Entry | None,
    ) -> None:
        self.recipe, self.paths, self.group = recipe, paths, group
        before = previous_state(paths.run, recipe, group.count, resume)
        # What is seen at once is said before hours of preparing.
        if paths.validation is not None and not paths.validation.is_dir():
            raise UsageError(f"--validation {paths.validation} does not exist.")
        kind = task_of(recipe)
        if before is None:
            kind.check_start(recipe, start)
        left_out = check_unpaired(paths.unpaired, paths.data, paths.validation, kind.withheld(recipe))
        check_simulated(paths.simulated, recipe, kind)
        subjects = kind.choose(recipe, self._subjects())
        self.training, held_out = split(subjects, recipe.data.held_out, recipe.seed)
        self.training = kind.usable(self.training)
        unpaired = [s for s in self._unpaired(kind.withheld(recipe)) if s.name not in left_out]
        simulated = open_simulated(paths.simulated, paths.cache or paths.run / "cache", recipe, group)
        drawn = [*self.training, *simulated.subjects]
        context = TrainingContext(recipe, drawn, paths.data, group, segmenter, stage_one, before, unpaired)
        self.task = kind.open(context)
        self.source: Any = self.task.new_source(context)
        teacher = segmenter if kind.teaching_loss(recipe) else None
        if start is not None and before is None:
            self.task.load_initial_weights(start)
        self.optimizers = {name: new_optimizer(n, recipe.optimizer) for name, n in self.task.networks.items()}
        names = [s.name for s in self.training]
        sources = {
            "started_from": start,
            "first_stage": stage_one if kind.needs_stage_one else None,
            "teacher": teacher,
        }
        others = [s.name for s in unpaired]
        self.state = before or self._new_state(names, held_out, others, sources)
        if before is not None:
            self._restore(before, names, others, None if teacher is None else teacher.identity)
        simulated.note_in(self.state, before is not None, paths.run)
        # Looked for before the first step, not after hours.
        self.cases, self.masks = validation_cases(
            paths.data, paths.validation, recipe.schedule, self.state, say=group.first
        )
        self.skipped: dict[str, int] = {}
        # Whether weights moved in this step, and since the last checkpoint.
        self.ended, self.updated, self.moved = -1, False, False
        self.epoch_steps = recipe.schedule.epoch_steps or max(
            1, self.source.sampler.count // (recipe.schedule.batch_size * group.count)
        )

    # ------------------------------------------------------------ preparing

    def _subjects(self) -> list[CachedSubject]:
        cache, scheme = self.paths.cache or self.paths.run / "cache", self.recipe.normalization.build()
        with self.group.first_alone() as chosen:
            subjects = build_cache(self.paths.data, cache, scheme) if chosen else []
        return subjects or build_cache(self.paths.data, cache, scheme)

    def _unpaired(self, withheld: Modality | None) -> list[CachedSubject]:
        """Prepare the exams that lack a sequence, beside the complete ones."""
        folder = self.paths.unpaired
        if folder is None:
            return []
        cache = (self.paths.cache or self.paths.run / "cache") / f"unpaired-{withheld}"
        scheme = self.recipe.normalization.build()
        with self.group.first_alone() as chosen:
            subjects = build_cache(folder, cache, scheme, withheld) if chosen else []
        return subjects or build_cache(folder, cache, scheme, withheld)

    def _new_state(
        self, subjects: list[str], held_out: list[str], unpaired: list[str], sources: Mapping[str, Entry | None]
    ) -> State:
        """The state of a run that begins, with the models that it is made from."""
        lineage = Lineage()
        for entry in sources.values():
            lineage = lineage if entry is None else lineage.joined(lineage_of(entry))
        if (first := self.task.first_stage) is not None and first.specialists and sources["first_stage"] is not None:
            known = read_lineage(sources["first_stage"].folder)
            lineage = lineage.joined(known.ancestry(first.specialists.values()))
        start, teacher = (None if (e := sources[k]) is None else e.identity for k in ("started_from", "teacher"))
        return State(
            self.recipe,
            subjects=subjects,
            held_out=held_out,
            unpaired=unpaired,
            started_from=start,
            first_stage=self.task.first_stage,
            teacher=teacher,
            lineage=lineage,
            processes=self.group.count,
        )

    def _restore(self, before: State, names: list[str], unpaired: list[str], teacher: Identity | None) -> None:
        if before.subjects != names:
            raise UsageError(f"{self.paths.run} was trained on other subjects than {self.paths.data} holds now.")
        if before.unpaired != unpaired:
            raise UsageError(f"{self.paths.run} was trained on other exams of --unpaired; resume with the same folder.")
        now, then = (("none", "") if one is None else (one.name, one.sha256) for one in (teacher, before.teacher))
        if now[1] != then[1]:
            raise UsageError(
                f"{self.paths.run} was taught by another segmenter than {now[0]!r} ({then[0]!r}); "
                "give the same one with --segmenter."
            )
        for name, network in self.task.networks.items():
            network.load_state_dict(before.networks[name])
            self.optimizers[name].load_state_dict(before.optimizers[name])
        self.task.average.load_state_dict(before.average)
        if before.task_state:
            self.task.restore_task_state(before.task_state)

    # ------------------------------------------------------------ running

    def go(self, clock: Callable[[], float]) -> Outcome:
        """Run steps and epochs to the end.

        A signal waits for the end of its step and for the checkpoint.
        """
        signals, number = SignalGuard(), 0
        log_of_run = closing(RunLog(self.paths.run, self.state.step)) if self.group.first else nullcontext()
        with log_of_run as board:
            try:
                with signals.installed(), signals.shielded():
                    number = self._train(board, TrainingProgress(self.state, self.recipe, self.group, clock), signals)
            except Interrupted as interruption:
                # One that came to this process alone, after the others had ended by themselves.
                number = number or interruption.number
        return Outcome(self.state, number or None)

    def _train(self, board: RunLog | None, progress: TrainingProgress, signals: SignalGuard) -> int:
        """The steps; returns the signal that ended them on whichever process, or 0."""
        stopped, every = 0, self.recipe.schedule.validate_every
        with progress.bar(self.group.first) as bar:
            share, saved = progress.share(), self.state.minutes
            while share < 1 and not (stopped := self.group.largest(signals.waiting)):
                progress.add(self._step(share))
                share = progress.share()
                bar.update(100 * share - bar.n)
                if self.state.step % self.epoch_steps == 0:
                    epoch = self.state.step // self.epoch_steps
                    validate = share >= 1 or (every > 0 and epoch % every == 0)
                    self._end_epoch(board, progress, bar, validate, over=share >= 1)
                    saved = self.state.minutes
                elif progress.due():
                    progress.report(board, bar)
                    if board is not None and self.state.minutes - saved >= _SAVE_MINUTES:
                        self._save_last()
                        saved = self.state.minutes
                        progress.restart()
            self._end_epoch(board, progress, bar, validate=share >= 1, over=True)
        return stopped

    def _step(self, progress: float) -> dict[str, Tensor]:
        state = self.state
        self.task.progress = progress
        rate = learning_rate(self.recipe.optimizer, self.recipe.schedule, self.task.stage_progress, self.group.count)
        self.updated = False
        while True:
            # Dropout too must not depend on what ran before this step.
            torch.manual_seed(hash((self.recipe.seed, state.step, self.group.rank)) % 2**31)
            try:
                losses = self.task.step(self.source, state.step, state.pieces, lambda name: self._update(name, rate))
                break
            except RuntimeError as error:
                self._make_room(error)
        if self.task.task_state:
            # Each process has seen other slices; what they go by must be one thing.
            self.task.restore_task_state({k: self.group.agree(v) for k, v in self.task.task_state.items()})
        self._average()
        state.step += 1
        return losses

    def _update(self, name: str, rate: float) -> bool:
        """Moves one network by its gradients, unless they are not finite."""
        recipe, network = self.recipe.optimizer, self.task.networks[name]
        # From here on the step cannot be done again: weights move, and other processes have gone on.
        self.updated = True
        self.group.average_gradients(p for p in network.parameters() if p.requires_grad)
        norm = nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
        if not torch.isfinite(norm):
            self.skipped[name] = self.skipped.get(name, 0) + 1
            log.warning("Step %d: the gradient of the %s is not finite; the update is skipped.", self.state.step, name)
            if self.skipped[name] >= MAX_SKIPPED:
                # A checkpoint of these very weights would meet the same gradients.
                there = self.moved and (self.paths.run / LAST).exists()
                again = "go on from its last checkpoint with --resume" if there else "start again, with another --run"
                raise CaseError(
                    f"{MAX_SKIPPED} updates of the {name} in a row had gradients that are not finite, at step "
                    f"{self.state.step} of {self.paths.run}; {again} and a lower --set optimizer.learning_rate."
                )
            return False
        self.skipped[name], self.moved = 0, True
        for group in self.optimizers[name].param_groups:
            group["lr"] = rate * self.task.rate_factor(name)
        self.optimizers[name].step()
        return True

    def _make_room(self, error: RuntimeError) -> None:
        """Cuts batches into more pieces after memory ran out; another error goes on."""
        if not is_memory_error(error):
            raise error
        if self.updated:
            raise CaseError(
                f"memory ran out while weights were updated, at step {self.state.step} of {self.paths.run}; "
                "start a run with a smaller schedule.batch_size or preset."
            ) from None
        if self.state.pieces >= self.recipe.schedule.batch_size:
            raise CaseError("not even one slice fits into memory; use a smaller preset or another --device.") from None
        if self.group.device.type == "cuda":
            torch.cuda.empty_cache()
        self.state.pieces = min(2 * self.state.pieces, self.recipe.schedule.batch_size)
        log.warning("Memory ran out: batches are now cut into %d pieces.", self.state.pieces)

    @torch.no_grad()
    def _average(self) -> None:
        # Early on the average must not be dominated by the random start.
        keep = min(self.recipe.optimizer.ema, (1 + self.state.step) / (10 + self.state.step))
        learner = next(iter(self.task.networks.values()))
        for mean, value in zip(self.task.average.parameters(), learner.parameters(), strict=True):
            mean.lerp_(value, 1 - keep)

    # ------------------------------------------------------------ epochs

    def _end_epoch(
        self, board: RunLog | None, progress: TrainingProgress, bar: Any, validate: bool, *, over: bool
    ) -> None:
        """Saves, draws, validates; the first process does, the others wait."""
        if self.ended == self.state.step:
            return
        self.ended = self.state.step
        progress.report(board, bar)
        if board is not None:
            self._save_last(over)
            board.picture(
                self.task.pictures(self.source.sampler),
                self.paths.run / "samples" / f"step-{self.state.step:07d}.png",
                self.state.step,
            )
            if validate and (scores := self._validate()):
                board.write(self.state.step, self.state.minutes, {f"val_{k}": v for k, v in scores.items()})
                self._keep_if_best(scores, over)
        self.group.wait()
        progress.restart()

    def _save_last(self, over: bool = False) -> None:
        """Saves, unless the last update was skipped: the weights may be broken already.

        A run that is then given up can go on from before. `over`: the end, where the state counts as it is.
        """
        if over or not any(self.skipped.values()):
            self._save(LAST)

    def _save(self, name: str) -> None:
        """Saves the whole state; where weights are broken, what was saved before stays."""
        state = self.state
        values = (p for network in self.task.networks.values() for p in network.parameters())
        if not all(bool(torch.isfinite(p).all()) for p in values):
            log.warning("Step %d: weights are not finite; %s is left as it was.", state.step, self.paths.run / name)
            return
        state.networks = {n: network.state_dict() for n, network in self.task.networks.items()}
        state.optimizers = {n: optimizer.state_dict() for n, optimizer in self.optimizers.items()}
        state.average = self.task.average.state_dict()
        state.task_state = dict(self.task.task_state)
        save_state(state, self.paths.run / name)
        self.moved = False

    def _keep_if_best(self, scores: Mapping[str, float], over: bool) -> None:
        score = self.task.selection_score(scores)
        log.info("validation at step %d: %s", self.state.step,
                 ", ".join(f"{k} {v:.4f}" for k, v in scores.items() if k in _SHOWN))  # fmt: skip
        if self.state.best is None or score > self.state.best:
            self.state.best = score
            self._save(BEST)
        self._save_last(over)

    def _validate(self) -> dict[str, float]:
        if not self.cases:
            return {}
        self.state.validated = [c.subject for c in self.cases]
        return self.task.validate(self.cases, self.masks)
