"""What the tests of training share: a run, trained as a user does it, and a first stage with its volumes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from app.cli import main
from app.core.errors import ExitCode
from app.data.phantom import make_phantom, write_phantom
from app.preprocessing.normalization import BACKGROUND, Normalization
from app.registry.manifest import Entry, change_spec, read_manifest
from app.training.data.cache import build_cache
from app.training.data.first_stage import StageOne
from tests.training.helpers import PLAIN, SMALL_OPTIONS

#: Scale of the intensities that DS3-Net sees.
RANGE = Normalization("range", background=BACKGROUND)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with the phantoms `data` and `unseen`, and `run`, two steps of training on `data`."""
    folder = tmp_path_factory.mktemp("commands")
    for place, seeds in (("data", (0, 1)), ("unseen", (7,))):
        for seed in seeds:
            write_phantom(make_phantom((40, 44, 36), seed), folder / place, f"phantom-{seed}")
    code = main(["train", "smoke", "--data", str(folder / "data"), "--run", str(folder / "run"), *SMALL_OPTIONS,
                 *PLAIN, "--set", "schedule.steps=2", "--device", "cpu"])  # fmt: skip
    assert code == ExitCode.OK
    return folder


@pytest.fixture(scope="session")
def first(weights_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Entry:
    """A weights folder of these tests' own, and in it a first stage of one view."""
    folder = shutil.copytree(weights_dir, tmp_path_factory.mktemp("w") / "weights")
    return change_spec(read_manifest(folder).entry("tiny"), views=("axial",))


@pytest.fixture(scope="session")
def stage_one_cache(training_data: Path, training_cache: Path, first: Entry) -> Path:
    """The cache of `training_data` with what the first stage makes of its subjects."""
    StageOne(first, "cpu").make(training_data, build_cache(training_data, training_cache))
    return training_cache


@pytest.fixture(scope="session")
def unpaired_data(tmp_path_factory) -> Path:
    """Two phantoms without T1c, one of them without a segmentation, and a complete one: other patients."""
    folder = tmp_path_factory.mktemp("unpaired")
    for number, lacks in ((5, ("t1c",)), (6, ("t1c",)), (8, ())):
        write_phantom(make_phantom((40, 44, 36), number), folder, f"u{number}", leave_out=lacks)
    for mask in folder.rglob("u6-seg.nii.gz"):
        mask.unlink()
    return folder


@pytest.fixture(scope="session")
def paired_subjects(training_data, tmp_path_factory):
    """Subjects of `training_data` with intensities in [-1, 1]."""
    return build_cache(training_data, tmp_path_factory.mktemp("range"), RANGE)


@pytest.fixture(scope="session")
def unpaired_subjects(unpaired_data, tmp_path_factory):
    """Subjects of `unpaired_data` without their T1c, with intensities in [-1, 1]."""
    return build_cache(unpaired_data, tmp_path_factory.mktemp("range-unpaired"), RANGE, "t1c")
