"""Define the exceptions of Tetrad and the exit codes of its command line.

Each message is one sentence that names the file, says what is wrong and what to do about it.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Name the exit codes; `app.batch.outcomes.exit_code_of` decides that of a run."""

    OK = 0
    SUBJECT_FAILED = 1
    USAGE = 2
    NOTHING_TO_DO = 3
    WEIGHTS = 4
    DEVICE = 5
    TERMINATED = 143


class TetradError(Exception):
    """Report an error of the user or the machine, not a defect of Tetrad."""

    exit_code: ExitCode = ExitCode.SUBJECT_FAILED


class UsageError(TetradError):
    """Report a command line, configuration or folder that cannot be used."""

    exit_code = ExitCode.USAGE


class NothingToDo(TetradError):
    """Report an input without a subject that lacks a sequence."""

    exit_code = ExitCode.NOTHING_TO_DO


class WeightsError(TetradError):
    """Report weights that are missing, damaged or of another format."""

    exit_code = ExitCode.WEIGHTS


class DeviceError(TetradError):
    """Report a requested device that is not there."""

    exit_code = ExitCode.DEVICE


class CaseError(TetradError):
    """Report one subject that cannot be done; the others can."""


class VolumeError(CaseError):
    """Report one file that cannot be used as a volume."""


class EmptyVolumeError(VolumeError):
    """Report a readable file that is constant or nowhere finite; its sequence counts as missing."""


class DoubtfulError(CaseError):
    """Report a made sequence that is expected to be worse than was asked for; no other model may stand in."""


class OutputError(CaseError):
    """Report an output that could not be written; nothing of it is left behind."""
