"""A checkpoint in the public format: key-for-key, shape-for-shape, and the same function."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from app.cli import main
from app.core.errors import WeightsError
from app.networks.hf_gan import HfGan
from app.registry.brasyn25 import from_brasyn25
from app.registry.checkpoints import load_generator
from app.registry.manifest import read_manifest

TABLES = Path(__file__).parent / "tables"


def _table(name: str) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for line in (TABLES / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        key, _, shape = line.partition(" ")
        shapes[key] = tuple(int(n) for n in shape.strip("()").split(",") if n.strip())
    return shapes


@pytest.mark.parametrize("name,view", [("brasyn25-grouped", False), ("brasyn25-grouped-view", True)])
def test_every_tensor_is_used_once_and_fits(name, view):
    released = {k: torch.empty(s, device="meta") for k, s in _table(name).items()}
    config, state = from_brasyn25(released)
    assert config.view_code is view
    with torch.device("meta"):
        expected = HfGan(config).state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in expected.items()}
    assert sum(v.numel() for v in state.values()) == sum(v.numel() for v in released.values())


def test_separate_projections_are_packed_in_the_right_order():
    released = {k: torch.zeros(s) for k, s in _table("brasyn25-grouped").items()}
    # The order of the file must not decide.
    released = dict(reversed(released.items()))
    for number, part in enumerate(("query", "key", "value"), start=1):
        released[f"middle.layers.2.attn.{part}.weight"] += number
    _, state = from_brasyn25(released)
    packed = state["infuser.blocks.2.attention.in_proj.weight"]
    assert [packed[640 * i].unique().item() for i in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_what_does_not_fit_is_named(fault):
    released = {k: torch.empty(s, device="meta") for k, s in _table("brasyn25-grouped").items()}
    if fault == "missing":
        del released["encoder.conv1.weight"]
    elif fault == "unknown":
        released["surprise"] = torch.empty(1)
    else:
        released["encoder.conv1.bias"] = torch.empty(3)
    named = {"missing": "fusion.mix.weight", "unknown": "surprise", "shape": "fusion.mix.bias"}[fault]
    with pytest.raises(WeightsError, match=named):
        from_brasyn25(released)


def test_attention_equals_torchs_own():
    """The view variant was trained with torch.nn.MultiheadAttention; packed weights must mean the same here."""
    from app.networks.infuser import SelfAttention

    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(64, 16, batch_first=True).eval()
    ours = SelfAttention(64, 16).eval()
    ours.in_proj.weight.data, ours.in_proj.bias.data = theirs.in_proj_weight.data, theirs.in_proj_bias.data
    ours.out_proj.load_state_dict(theirs.out_proj.state_dict())
    x = torch.randn(2, 9, 64)
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0], rtol=1e-5, atol=1e-6)


def test_import_weights_from_the_command_line(tmp_path):
    torch.manual_seed(0)
    released = {k: torch.randn(s) * 0.02 for k, s in _table("brasyn25-grouped-view").items()}
    file = tmp_path / "released.safetensors"
    save_file(released, file)
    code = main(
        ["import-weights", str(file), "--kind", "brasyn25", "--weights", str(tmp_path / "w"), "--name", "theirs"]
    )
    assert code == 0
    entry = read_manifest(tmp_path / "w").entry("theirs")
    network = load_generator(entry)
    assert not network.training
    assert entry.spec.normalization.scheme == "dataset"
    assert entry.spec.canvas.centre == "volume"
    ours = network.state_dict()["fusion.gates.4.attn.1.weight"]
    torch.testing.assert_close(ours, released["encoder.attn_blocks.4.attn.1.weight"])


def test_a_pickle_is_refused(tmp_path, capsys):
    file = tmp_path / "model.pth"
    torch.save({"a": torch.zeros(1)}, file)
    assert main(["import-weights", str(file), "--kind", "brasyn25", "--weights", str(tmp_path / "w")]) == 4
    assert "not a pickle" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()
