"""A checkpoint in the public format: key-for-key, shape-for-shape, and the same function."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np
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


def _separate(table: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The table of a checkpoint with four encoders instead of a grouped one, in the form of several processes."""
    shapes, group = {}, "encoder.encoder_middles."
    for name, shape in table.items():
        if name.startswith(group):
            for i in range(4):
                shapes[f"module.{group}{i}.{name.removeprefix(group)}"] = (shape[0] // 4, *shape[1:])
        else:
            shapes[f"module.{name}"] = shape
    return shapes


def _drawn(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Weights that anyone can draw again, by a tensor's name in the release."""
    draw = np.random.default_rng(zlib.crc32(name.removeprefix("module.").encode()))
    values = draw.standard_normal(shape, dtype=np.float32)
    if "position" in name or len(shape) == 1:
        values *= np.float32(0.3)
        if len(shape) == 1 and name.endswith("weight"):
            values += 1
    else:
        values *= np.float32(1.5 / np.sqrt(np.prod(shape[1:])))
    return torch.from_numpy(values)


class TestParity:
    """An imported checkpoint computes at full size what the released code computes of the same weights.

    `brasyn25-parity.npz` holds numbers of the released code (float32, evaluation mode), of weights drawn as above. Keys
    are `FORM/presentIDS-targetM-viewV`: every fourth pixel of the image; with `-bottleneck`, every 64th channel.
    """

    FORMS = ("grouped-noview", "grouped-view", "separate-noview", "separate-view")
    REFERENCE = np.load(TABLES / "brasyn25-parity.npz")

    @pytest.mark.parametrize("form", FORMS)
    def test_full_size(self, form):
        encoders, view = form.split("-")
        table = _table("brasyn25-grouped-view" if view == "view" else "brasyn25-grouped")
        table = _separate(table) if encoders == "separate" else table
        config, state = from_brasyn25({name: _drawn(name, shape) for name, shape in table.items()})
        with torch.device("meta"):
            network = HfGan(config).eval()
        network.load_state_dict(state, assign=True)
        images = torch.from_numpy(np.random.default_rng(7).standard_normal((1, 4, 240, 240), dtype=np.float32))
        keys = [key for key in self.REFERENCE if key.startswith(f"{form}/") and not key.endswith("-bottleneck")]
        assert len(keys) == 2
        for key in keys:
            image, bottleneck = self._run(network, images, key)
            assert np.abs(image - self.REFERENCE[key]).max() < 1e-4
            if (stated := self.REFERENCE.get(f"{key}-bottleneck")) is not None:
                # As large as hundreds, so that float32 itself leaves more than 1e-4.
                assert np.abs(bottleneck - stated).max() < 1e-4 * np.abs(stated).mean()

    def _run(self, network, images, key):
        there, target, view = re.fullmatch(r".+/present(\d+)-target(\d)-view(\d)", key).groups()
        members = tuple(int(n) for n in there)
        present = torch.zeros(1, 4)
        present[:, list(members)] = 1
        with torch.inference_mode():
            fused, skips = network.encode(images, present, members)
            image = network.decode(fused, skips, torch.tensor([int(target)]), torch.tensor([int(view)]))
        return image[0, 0, ::4, ::4].numpy(), fused[0, ::64].numpy()


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


def test_separate_encoders_are_grouped_in_the_order_of_the_sequences():
    shapes = _separate(_table("brasyn25-grouped-view"))
    name = "module.encoder.encoder_middles.{}.downs.1.0.block1.conv.weight"
    released = {k: torch.empty(s, device="meta") for k, s in reversed(shapes.items())}
    released |= {name.format(i): torch.full(shapes[name.format(i)], float(i)) for i in (2, 0, 3, 1)}
    _, state = from_brasyn25(released)
    grouped = state["encoders.downs.1.0.block1.conv.weight"]
    assert [part.unique().item() for part in grouped.chunk(4)] == [0, 1, 2, 3]
    del released[name.format(2)]
    with pytest.raises(WeightsError, match=r"encoders\.downs\.1\.0\.block1\.conv\.weight has shape"):
        from_brasyn25(released)


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
    assert network.config.gate == entry.spec.architecture.gate == "released"
    ours = network.state_dict()["fusion.gates.4.attn.1.weight"]
    torch.testing.assert_close(ours, released["encoder.attn_blocks.4.attn.1.weight"])


def test_a_pickle_is_refused(tmp_path, capsys):
    file = tmp_path / "model.pth"
    torch.save({"a": torch.zeros(1)}, file)
    assert main(["import-weights", str(file), "--kind", "brasyn25", "--weights", str(tmp_path / "w")]) == 4
    assert "not a pickle" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()
