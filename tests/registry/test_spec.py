from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from pydantic import ValidationError

from app.core.constants import MODALITIES
from app.networks.architectures import (
    CgSamrConfig,
    Ds3NetConfig,
    EnhancerConfig,
    HfGanConfig,
    RefinerConfig,
    UNetConfig,
)
from app.preprocessing.normalization import BRASYN25_INTENSITIES, Normalization
from app.preprocessing.slices import Canvas
from app.preprocessing.target_intensity import KAIST24_PRIOR, IntensityPrior
from app.registry.spec import SPEC, CgSamrSpec, FirstStage, GeneratorSpec, RefinerSpec, RegressionSpec

VOLUME = Normalization("volume", background=-1.0)
CANVAS = Canvas({"axial": (48, 64), "sagittal": (64, 48), "coronal": (48, 48)})


def generator(**fields):
    stated = {"architecture": UNetConfig(), "normalization": VOLUME, "canvas": CANVAS, "views": ("axial", "coronal")}
    return GeneratorSpec(**{**stated, **fields})


@pytest.mark.parametrize(
    "spec",
    [
        generator(),
        generator(architecture=HfGanConfig(width=16), targets=("t1c",), specialists={"t2f": "other"}, contrast=0.25),
        generator(
            architecture=UNetConfig(widths=(8, 16), intensity_code=True),
            normalization=Normalization("range", background=-1.0),
            intensity_prior=KAIST24_PRIOR,
        ),
        generator(
            architecture=Ds3NetConfig(width=8), normalization=Normalization("range", background=-1.0), targets=("t1c",)
        ),
        RegressionSpec(normalization=Normalization("volume", background=None)),
        RegressionSpec(normalization=Normalization("dataset", intensities=BRASYN25_INTENSITIES)),
        RefinerSpec(architecture=EnhancerConfig(), normalization=VOLUME, window=(32, 32, 64), overlap=0.25),
        RefinerSpec(
            architecture=RefinerConfig(decoder_layers=2),
            normalization=VOLUME,
            window=(32, 32, 32),
            overlap=0.1,
            first_stage=FirstStage(model="unet", sha256="0" * 64, fusion="axial-mean"),
        ),
    ],
)
def test_json_and_back(spec):
    assert SPEC.validate_json(SPEC.dump_json(spec)) == spec


def test_views_and_targets_have_one_order():
    spec = generator(views=("coronal", "axial"), targets=("t2w", "t1c"))
    assert spec.views == ("axial", "coronal")
    assert spec.targets == ("t1c", "t2w")


@pytest.mark.parametrize(
    "form",
    [
        {"kind": "oracle"},
        {"kind": "regression", "normalization": {"scheme": "volume"}, "magic": 1},
        {"kind": "regression", "normalization": {"scheme": "dataset"}},
        {"kind": "regression", "normalization": {"scheme": "guess"}},
    ],
)
def test_what_is_not_known_is_refused(form):
    with pytest.raises(ValidationError):
        SPEC.validate_python(form)


def test_an_unknown_key_of_an_architecture_is_refused():
    form = generator().model_dump(mode="json")
    form["architecture"]["mamba"] = True
    with pytest.raises(ValidationError, match="mamba"):
        SPEC.validate_python(form)


def test_an_intensity_code_needs_its_prior_and_its_scale():
    code = UNetConfig(intensity_code=True)
    for fields in ({"normalization": Normalization("range")}, {"intensity_prior": KAIST24_PRIOR}):
        with pytest.raises(ValidationError, match="needs intensity_prior and the normalization `range`"):
            generator(architecture=code, **fields)


def test_an_older_import_has_the_released_gate():
    """Until 0.2.0 nothing but imported networks had a table of positions, and none stated its gate."""
    form = generator(architecture=HfGanConfig.released()).model_dump(mode="json")
    assert form["architecture"].pop("gate") == "released"
    assert SPEC.validate_python(form).architecture.gate == "released"
    stated = generator(architecture=HfGanConfig(position="learned"))
    assert SPEC.validate_python(stated.model_dump(mode="json")) == stated
    assert stated.architecture.gate == "channel"


@pytest.mark.parametrize(
    "fields",
    [
        {"architecture": UNetConfig(widths=(10**9,))},
        {"architecture": UNetConfig(widths=(8, -1))},
        {"architecture": UNetConfig(widths=())},
        {"architecture": UNetConfig(widths=(8,) * 9)},
        {"architecture": UNetConfig(background=float("nan"))},
        {"architecture": UNetConfig(confidence_scale=float("inf"))},
        {"architecture": HfGanConfig(width=10**9)},
        {"normalization": Normalization("volume", percentile=101)},
        {"normalization": Normalization("volume", background=float("inf"))},
        {"canvas": Canvas({"axial": (48, 64)})},
        {"canvas": Canvas({"axial": (48, 64), "coronal": (16 * 10**8, 16)})},
        {"views": ()},
        {"targets": ()},
        {"contrast": 2.0},
        {"intensity_prior": IntensityPrior({"t1c": 0.1}, {"t1c": 0.1})},
        {"intensity_prior": IntensityPrior(dict.fromkeys(MODALITIES, float("nan")), dict.fromkeys(MODALITIES, 0.1))},
    ],
)
def test_what_no_model_can_be_is_refused(fields):
    with pytest.raises(ValidationError):
        generator(**fields)


DS3NET = {
    "architecture": Ds3NetConfig(width=8),
    "normalization": Normalization("range", background=-1.0),
    "targets": ("t2f",),
}


@pytest.mark.parametrize(
    "fields",
    [
        {"targets": ("t1c", "t2f")},
        {"normalization": VOLUME},
        {"normalization": Normalization("range", background=0.0)},
        {"architecture": Ds3NetConfig(width=8, blocks=10**6)},
        {"architecture": Ds3NetConfig(width=8, sources=2)},
        {"architecture": Ds3NetConfig(width=10**9)},
    ],
)
def test_what_no_ds3net_can_be_is_refused(fields):
    with pytest.raises(ValidationError):
        generator(**{**DS3NET, **fields})


def test_a_ds3net_needs_all_other_sequences():
    assert generator(**DS3NET).needed == ("t1c", "t1n", "t2w")
    assert generator().needed == ()


@pytest.mark.parametrize("window", [(0, 32, 32), (32, 32, -1), (32, 32, 10**9)])
def test_a_window_has_sides(window):
    with pytest.raises(ValidationError):
        RefinerSpec(architecture=EnhancerConfig(), normalization=VOLUME, window=window, overlap=0.25)


def test_constants_of_a_data_set_are_intensities():
    wrong = {**BRASYN25_INTENSITIES, "t1c": replace(BRASYN25_INTENSITIES["t1c"], std=0.0)}
    with pytest.raises(ValidationError, match="std and clip above 0"):
        RegressionSpec(normalization=Normalization("dataset", intensities=wrong))


def test_it_cannot_be_changed():
    with pytest.raises(ValidationError):
        generator().contrast = 1.0


def test_a_confidence_head_is_known():
    assert not generator().has_confidence
    assert generator(architecture=UNetConfig(confidence="bounded")).has_confidence


def test_it_needs_no_torch():
    code = "import sys, app.registry.manifest; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


CGSAMR = {
    "architecture": CgSamrConfig(width=4),
    "normalization": Normalization("range", background=-1.0),
    "canvas": Canvas({"axial": (64, 64)}),
}


def test_a_cgsamr_is_read_as_it_was_written():
    spec = CgSamrSpec(**CGSAMR)
    assert SPEC.validate_python(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    "fields",
    [
        {"architecture": CgSamrConfig(sequences=5)},
        {"architecture": CgSamrConfig(labels=2)},
        {"architecture": CgSamrConfig(width=10**6)},
        {"normalization": VOLUME},
        {"canvas": Canvas({"coronal": (64, 64)})},
    ],
)
def test_what_no_cgsamr_can_be_is_refused(fields):
    with pytest.raises(ValidationError):
        CgSamrSpec(**{**CGSAMR, **fields})
