from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

from app.networks.architectures import (
    REFINER_PRESETS,
    EnhancerConfig,
    HfGanConfig,
    RefinerConfig,
    Segmenter2dConfig,
    Segmenter3dConfig,
    UNetConfig,
)

CONFIGS = (HfGanConfig, UNetConfig, Segmenter2dConfig, Segmenter3dConfig, RefinerConfig, EnhancerConfig)


@pytest.mark.parametrize("config", CONFIGS)
def test_json_and_back(config):
    form = TypeAdapter(config)
    assert form.validate_json(form.dump_json(config())) == config()


@pytest.mark.parametrize("config", CONFIGS)
def test_an_unknown_key_is_refused(config):
    with pytest.raises(ValidationError, match="more_layers"):
        TypeAdapter(config).validate_python({"more_layers": 3})


def test_the_released_network_depends_on_its_view_code():
    assert HfGanConfig.released().activation == "gelu"
    assert HfGanConfig.released(view_code=False).activation == "silu"
    assert HfGanConfig(width=16).widths == (16, 32, 64, 128, 160)


def test_presets_of_the_refiner_are_named_by_their_finest_width():
    assert all(widths[0] == name for name, widths in REFINER_PRESETS.items())


def test_shapes_need_no_torch():
    code = "import sys, app.networks.architectures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
