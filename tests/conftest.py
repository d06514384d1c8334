"""What the tests share: a small phantom, subjects on disk, weights of every kind, and the real data where it is."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import settings

from app.core.config import WEIGHTS_DIR
from app.core.constants import MODALITIES, Modality
from app.data.phantom import Phantom, make_phantom, write_phantom

# A busy machine must fail no law.
settings.register_profile("tetrad", deadline=None)
settings.load_profile("tetrad")

SHAPE = (48, 56, 40)
DATA = Path(os.environ.get("TETRAD_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def phantom() -> Phantom:
    return make_phantom(SHAPE, seed=3)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    if not (DATA / "val").is_dir():
        pytest.skip(f"the real subjects are not at {DATA}; set TETRAD_DATA")
    return DATA


@pytest.fixture
def write_subject(phantom: Phantom) -> Callable[..., dict[str, Path]]:
    """Writes one subject in any naming; returns its files per sequence."""

    def write(
        folder: Path,
        names: dict[str, str] | None = None,
        lacks: tuple[str, ...] = ("t2f",),
        dtype: Any = np.int16,
        affine: Any = None,
    ) -> dict[str, Path]:
        folder.mkdir(parents=True, exist_ok=True)
        names = names or {m: f"{folder.name}-{m}.nii.gz" for m in MODALITIES}
        files = {}
        for modality in MODALITIES:
            if modality in lacks:
                continue
            image = nib.Nifti1Image(
                phantom.volumes[modality].astype(dtype), phantom.affine if affine is None else affine
            )
            files[modality] = folder / names[modality]
            nib.save(image, files[modality])
        return files

    return write


@pytest.fixture
def subject(tmp_path: Path, write_subject: Callable[..., dict[str, Path]]) -> dict[str, Path]:
    """`<tmp>/in/sub01/` with three sequences, T2-FLAIR lacking."""
    return write_subject(tmp_path / "in" / "sub01")


@pytest.fixture(scope="session")
def weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's own regression beside an untrained compact generator named `tiny`."""
    import torch

    from app.networks.architectures import HfGanConfig
    from app.networks.hf_gan import HfGan
    from app.preprocessing.normalization import Normalization
    from app.preprocessing.slices import Canvas
    from app.registry.manifest import read_manifest
    from tests.networks.small_models import save_generator

    folder = tmp_path_factory.mktemp("weights")
    for role in ("coefficients", "intensity"):
        shutil.copy(read_manifest(WEIGHTS_DIR).entry("regression").path_of(role), folder)
    form = json.loads((WEIGHTS_DIR / "manifest.json").read_text())
    form |= {"default": "regression", "models": {"regression": form["models"]["regression"]}}
    (folder / "manifest.json").write_text(json.dumps(form))
    torch.manual_seed(0)
    config = HfGanConfig(width=16)
    intensity = read_manifest(folder).entry("regression").path_of("intensity").read_bytes()
    canvas = Canvas({"axial": (48, 48), "sagittal": (48, 48), "coronal": (48, 48)})
    save_generator(
        folder,
        "tiny",
        config,
        HfGan(config).state_dict(),
        Normalization("volume", background=-1.0),
        canvas,
        ("axial", "sagittal", "coronal"),
        intensity=intensity,
    )
    return folder


def once(factory: pytest.TempPathFactory, name: str, fill: Callable[[Path], None]) -> Path:
    """Fills a folder once for all processes of the suite: what takes long to make and is only read."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, filled = shared / name, shared / f"{name}.filled"
    with open(shared / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not filled.exists():
            # An environment cannot be moved: it is made where it stays.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            fill(folder)
            filled.touch()
    return folder


@pytest.fixture(scope="session")
def onnx_weights_dir(weights_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`weights_dir` with the ONNX of `tiny`."""
    from app.registry.manifest import read_manifest
    from app.registry.onnx_export import export_onnx

    def fill(folder: Path) -> None:
        shutil.copytree(weights_dir, folder, dirs_exist_ok=True)
        export_onnx(read_manifest(folder).entry("tiny"))

    return once(tmp_path_factory, "onnx-weights", fill)


@pytest.fixture(scope="session")
def confident_weights(weights_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`weights_dir` with untrained generators that expect their own error, and one without a head, as `plain`."""
    from tests.networks.small_models import write_confident

    def fill(folder: Path) -> None:
        shutil.copytree(weights_dir, folder, dirs_exist_ok=True)
        write_confident(folder)

    return once(tmp_path_factory, "confident-weights", fill)


@pytest.fixture(scope="session")
def segmenting_weights(weights_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`weights_dir` with models that segment (`tests.networks.small_models.write_segmenting`)."""
    from tests.networks.small_models import write_segmenting

    folder = tmp_path_factory.mktemp("segmenting") / "weights"
    shutil.copytree(weights_dir, folder)
    write_segmenting(folder)
    return folder


@pytest.fixture
def specialist_weights(weights_dir: Path, tmp_path: Path) -> Path:
    """`weights_dir`, where `tiny` leaves T2-FLAIR to `expert`."""
    from app.registry.manifest import change_spec, read_manifest
    from tests.networks.small_models import add_expert

    folder = shutil.copytree(weights_dir, tmp_path / "weights")
    add_expert(folder)
    change_spec(read_manifest(folder).entry("tiny"), specialists={"t2f": "expert"})
    return folder


@pytest.fixture
def refined_weights(onnx_weights_dir: Path, tmp_path: Path) -> Path:
    """`onnx_weights_dir` with a refiner of `tiny` that is off by default."""
    from app.registry.manifest import change_spec, read_manifest
    from tests.networks.small_models import VOLUME, new_refiner, save_refiner

    folder = shutil.copytree(onnx_weights_dir, tmp_path / "weights")
    refiner = new_refiner()
    save_refiner(folder, "sharp", refiner.config, refiner.state_dict(), VOLUME, (32, 32, 32), 0.25, contrast=0.3)
    change_spec(read_manifest(folder).entry("tiny"), refiner="sharp", refine=False)
    return folder


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Drops root's power over permissions, which no permission test could see otherwise."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture(scope="session")
def training_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three complete phantoms with segmentations, as a run finds them on disk."""
    folder = tmp_path_factory.mktemp("training")
    for seed in range(3):
        write_phantom(make_phantom((40, 44, 36), seed), folder, f"s{seed}")
    return folder


@pytest.fixture(scope="session")
def training_cache(training_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the cache of `training_data` lies."""
    from app.training.data.cache import build_cache

    folder = tmp_path_factory.mktemp("cache")
    build_cache(training_data, folder)
    return folder


@pytest.fixture(scope="session")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three complete phantoms of two tumour types."""
    folder = tmp_path_factory.mktemp("complete")
    for number in range(3):
        write_phantom(
            make_phantom((40, 44, 36), number), folder, f"BraTS-{'GLI' if number else 'MET'}-0000{number}-000"
        )
    return folder


@pytest.fixture(scope="session")
def run_folder(complete: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every sequence of every subject dropped in turn and made again."""
    from app.cli import main

    place = tmp_path_factory.mktemp("run")
    assert main(["dropout", "--input", str(complete), "--output", str(place / "in"), "--each"]) == 0
    assert main(["synthesize", "--input", str(place / "in"), "--output", str(place / "out"),
                 "--report-dir", str(place / "report"), "--model", "regression"]) == 0  # fmt: skip
    return place


def load(path: Path) -> nib.Nifti1Image:
    image = nib.load(path)
    assert isinstance(image, nib.Nifti1Image)
    return image


def volumes_of(phantom: Phantom, lacks: Modality) -> dict[Modality, np.ndarray]:
    return {m: v for m, v in phantom.volumes.items() if m != lacks}


@pytest.fixture(scope="session")
def ray_package() -> Any:
    """Ray, with a word of its own for the clusters of this process; who asks for it is skipped without it."""
    from app.batch.engines.ray_session import import_ray
    from app.core.errors import UsageError

    try:
        return import_ray("this test", own=True)
    except UsageError as error:
        pytest.skip(str(error))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[Any]:
    """Keep names that are no text (bytes of a file system) from the wire between the workers of a parallel run."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report
