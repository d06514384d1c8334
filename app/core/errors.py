"""The few exceptions of Tetrad and the exit codes of its command line.

Each message is one sentence that names the file, says what is wrong and what to do about it.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the process tells its caller; `exit_code_of` in `app.batch.run` is where a run's is decided."""

    OK = 0
    SUBJECT_FAILED = 1
    USAGE = 2
    NOTHING_TO_DO = 3
    WEIGHTS = 4
    DEVICE = 5
    TERMINATED = 143


class TetradError(Exception):
    """Base of every error that is the user's or the machine's, not a defect of Tetrad."""

    exit_code: ExitCode = ExitCode.SUBJECT_FAILED


class UsageError(TetradError):
    """The command line, a configuration or a folder named on it cannot be used."""

    exit_code = ExitCode.USAGE


class NothingToDo(TetradError):
    """The input holds no subject that lacks a sequence."""

    exit_code = ExitCode.NOTHING_TO_DO


class WeightsError(TetradError):
    """Weights are missing, damaged or of another format."""

    exit_code = ExitCode.WEIGHTS


class DeviceError(TetradError):
    """The device that was asked for is not there."""

    exit_code = ExitCode.DEVICE


class CaseError(TetradError):
    """One subject cannot be done; the others can."""


class VolumeError(CaseError):
    """One file cannot be used as a volume."""


class EmptyVolumeError(VolumeError):
    """A readable file without content (all zero, constant, or nowhere finite): its sequence counts as missing."""


class OutputError(CaseError):
    """An output could not be written; nothing of it is left behind."""
