from __future__ import annotations

import argparse
import json

import pytest

from app.cli import main
from app.cli.commands.simulate import factors
from app.data.phantom import make_phantom, write_phantom
from app.inference.simulation.atlas import read_atlas
from tests.inference.simulation.helpers import SHAPE, save_small


@pytest.fixture
def place(tmp_path):
    """A folder with `weights` and two phantoms in `lesions`."""
    save_small(tmp_path / "weights", "one")
    for seed in (1, 2):
        write_phantom(make_phantom(SHAPE, seed), tmp_path / "lesions", f"p{seed}")
    return tmp_path


def _simulate(place, *more):
    return main(["simulate", "--lesions", str(place / "lesions"), "--output", str(place / "exams"), "--weights",
                 str(place / "weights"), "--device", "cpu", *more])  # fmt: skip


def test_exams_and_pictures(place, capsys):
    code = _simulate(place, "--count", "1", "--scale", "0.5..2", "--mirror", "--move", "--seed", "3",
                     "--pictures", str(place / "pictures"), "--confidence", str(place / "sure"))  # fmt: skip
    assert code == 0
    assert "1 synthetic exam." in capsys.readouterr().err
    assert sorted(p.name for p in (place / "exams").iterdir()) == ["simulated.json", "synthetic-3-0000"]
    assert [p.name for p in (place / "pictures").iterdir()] == ["synthetic-3-0000.png"]
    assert len(list((place / "sure").iterdir())) == 4


def test_a_simulated_exam_is_dropped_and_evaluated(place):
    assert _simulate(place, "--count", "1") == 0
    exams, dropped = str(place / "exams"), str(place / "dropped")
    assert main(["dropout", "--input", exams, "--output", dropped]) == 0
    assert main(["synthesize", "--input", dropped, "--output", str(place / "made"), "--model", "regression"]) == 0
    assert main(["evaluate", "--prediction", str(place / "made"), "--reference", exams]) == 0


def test_lesions_are_those_of_the_brains_unless_given(place, capsys):
    common = ["simulate", "--output", str(place / "exams"), "--weights", str(place / "weights"), "--device", "cpu"]
    assert main(common) == 2
    assert "give --lesions, or exams with segmentations by --brains" in capsys.readouterr().err
    assert main([*common, "--brains", str(place / "lesions"), "--exchange", "--count", "1"]) == 0
    (exam,) = json.loads((place / "exams" / "simulated.json").read_text())["exams"]
    assert {exam["lesion"], exam["brain"]} == {"p1", "p2"}


def test_mistakes_are_one_sentence(place, capsys):
    assert _simulate(place, "--exchange") == 2
    assert "--exchange needs --brains" in capsys.readouterr().err
    assert _simulate(place, "--model", "other") == 4
    assert "no model 'other'" in capsys.readouterr().err


def test_transplants_and_pictures(place, capsys):
    lesions = str(place / "lesions")
    code = main(["transplant", "--lesions", lesions, "--data", lesions, "--output", str(place / "made"), "--count", "1",
                 "--seed", "2", "--pictures", str(place / "pictures")])  # fmt: skip
    assert code == 0
    assert "1 synthetic exam." in capsys.readouterr().err
    assert sorted(p.name for p in (place / "made").iterdir()) == ["simulated.json", "transplant-2-0000"]
    assert [p.name for p in (place / "pictures").iterdir()] == ["transplant-2-0000.png"]
    assert main(["transplant", "--lesions", lesions, "--data", lesions, "--output", lesions]) == 2
    assert "lie in each other" in capsys.readouterr().err


@pytest.mark.parametrize("text,values", [("2", (2, 2)), ("0.5..2", (0.5, 2))])
def test_factors(text, values):
    assert factors(text) == values


@pytest.mark.parametrize("text", ["", "2..1", "0", "0.5..2..3", "11", "nan", "one"])
def test_no_factors(text):
    with pytest.raises(argparse.ArgumentTypeError):
        factors(text)


def test_an_atlas(place):
    path = place / "atlas.safetensors"
    assert main(["atlas", "--data", str(place / "lesions"), "--output", str(path)]) == 0
    assert read_atlas(path).subjects == 2
    assert main(["atlas", "--data", str(place / "lesions"), "--output", str(place)]) == 2
    assert main(["atlas", "--data", str(place / "lesions"), "--output", str(place / "no" / "a")]) == 2
