from __future__ import annotations

import pytest

from app.core import errors
from app.core.errors import ExitCode, TetradError

CODES = {
    "UsageError": 2,
    "NothingToDo": 3,
    "WeightsError": 4,
    "DeviceError": 5,
    "CaseError": 1,
    "VolumeError": 1,
    "EmptyVolumeError": 1,
    "OutputError": 1,
    "DoubtfulError": 1,
}


@pytest.mark.parametrize("name,code", CODES.items())
def test_every_error_has_its_exit_code(name, code):
    error = getattr(errors, name)
    assert issubclass(error, TetradError)
    assert error.exit_code == code


def test_there_are_no_others():
    classes = {n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, TetradError)}
    assert classes == {*CODES, "TetradError"}


def test_what_is_wrong_with_one_subject_is_caught_as_such():
    for error in (errors.VolumeError, errors.EmptyVolumeError, errors.OutputError):
        assert issubclass(error, errors.CaseError)
    assert not issubclass(errors.WeightsError, errors.CaseError)


def test_the_code_of_a_terminated_process_is_the_shells():
    assert ExitCode.TERMINATED == 128 + 15
