"""Many subjects, one model: isolation, resume, parts, a clean end on SIGTERM, and a record of what was done."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from app import __version__
from app.cases import Case, Plan, plan, scan
from app.config import RunConfig
from app.constants import Modality
from app.errors import ExitCode, NothingToDo, OutputError, TetradError, UsageError, VolumeError
from app.files import save_bytes
from app.pipeline import Model, Synthesizer, load_inputs, remarks, synthesize_case
from app.report.run import write_run_report
from app.volume import Volume, encode_image, load_volume, read_grid

log = logging.getLogger(__name__)

Status = Literal["made", "kept", "complete", "failed"]


@dataclass
class Outcome:
    """What became of one subject.

    Attributes:
        status: `made` (now), `kept` (a good output was there), `complete` (nothing lacked), `failed`.
        outputs: per sequence made: path, sha256, model, weights sha256, device.
        error: why it failed.
    """

    subject: str
    status: Status
    inputs: dict[Modality, str] = field(default_factory=dict)
    lacked: tuple[Modality, ...] = ()
    outputs: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    error: str | None = None
    seconds: float = 0.0

    def sentence(self) -> str:
        """One line for a person."""
        if self.status == "complete":
            return f"{self.subject}: has all four sequences, passed over"
        if self.status == "failed":
            return f"{self.subject}: FAILED: {self.error}"
        names = ", ".join(o["target"] for o in self.outputs)
        if self.status == "kept":
            return f"{self.subject}: {names} is there already, kept (--overwrite makes it again)"
        models = ", ".join(dict.fromkeys(o["model"] for o in self.outputs))
        return f"{self.subject}: {names} made from {', '.join(self.inputs)} in {self.seconds:.1f} s ({models})"


@dataclass
class Summary:
    """A whole run."""

    outcomes: list[Outcome]
    notes: tuple[str, ...]
    signal_number: int | None = None
    stopped: bool = False
    report_failed: bool = False

    def count(self, status: Status) -> int:
        """How many subjects ended so."""
        return sum(o.status == status for o in self.outcomes)


class Interrupted(BaseException):
    """SIGTERM or SIGINT arrived; raised where nothing is half done."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class _Interrupts:
    """Turns SIGTERM and SIGINT into `Interrupted`, but not inside `shielded()`."""

    def __init__(self) -> None:
        self._shielded = False
        self._pending: int | None = None

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        previous = {}
        # Python allows handlers in the main thread only; elsewhere the caller's stay.
        with contextlib.suppress(ValueError):
            for number in (signal.SIGTERM, signal.SIGINT):
                previous[number] = signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def shielded(self) -> Iterator[None]:
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False
        if self._pending is not None:
            raise Interrupted(self._pending)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._shielded:
            self._pending = number
        else:
            raise Interrupted(number)


def exit_code_of(summary: Summary) -> int:
    """The one place where a run's exit code is decided: pessimistic, success comes last."""
    if summary.signal_number is not None:
        return 128 + summary.signal_number
    if summary.stopped or summary.report_failed or summary.count("failed"):
        return ExitCode.SUBJECT_FAILED
    return ExitCode.OK


def run(config: RunConfig) -> Summary:
    """Makes what the subjects of `config.input_dir` lack.

    Raises:
        UsageError: a folder cannot be used.
        NothingToDo: no subject lacks anything.
        WeightsError, DeviceError: the model cannot be loaded.
    """
    _check_folders(config)
    started = datetime.now(UTC)
    found = scan(config.input_dir, exclude=[config.output_dir, *filter(None, [config.report_dir])])
    for note in found.notes:
        log.warning("%s", note)
    cases = found.cases[config.part_id :: config.num_parts]
    _require_work(found.cases, config)
    if config.num_parts > 1:
        log.info("Part %d of %d: %d of %d subjects.", config.part_id, config.num_parts, len(cases), len(found.cases))
    worker = _Worker(config)
    summary = Summary([], found.notes)
    try:
        with worker.interrupts.installed():
            _run_all(cases, worker, summary)
    except Interrupted as interruption:
        summary.signal_number = interruption.number
        log.error("%s: stopped cleanly; run again to do the rest.", interruption)
    finally:
        if config.report_dir is not None:
            _write_record(config, summary, worker, started)
    counts = [summary.count("made"), summary.count("kept"), summary.count("complete"), summary.count("failed")]
    log.info("Done: %d made, %d kept, %d complete, %d failed.", *counts)
    return summary


def _run_all(cases: Sequence[Case], worker: _Worker, summary: Summary) -> None:
    on_terminal = sys.stderr.isatty()
    with logging_redirect_tqdm() if on_terminal else contextlib.nullcontext():
        _run_each(tqdm(cases, unit="subject", disable=not on_terminal), len(cases), worker, summary)


def _run_each(cases: Iterable[Case], count: int, worker: _Worker, summary: Summary) -> None:
    for case in cases:
        outcome = worker.process(case)
        summary.outcomes.append(outcome)
        say: Callable[..., None] = log.error if outcome.status == "failed" else log.info
        for warning in outcome.warnings:
            log.warning("%s", warning)
        say("[%d/%d] %s", len(summary.outcomes), count, outcome.sentence())
        if outcome.status == "failed" and worker.config.on_error == "stop":
            summary.stopped = True
            log.error("Stopped at the first failure (--on-error stop).")
            return


class _Worker:
    """Does one subject after another with one model, loaded at once."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.interrupts = _Interrupts()
        # A device or a model that is not there must be known before an hour of work, and when all is kept.
        self.synthesizer = Synthesizer(
            config.model,
            weights=config.weights_dir,
            device=config.device,
            backend=config.backend,
            precision=config.precision,
            batch_size=config.batch_size,
        )
        model = self.synthesizer.model
        if model.runtime is not None:
            log.info("Model %s: %s.", model.entry.name, model.runtime)
        else:
            log.info("Model %s: numpy on cpu in fp32 (a voxel-wise regression needs no more).", model.entry.name)

    def process(self, case: Case) -> Outcome:
        """One subject, whatever happens; only a signal gets through."""
        began = time.monotonic()
        outcome = Outcome(case.subject, "failed")
        try:
            self._process(case, outcome)
        except TetradError as error:
            outcome.error = str(error)
        except Exception as error:
            outcome.error = f"unexpected {type(error).__name__}: {error}; please report it with the file concerned."
            log.debug("%s", case.subject, exc_info=True)
        outcome.seconds = round(time.monotonic() - began, 3)
        return outcome

    def _process(self, case: Case, outcome: Outcome) -> None:
        config = self.config
        first = plan(case, config.on_error, config.complete_all)
        outcome.lacked = first.targets
        if not first.targets:
            outcome.status = "complete"
            return
        kept = [] if config.overwrite else self._good_outputs(case, first)
        if len(kept) == len(first.targets):
            outcome.outputs = kept
            outcome.status = "kept"
            return
        case, todo, volumes = load_inputs(case, config.on_error, config.complete_all)
        outcome.warnings.extend(todo.warnings)
        outcome.lacked = todo.targets
        outcome.warnings.extend(remarks(volumes))
        outcome.inputs = {m: str(case.files[m]) for m in todo.inputs}
        for target in todo.targets:
            outcome.outputs.append(self._make(case.subject, target, todo, volumes, outcome.warnings))
        outcome.status = "made"

    def _make(
        self, subject: str, target: Modality, todo: Plan, volumes: dict[Modality, Volume], warnings: list[str]
    ) -> dict[str, Any]:
        model = self.synthesizer.fallback if todo.fallback else self.synthesizer.model
        reference = todo.reference_of(target)
        if todo.fallback:
            warnings.append(f"{subject}: {target} is made by the fallback ({model.entry.name}) from what can be read.")
        try:
            image = synthesize_case(volumes, target, reference, model)
        except Exception as error:
            fallback = self._fallback_for(model)
            if fallback is None:
                raise
            warnings.append(
                f"{subject}: {model.entry.name} could not make {target} ({error}); "
                f"the fallback ({fallback.entry.name}) made it instead."
            )
            model = fallback
            image = synthesize_case(volumes, target, reference, model)
        path = self._output_path(subject, target)
        content = encode_image(image)
        with self.interrupts.shielded():
            save_bytes(content, path)
        return {
            "target": target,
            "path": str(path),
            "sha256": hashlib.sha256(content).hexdigest(),
            "reference": reference,
            "model": model.entry.name,
            "weights_sha256": model.entry.sha256,
            "device": "cpu" if model.runtime is None else model.runtime.device,
        }

    def _fallback_for(self, model: Model) -> Model | None:
        if self.config.on_error != "fallback" or model.entry.kind == "regression":
            return None
        return self.synthesizer.fallback

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
                if not todo.fallback and f", {self.synthesizer.stand_in} " in origin:
                    # The network broke on it; perhaps it does not now.
                    continue
                good.append({"target": target, "path": str(path), "sha256": _sha256(path), "origin": origin})
            except VolumeError as error:
                log.warning("%s It is made again.", error)
        return good


def _check_folders(config: RunConfig) -> None:
    source, output = config.input_dir.resolve(), config.output_dir.resolve()
    if source == output:
        raise UsageError(f"the output {config.output_dir} is the input folder; give another one.")
    if config.report_dir is not None:
        report = config.report_dir.resolve()
        if report == output or output in report.parents:
            raise UsageError(f"the report folder {config.report_dir} lies in the output, which holds images only.")
    for folder in filter(None, [config.output_dir, config.report_dir]):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{folder} cannot be made ({error.strerror}); choose another folder.") from None
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            raise UsageError(f"{folder} may not be written to by user {os.geteuid()}; make it writable.")


def _require_work(cases: Sequence[Case], config: RunConfig) -> None:
    if not cases:
        raise NothingToDo(
            f"{config.input_dir} holds no subject; "
            "expected files such as <ID>/<ID>-t1n.nii.gz, <ID>_flair.nii.gz or a BIDS tree."
        )
    if all(c.problem is None and not c.absent and not c.empty and not c.faults for c in cases):
        raise NothingToDo(f"all {len(cases)} subjects of {config.input_dir} have the four sequences; nothing to make.")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write_record(config: RunConfig, summary: Summary, worker: _Worker, started: datetime) -> None:
    model = worker.synthesizer.model
    record = {
        "tetrad": __version__,
        "python": platform.python_version(),
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "exit_code": int(exit_code_of(summary)),
        "config": config.to_json(),
        "model": {"name": model.entry.name, "sha256": model.entry.sha256},
        "runtime": "numpy on cpu" if model.runtime is None else str(model.runtime),
        "notes": list(summary.notes),
        "subjects": [vars(o) for o in summary.outcomes],
    }
    assert config.report_dir is not None
    part = f"-part{config.part_id}of{config.num_parts}" if config.num_parts > 1 else ""
    path = config.report_dir / f"tetrad-run{part}.json"
    try:
        save_bytes((json.dumps(record, indent=2) + "\n").encode(), path)
        if summary.signal_number is None:
            # Drawing takes time that a process told to end does not have.
            write_run_report(record, path.with_suffix(".html"))
    except OutputError as error:
        log.error("%s", error)
        summary.report_failed = True
        return
    log.info("Run record and report: %s, .html", path)
