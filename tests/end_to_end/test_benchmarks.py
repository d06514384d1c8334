from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest

from app.core.config import WEIGHTS_DIR
from app.core.constants import MODALITIES
from app.core.errors import ExitCode
from app.data.discovery import scan
from app.data.phantom import make_phantom, write_phantom
from app.evaluation.scoring import VolumeScores
from app.inference.models import NetworkModel
from app.inference.synthesizer import Synthesizer
from app.registry.manifest import read_manifest
from benchmarks import cost
from benchmarks._training import difference_cells, kept_scores
from benchmarks.ablation import VARIANTS
from benchmarks.capacity import FIGURES, Fleet, bottleneck, simulate
from benchmarks.cgsamr import VARIANTS as CGSAMR_VARIANTS
from benchmarks.compare import QUANTITIES
from benchmarks.ds3net import VARIANTS as DS3NET_VARIANTS
from benchmarks.ds3net import link_parts
from benchmarks.expected_quality import _finished_as_default
from benchmarks.speed import variants


def _call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "benchmarks", *arguments], check=False, capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [[], ["unknown"], ["__init__"]])
def test_without_a_known_name_it_says_what_there_is(arguments):
    done = _call(*arguments)
    assert done.returncode == 2
    names = (
        "ablation, batch, capacity, cgsamr, clinic, compare, cost, downstream, ds3net, expected_quality, further, "
        "fusion, intensity, memory, scale, sharing, speed, ssim, tissnet, ways"
    )
    assert names in done.stderr


def test_options_reach_the_benchmark():
    done = _call("ablation", "--steps", "7")
    assert done.returncode == 2
    assert "--data" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["ablation", "--data", ".", "--out", "."], ["speed"]])
def test_a_variant_that_does_not_exist_is_named(arguments):
    done = _call(*arguments, "--only", "no such thing")
    assert done.returncode == 2
    assert "no variant 'no such thing'" in done.stderr


@pytest.mark.parametrize(
    "options,said",
    [(["--contrast", "7"], "not a number from 0 to 1"), (["--model", "regression"], "has no views to join"),
     ([], "holds no complete subject")],
)  # fmt: skip
def test_what_cannot_be_joined_is_one_sentence(tmp_path, options, said):
    done = _call("fusion", "--data", str(tmp_path), *options)
    assert done.returncode == ExitCode.USAGE
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_only_another_checkout_can_be_compared(tmp_path):
    done = _call("compare", "--other", str(tmp_path))
    assert done.returncode == ExitCode.USAGE
    assert f"{tmp_path} is no checkout of Tetrad" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_checkout_beside_itself_writes_the_same_bytes(tmp_path):
    options = ["--other", ".", "--shape", "small", "--rounds", "1", "--model", "regression", "--precision", "fp32"]
    done = _call("compare", *options, "--json", str(tmp_path / "pairs.json"))
    assert done.returncode == 0, done.stderr
    (pair,) = json.loads((tmp_path / "pairs.json").read_text())["fp32"]
    assert pair["same"]
    assert pair["ours"].keys() == pair["other"].keys() == QUANTITIES.keys()
    assert all(value > 0 for value in (*pair["ours"].values(), *pair["other"].values()))


def test_a_device_that_is_not_there_is_one_sentence():
    done = _call("ways", "--device", "cuda:77")
    assert done.returncode == ExitCode.DEVICE
    assert "cuda:77 was asked for but" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_variant_can_be_asked_for():
    for name in (*VARIANTS, *DS3NET_VARIANTS, *CGSAMR_VARIANTS, *variants()):
        assert "," not in name, "--only separates names by commas"


def test_only_the_paired_exams_of_the_experiment_have_the_target(tmp_path):
    for number in range(4):
        write_phantom(make_phantom((24, 24, 20), number), tmp_path / "data", f"s{number}")
    options = argparse.Namespace(data=tmp_path / "data", out=tmp_path / "out", target="t1c", seed=0)
    paired, others = link_parts(2, options)
    assert others is not None
    assert [sorted(c.files) for c in scan(paired).cases] == [sorted(MODALITIES)] * 2
    assert [sorted(c.files) for c in scan(others).cases] == [["t1n", "t2f", "t2w"]] * 2
    assert {c.subject for c in (*scan(paired).cases, *scan(others).cases)} == {f"s{n}" for n in range(4)}
    assert link_parts(0, options)[1] is None


DEFAULTS = {name: figure.value for name, figure in FIGURES.items()}


class TestCapacity:
    def test_one_worker_takes_the_sum(self):
        """Of its slowest stage for all, and of the others for one."""
        plan = simulate(100, Fleet(gpus=1), DEFAULTS)
        once = DEFAULTS["decode"] + DEFAULTS["encode"]
        expected = DEFAULTS["start"] + 100 * DEFAULTS["network-gpu"] + once
        assert plan.work == pytest.approx(expected, rel=0.01)

    @pytest.mark.parametrize(
        "change,name",
        [
            ({}, "network"),
            ({"storage-read": 10}, "storage, read"),
            ({"storage-write": 3}, "storage, write"),
            ({"cores-beside-gpu": 1, "decode": 2.0}, "decoding"),
            ({"cores-beside-gpu": 1, "encode": 2.0}, "encoding"),
            ({"scan": 3.0}, "scan"),
            ({"report": 3.0}, "report"),
        ],
    )
    def test_the_bottleneck_is_named(self, change, name):
        assert bottleneck(2000, Fleet(gpus=4), {**DEFAULTS, **change})[0] == name

    def test_an_array_scans_as_often_as_it_has_parts(self):
        slow = {**DEFAULTS, "storage-opens": 1000}
        one, many = (simulate(5000, Fleet(gpus=64), slow, parts).scan for parts in (False, True))
        assert many == pytest.approx(64 * one)

    @pytest.mark.parametrize("fleet", [Fleet(gpus=8), Fleet(cores=64)])
    def test_what_is_not_simulated_goes_on_as_before(self, fleet, monkeypatch):
        whole = simulate(3000, fleet, DEFAULTS).seconds
        monkeypatch.setattr("benchmarks.capacity._MOST_SIMULATED", 1000)
        assert simulate(3000, fleet, DEFAULTS).seconds == pytest.approx(whole, rel=0.02)

    def test_every_figure_is_an_option(self):
        done = _call("capacity", "--exams", "100", "--gpus", "2", "--cores", "", "--network-gpu", "36")
        assert done.returncode == 0, done.stderr
        assert "| 100 | 2 GPU | 0.5" in done.stdout
        assert "| network-gpu | 36 | GPU-s an exam in the network | given |" in done.stdout

    def test_a_machine_is_measured(self):
        done = _call("capacity", "--measure", "--model", "regression", "--shape", "small")
        assert done.returncode == 0, done.stderr
        assert [line.split()[0] for line in done.stdout.splitlines()[:3]] == ["--decode", "--network-cores", "--encode"]


def test_scale_counts_time_and_memory():
    done = _call("scale", "--subjects", "4,8", "--no-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 5


def test_scores_are_found_once_and_kept(tmp_path):
    found = [VolumeScores("a", "t1c", {"ssim_brain": 0.5, "ssim_tumour": math.nan})]
    first = kept_scores(tmp_path / "scores.json", lambda: found)
    again = kept_scores(tmp_path / "scores.json", lambda: pytest.fail("scored again"))
    for rows in (first, again):
        assert [(r.subject, r.modality, r.values["ssim_brain"]) for r in rows] == [("a", "t1c", 0.5)]
        assert math.isnan(rows[0].values["ssim_tumour"])


def test_what_one_has_beyond_another():
    rows, base = ([VolumeScores(s, "t1c", {"x": v}) for s, v in zip("ab", values, strict=True)]
                  for values in ((0.5, 0.7), (0.4, 0.6)))  # fmt: skip
    assert difference_cells(rows, base, {"x": 2, "y": 2}) == "+0.10 [+0.10, +0.10] | "
    assert difference_cells(rows, [], {"x": 2}) == ""


class TestCost:
    def test_of_each_number_the_least_of_the_rounds_counts(self):
        assert cost.Cost(3, 9, 5).least(cost.Cost(4, 8, 6)) == cost.Cost(3, 8, 5)
        assert cost.Cost(3, 9, 5).least(None) == cost.Cost(3, 9, 5)

    def test_the_picture_needs_scores(self):
        done = _call("cost", "--out", "nowhere")
        assert done.returncode == 2
        assert "give --reference, too" in done.stderr

    def test_a_table_and_a_picture(self, capsys):
        found = {
            (p, q): cost.Cost(n + 1, n + 2, n + 3) for p in cost.PROCESSORS for n, q in enumerate(("fast", "best"))
        }
        scores = {"fast": 0.7, "best": 0.71}
        cost._print(found, scores)
        assert "| AVX2 alone | best | 2.0 | 3.0 | 4 | 0.7100 |" in capsys.readouterr().out
        assert cost._plot(found, scores).startswith(b"\x89PNG")


def test_what_a_forecast_is_fitted_to_is_finished_as_the_default_is():
    shipped = Synthesizer(device="cpu", refine=False).model
    assert isinstance(shipped, NetworkModel)
    plain = shipped.spec.model_copy(update={"contrast": 0.0, "highlights": 1.0, "detail": 1.0})
    model = _finished_as_default(replace(shipped, spec=plain, specialists={}), read_manifest(WEIGHTS_DIR))
    for target in MODALITIES:
        made, meant = model.model_for(target), shipped.model_for(target)
        assert made.predictor is shipped.predictor
        assert (made.contrast, made.highlights, made.detail) == (meant.contrast, meant.highlights, meant.detail)
    assert model.model_for("t2f").detail != 1
