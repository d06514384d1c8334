# ruff: noqa: E501
from __future__ import annotations

import hashlib
import json

import pytest

from app.cli import main
from app.core.constants import MODALITIES
from app.core.errors import ExitCode, WeightsError
from app.networks.architectures import EnhancerConfig, HfGanConfig, UNetConfig
from app.registry.manifest import read_manifest, write_entry
from app.registry.upgrade import upgrade_folder

VOLUME = {"scheme": "volume", "background": -1.0, "percentile": 99.5}
CANVAS = {"centre": "brain", "sizes": {"axial": [48, 64], "sagittal": [64, 48], "coronal": [48, 48]}}
SCORES = {"subjects": ["u1"], "mean": {"ssim_brain": 0.6}, "t1c": {"ssim_brain": 0.5}}
RECIPE = {
    "task": "synthesis",
    "note": "a note",
    "seed": 3,
    "network": {"kind": "unet", "preset": "half", "fine_skip": False, "intensity_prior": "mean"},
    "data": {"makes": ["t1c"], "views": ["axial", "sagittal", "coronal"], "patch": [64, 64, 64]},
    "losses": {"l1": 1.0, "judge": 2.0, "dice": 0.3, "ssim": 5.0},
    "refinement": {"width": 32},
    "schedule": {"targets": 1, "steps": 10},
}


def told(**more):
    return {"subjects": 2, "names": ["s1", "s2"], "recipe": RECIPE, "seed": 3, "steps": 10, "slices": 80, "minutes": 1.5,
            **more}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A folder as version 0.1 wrote it: every kind of model, intensity files of the same content, a history."""
    files = {name: name.encode() for name in ("old.safetensors", "judge.safetensors", "enh.safetensors")}
    files |= {
        "gan-intensity.json": b"{}",
        "net-intensity.json": b"{}",
        "gan.safetensors": b"g",
        "net.safetensors": b"n",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)

    def file(name):
        return {"path": name, "sha256": hashlib.sha256(files[name]).hexdigest(), "bytes": len(files[name])}

    first = {"model": "net", "sha256": "1" * 64, "training": told(names=["s0"])}
    start = {"model": "net", "sha256": "2" * 64, "training": told(started_from=first)}
    models = {
        "gan": {"kind": "generator", "files": {"torch": file("gan.safetensors"), "intensity": file("gan-intensity.json")},
                "normalization": VOLUME, "architecture": {"width": 16, "view_code": True, "fine_skip": False},
                "canvas": CANVAS, "views": ["coronal", "axial"], "contrast": 0.25},
        "net": {"kind": "generator", "files": {"torch": file("net.safetensors"), "intensity": file("net-intensity.json")},
                "normalization": VOLUME, "canvas": CANVAS, "views": ["axial"], "makes": ["t2w", "t1c"],
                "architecture": {"network": "unet", "widths": [8, 16], "intensity_code": False, "background": -1.0},
                "refiner": "enh", "refine": True,
                "specialists": {"t1c": "gan"}, "training": told(started_from=start), "scores": SCORES},
        "judge": {"kind": "judge", "files": {"torch": file("judge.safetensors")}, "normalization": VOLUME,
                  "architecture": {"widths": [8, 16]}, "window": [32, 32, 32],
                  "training": told(recipe={**RECIPE, "task": "judging"})},
        "enh": {"kind": "refiner", "files": {"torch": file("enh.safetensors")}, "normalization": VOLUME,
                "architecture": {"network": "enhancer", "widths": [8, 16], "background": -1.0}, "window": [32, 32, 32],
                "overlap": 0.25, "stage_one": {"model": "net", "sha256": "1" * 64, "joined": "axial-mean"}},
    }  # fmt: skip
    form = {"schema": 1, "default": "gan", "fallback": None, "models": models}
    (tmp_path / "manifest.json").write_text(json.dumps(form))
    return tmp_path


def test_an_old_folder_opens_as_it_is(folder):
    manifest = read_manifest(folder)
    gan, net, enh = (manifest.entry(name) for name in ("gan", "net", "enh"))
    assert (manifest.default, manifest.fallback) == ("gan", None)
    assert gan.spec.architecture == HfGanConfig(width=16)
    assert gan.spec.views == ("axial", "coronal")
    assert net.spec.architecture == UNetConfig(widths=(8, 16))
    assert net.spec.targets == ("t1c", "t2w")
    assert (net.spec.refiner, net.spec.refine, net.spec.specialists) == ("enh", True, {"t1c": "gan"})
    assert manifest.entry("judge").spec.kind == "segmenter3d"
    assert enh.spec.architecture == EnhancerConfig((8, 16))
    assert (enh.spec.first_stage.model, enh.spec.first_stage.fusion) == ("net", "axial-mean")
    assert gan.path_of("torch").read_bytes() == b"g"


def test_an_old_folder_is_not_written_to(folder):
    entry = read_manifest(folder).entry("gan")
    with pytest.raises(WeightsError, match="weights upgrade"):
        write_entry(folder, "new", entry.spec, {"torch": b"x"})


def test_the_command_brings_it_to_todays_form(folder, capsys):
    before = read_manifest(folder)
    weights = {e.name: e.path_of("torch").read_bytes() for e in before.entries.values()}
    assert main(["weights", "upgrade", str(folder)]) == ExitCode.OK
    after = read_manifest(folder)
    assert json.loads((folder / "manifest.json").read_text())["schema"] == 2
    assert {e.name: e.spec for e in after.entries.values()} == {e.name: e.spec for e in before.entries.values()}
    assert {e.name: e.path_of("torch").read_bytes() for e in after.entries.values()} == weights
    # What two models share is there once.
    assert len({after.entry(n).path_of("intensity") for n in ("gan", "net")}) == 1
    assert not list(folder.glob("*-intensity.json"))
    assert main(["weights", "upgrade", str(folder)]) == ExitCode.WEIGHTS
    assert "nothing to upgrade" in capsys.readouterr().err


def test_the_history_becomes_flat(folder):
    upgrade_folder(folder)
    manifest = read_manifest(folder)
    sha256 = manifest.entry("net").sha256
    assert set(manifest.lineage.trainings) == {sha256, "1" * 64, "2" * 64, manifest.entry("gan").sha256,
                                               manifest.entry("judge").sha256, manifest.entry("enh").sha256}  # fmt: skip
    record = manifest.lineage.trainings[sha256]
    assert record.started_from == "2" * 64
    assert manifest.lineage.trainings["2" * 64].started_from == "1" * 64
    assert manifest.lineage.ancestry([sha256]).subjects == {"s0", "s1", "s2"}
    assert record.scores.by_target == {"t1c": {"ssim_brain": 0.5}}
    assert manifest.lineage.trainings[manifest.entry("enh").sha256].first_stage == "1" * 64


def test_an_intensity_code_of_old_form_is_refused(folder):
    path = folder / "manifest.json"
    form = json.loads(path.read_text())
    form["models"]["net"]["target_medians"] = dict.fromkeys(MODALITIES, 0.5)
    path.write_text(json.dumps(form))
    with pytest.raises(WeightsError, match="'net' has an intensity code of version"):
        read_manifest(folder)


def test_a_recipe_keeps_what_its_task_used_and_changed(folder):
    upgrade_folder(folder)
    manifest = read_manifest(folder)
    generator, segmenter = (manifest.lineage.trainings[manifest.entry(n).sha256] for n in ("net", "judge"))
    assert generator.task == "synthesis"
    assert generator.recipe == {
        "note": "a note",
        "network": {"kind": "unet", "intensity_prior": "mean"},
        "data": {"targets": ["t1c"]},
        "losses": {"l1": 1.0, "discriminator": 2.0},
        "schedule": {"targets_per_batch": 1, "steps": 10},
    }
    assert segmenter.task == "segmentation3d"
    assert segmenter.recipe == {"note": "a note", "data": {"patch": [64, 64, 64]}, "schedule": {"steps": 10}}


def test_a_damaged_old_folder_is_named(folder):
    form = json.loads((folder / "manifest.json").read_text())
    del form["models"]["gan"]["files"]
    (folder / "manifest.json").write_text(json.dumps(form))
    with pytest.raises(WeightsError, match="damaged"):
        read_manifest(folder)
