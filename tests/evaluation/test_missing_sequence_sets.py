from __future__ import annotations

import shutil

import numpy as np
import pytest

from app.core.constants import MODALITIES
from app.core.errors import UsageError
from app.data.cases import plan
from app.data.discovery import scan
from app.evaluation.missing_sequence_sets import draw_sequences, make_missing_sequence_set


class TestMakeMissingSequenceSet:
    def test_the_organisers_draw(self):
        random = np.random.RandomState(123456)
        assert draw_sequences(9) == [MODALITIES[i] for i in random.randint(0, 4, 9)]
        assert set(draw_sequences(40)) == set(MODALITIES)

    def test_one_of_each(self, complete, tmp_path):
        made = make_missing_sequence_set(complete, tmp_path / "out")
        cases = scan(tmp_path / "out").cases
        assert [(c.subject, plan(c).targets[0]) for c in cases] == made
        assert not list((tmp_path / "out").rglob("*seg*"))

    def test_each_in_turn(self, run_folder):
        cases = scan(run_folder / "in").cases
        assert len(cases) == 12
        assert {plan(c).targets for c in cases} == {(m,) for m in MODALITIES}

    def test_the_seed_decides(self, complete, tmp_path):
        drawn = [make_missing_sequence_set(complete, tmp_path / str(s), seed=s) for s in (1, 1 + 10**6, 2)]
        assert len({tuple(d) for d in drawn}) > 1

    def test_a_full_output_is_refused(self, complete, tmp_path):
        (tmp_path / "x").write_text("mine")
        with pytest.raises(UsageError, match="not empty"):
            make_missing_sequence_set(complete, tmp_path)

    def test_incomplete_subjects_are_named(self, complete, tmp_path, caplog):
        source = shutil.copytree(complete, tmp_path / "in")
        next(source.rglob("*GLI*t1n.nii.gz")).unlink()
        assert len(make_missing_sequence_set(source, tmp_path / "out")) == 2
        assert "is left out: it does not have all four" in caplog.text
        next(source.rglob("*MET*t1n.nii.gz")).write_bytes(b"no image")
        assert len(make_missing_sequence_set(source, tmp_path / "again")) == 1
        assert "is text, not an image" in caplog.text


@pytest.mark.parametrize("count", [1, 7, 40])
def test_the_draw_of_fewer_subjects_is_the_beginning_of_the_draw_of_more(count):
    assert draw_sequences(50)[:count] == draw_sequences(count)
