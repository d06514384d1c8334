"""The command line. Heavy packages are imported by the command that needs them, so that `check` answers at once."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from app import __version__
from app.cli.argument_types import EXIT_CODES
from app.cli.commands.check import add_check
from app.cli.commands.clinic import add_clinic
from app.cli.commands.dicom_node import add_dicom_node
from app.cli.commands.evaluate import add_average, add_baselines, add_dropout, add_evaluate
from app.cli.commands.records import add_merge_records
from app.cli.commands.segment import add_segment
from app.cli.commands.simulate import add_atlas, add_simulate, add_transplant
from app.cli.commands.synthesize import add_infer, add_synthesize
from app.cli.commands.tools import add_demo, add_info, add_phantom
from app.cli.commands.train import add_train
from app.cli.commands.weights import add_export, add_fit, add_fit_normalization, add_import, add_weights
from app.core.errors import ExitCode, TetradError
from app.core.plain_text import printable, start_log
from app.core.streams import lasting_streams

log = logging.getLogger(__name__)

_DESCRIPTION = (
    "Completes brain tumour MRI exams: finds the sequence (T1n, T1c, T2w, T2-FLAIR) that a subject lacks and makes it "
    "from the others. Without a command: synthesize --input /input --output /output."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code."""
    with lasting_streams():
        return _run(list(sys.argv[1:] if arguments is None else arguments))


def _run(given: list[str]) -> int:
    parser = build_parser()
    # `docker run IMAGE --device cpu` means synthesize, as does `docker run IMAGE`.
    if not given or (given[0].startswith("-") and given[0] not in {"-h", "--help", "--version"}):
        given.insert(0, "synthesize")
    options = parser.parse_args(given)
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal cannot show must not end the run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    start_log(logging.DEBUG if options.verbose else logging.INFO)
    try:
        code = int(options.command(options))
        sys.stdout.flush()
    except TetradError as error:
        log.error("%s", error)
        return error.exit_code
    except KeyboardInterrupt:
        # Commands with something to finish first see to it themselves (`app.core.signals`).
        log.error("Interrupted.")
        return 128 + signal.SIGINT
    except Exception as error:
        log.debug("", exc_info=True)
        return _say(error)
    return code


def _say(error: Exception) -> int:
    """Say an error of the machine, or one that nobody foresaw, in one sentence; return the exit code."""
    reason = str(error) or type(error).__name__
    if _is_lack_of_memory(error):
        log.error("The memory does not suffice (%s); give more (ulimit -v, --memory), or free some.", reason)
        return ExitCode.DEVICE
    if isinstance(error, OSError):
        what, why = error.filename or "A file", error.strerror or error
        log.error("%s cannot be used (%s); make room or give permission there, or choose another path.", what, why)
        return ExitCode.USAGE
    if isinstance(error, ImportError):
        log.error("A package cannot be loaded (%s); install Tetrad again.", reason)
        return ExitCode.USAGE
    log.error("Unexpected %s: %s; please report it with the output of --verbose.", type(error).__name__, reason)
    return ExitCode.SUBJECT_FAILED


def _is_lack_of_memory(error: Exception) -> bool:
    words = ("Cannot allocate memory", "failed to map segment", "can't start new thread")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


class _CommandParser(argparse.ArgumentParser):
    """Parse a command, and load text for the end of its help only where help is shown."""

    late_epilog: Callable[[], str] | None = None

    def error(self, message: str) -> NoReturn:
        """End with a usage error; what the caller wrote is shown, and does not act."""
        super().error(printable(message))

    def format_help(self) -> str:
        if self.late_epilog is not None:
            self.epilog = self.late_epilog()
        return super().format_help()


def build_parser() -> argparse.ArgumentParser:
    """All commands and options."""
    prog = "tetrad" if os.path.basename(sys.argv[0]) == "tetrad" else "python -m app"
    parser = _CommandParser(prog=prog, description=_DESCRIPTION, epilog=EXIT_CODES)
    parser.add_argument("--version", action="version", version=f"tetrad {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_synthesize(commands)
    add_infer(commands)
    add_segment(commands)
    add_merge_records(commands)
    add_clinic(commands)
    add_dicom_node(commands)
    add_check(commands)
    add_info(commands)
    add_demo(commands)
    add_phantom(commands)
    add_evaluate(commands)
    add_dropout(commands)
    add_average(commands)
    add_baselines(commands)
    add_export(commands)
    add_import(commands)
    add_fit(commands)
    add_fit_normalization(commands)
    add_weights(commands)
    add_train(commands)
    add_atlas(commands)
    add_simulate(commands)
    add_transplant(commands)
    for command in commands.choices.values():
        command.add_argument("--verbose", action="store_true", help="say more, tracebacks included")
    return parser
