from __future__ import annotations

import json
import shutil

import pytest

from app.cli import main
from app.core.errors import ExitCode
from app.data.phantom import make_phantom, write_phantom
from app.inference.simulation.run import SimulationOptions, simulate
from app.registry.identity import Identity
from app.training.checkpoint import LAST, load_state
from tests.inference.simulation.helpers import SHAPE, small_simulator

OPTIONS = ["data.axial=[48,48]", "data.min_brain_pixels=200", "data.views=['axial']", "schedule.steps=2",
           "schedule.budget_minutes=0", "schedule.batch_size=2", "schedule.epoch_steps=100"]  # fmt: skip
SHARE = "data.simulated_share=0.5"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two phantoms in `data`, and two exams simulated from other lesions in `simulated`."""
    folder = tmp_path_factory.mktemp("mixed")
    for where, seeds in (("data", (0, 1)), ("lesions", (4, 5)), ("overlap", (4,))):
        for seed in seeds:
            write_phantom(make_phantom(SHAPE, seed), folder / where, f"phantom-{seed}")
    options = SimulationOptions(folder / "lesions", folder / "simulated")
    simulate(options, small_simulator(), Identity("one", "0" * 64), ["teacher"])
    return folder


def _train(place, run, *changes, simulated="simulated", recipe="segmenter", common=OPTIONS, more=()):
    options = [word for change in (*common, *changes) for word in ("--set", change)]
    given = [] if simulated is None else ["--simulated", str(place / simulated)]
    return main(["train", recipe, "--data", str(place / "data"), "--run", str(place / run), "--cache", str(place / "c"),
                 "--device", "cpu", *options, *given, *more])  # fmt: skip


def test_they_are_mixed_in_and_named(place):
    assert _train(place, "run", SHARE) == ExitCode.OK
    state = load_state(place / "run" / LAST)
    assert state.subjects == ["phantom-0", "phantom-1"]
    assert state.simulated == ["synthetic-0-0000", "synthetic-0-0001"]
    assert state.simulated_from == ["phantom-4", "phantom-5", "teacher"]
    assert set(state.seen) == {"phantom-0", "phantom-1", "phantom-4", "phantom-5", "teacher"}


def test_a_run_goes_on_with_the_same_alone(place, capsys):
    assert _train(place, "again", SHARE) == ExitCode.OK
    assert _train(place, "again", SHARE, "schedule.steps=3", more=["--resume"]) == ExitCode.OK
    assert _train(place, "again", "schedule.steps=4", simulated=None, more=["--resume"]) == ExitCode.USAGE


def test_whose_lesions_they_have_does_not_validate(place, capsys):
    code = _train(place, "leak", SHARE, more=["--validation", str(place / "overlap")])
    assert code == ExitCode.USAGE
    assert "phantom-4" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes,options,message",
    [
        ([], {}, "--simulated needs a share"),
        ([SHARE], {"simulated": None}, "needs simulated exams"),
        ([SHARE], {"simulated": "data"}, "has no simulated.json"),
        (["data.simulated_share=1.0"], {}, "from 0 to below 1"),
    ],
)
def test_what_does_not_fit_is_refused(place, capsys, changes, options, message):
    assert _train(place, "bad", *changes, **options) == ExitCode.USAGE
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["ds3net_compact", "cgsamr_compact", "ucgsamr_compact", "refiner"])
def test_tasks_that_cannot(place, capsys, recipe):
    code = main(["train", recipe, "--data", str(place / "data"), "--run", str(place / "bad"), "--simulated",
                 str(place / "simulated"), "--set", SHARE, "--device", "cpu"])  # fmt: skip
    assert code == ExitCode.USAGE
    assert "cannot learn from simulated exams" in capsys.readouterr().err


def test_a_damaged_record_is_refused(place, capsys):
    folder = shutil.copytree(place / "simulated", place / "damaged", dirs_exist_ok=True)
    (folder / "simulated.json").write_text("{}")
    assert _train(place, "bad", SHARE, simulated="damaged") == ExitCode.USAGE
    assert "cannot be read" in capsys.readouterr().err


def test_an_exam_that_was_put_there_is_refused(place, capsys):
    folder = shutil.copytree(place / "simulated", place / "more", dirs_exist_ok=True)
    form = json.loads((folder / "simulated.json").read_text())
    form["exams"] = form["exams"][:1]
    (folder / "simulated.json").write_text(json.dumps(form))
    assert _train(place, "bad", SHARE, simulated="more") == ExitCode.USAGE
    assert "is not in simulated.json" in capsys.readouterr().err


def test_a_generator_of_one_sequence_learns_from_them(place):
    changes = ["losses.tversky=0", "network.widths=[8,16]", "data.targets=['t1c']", "schedule.validate_every=0",
               "schedule.targets_per_batch=1"]  # fmt: skip
    assert _train(place, "generator", SHARE, *changes, recipe="unet") == ExitCode.OK
    assert load_state(place / "generator" / LAST).simulated


def test_an_enhancer_learns_from_them(place):
    changes = ["data.patch=[64,32,32]", "schedule.validate_every=0"]
    assert _train(place, "enhancer", SHARE, *changes, recipe="enhancer", common=OPTIONS[3:]) == ExitCode.OK
    assert load_state(place / "enhancer" / LAST).simulated
