from __future__ import annotations

import torch
from torch import nn

from app.preprocessing.slices import MULTIPLE
from app.training.placement import choose_volume_precision, has_bf16, placed, placed3d


def test_shallow_volumes_are_computed_in_float32_on_a_processor():
    cpu = torch.device("cpu")
    assert choose_volume_precision("bf16", cpu, 2 * MULTIPLE) == torch.float32
    assert choose_volume_precision("bf16", cpu, 3 * MULTIPLE) == torch.bfloat16
    assert choose_volume_precision("fp32", cpu, 3 * MULTIPLE) == torch.float32
    native = torch.bfloat16 if has_bf16(cpu) else torch.float32
    assert choose_volume_precision("auto", cpu, 3 * MULTIPLE) == native
    assert choose_volume_precision("bf16", torch.device("cuda"), MULTIPLE) == torch.bfloat16


def test_weights_lie_in_the_layout_that_convolutions_like():
    cpu = torch.device("cpu")
    flat, deep = placed(nn.Conv2d(8, 8, 3), cpu), placed3d(nn.Conv3d(8, 8, 3), cpu)
    assert flat.weight.is_contiguous(memory_format=torch.channels_last)
    assert deep.weight.is_contiguous(memory_format=torch.channels_last_3d)
