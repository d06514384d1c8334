from __future__ import annotations

import json

import pytest

from app.batch.merging import merge_records, merged
from app.batch.run import run
from app.core.errors import NothingToDo, UsageError
from tests.batch.helpers import config_of, write_copies

#: What two runs of one thing differ in.
OWN = {"started", "finished", "config", "merged_parts"}


@pytest.fixture
def parts(tmp_path, write_subject, weights_dir, no_page):
    """Five subjects in three parts, and the record of one run beside."""
    write_copies(write_subject, tmp_path / "in", "abcde")
    for part in range(3):
        run(config_of(tmp_path, weights_dir, report_dir=tmp_path / "report", part_id=part, num_parts=3))
    return tmp_path


def _without_times(record):
    subjects = [{k: v for k, v in s.items() if k not in {"seconds", "stages"}} for s in record["subjects"]]
    return {k: v for k, v in record.items() if k not in OWN} | {"subjects": subjects}


def test_it_is_the_record_of_one_run(parts, weights_dir):
    assert merge_records(parts / "report") == 0
    several = json.loads((parts / "report" / "tetrad-run.json").read_text())
    assert (several["merged_parts"], several["config"]["num_parts"]) == (3, 1)
    run(config_of(parts, weights_dir, report_dir=parts / "one", overwrite=True))
    one = json.loads((parts / "one" / "tetrad-run.json").read_text())
    assert _without_times(several) == _without_times(one)


def _change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_parts_that_lack_are_named(parts):
    (parts / "report" / "tetrad-run-part1of3.json").unlink()
    with pytest.raises(UsageError, match="lacks the parts 1 of 3; run them first"):
        merge_records(parts / "report")
    assert not (parts / "report" / "tetrad-run.json").exists()


@pytest.mark.parametrize(
    "spoil,sentence",
    [
        (lambda path: path.write_text("{"), "is no run record"),
        (lambda path: path.write_text("[]"), "is no run record"),
        (lambda path: _change(path, model={"name": "other"}), "part 1 was run with another model than part 0"),
        (lambda path: _change(path, tetrad="0.0.1"), "with another tetrad"),
        (lambda path: _change(path, config={"weights_dir": "elsewhere"}), "with another weights_dir"),
        (lambda path: path.rename(path.with_name("tetrad-run-part1of4.json")), "holds parts of 3 and of 4"),
    ],
)
def test_parts_of_other_runs_are_refused(parts, spoil, sentence):
    spoil(parts / "report" / "tetrad-run-part1of3.json")
    with pytest.raises(UsageError, match=sentence):
        merge_records(parts / "report")


def test_a_folder_without_parts(tmp_path):
    with pytest.raises(NothingToDo, match="holds no record of a part"):
        merge_records(tmp_path)


@pytest.mark.parametrize("codes,expected", [((0, 0), 0), ((0, 1), 1), ((143, 1), 143)])
def test_the_worst_code_is_that_of_the_run(codes, expected):
    record = {
        "started": "a",
        "finished": "b",
        "config": {},
        "model": {},
        "runtime": "cpu",
        "notes": ["n"],
        "subjects": [],
    }
    form = merged([record | {"exit_code": code} for code in codes])
    assert (form["exit_code"], form["runtime"], form["notes"]) == (expected, "cpu", ["n"])
