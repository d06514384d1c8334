"""Where and in which numbers the networks of a training compute."""

from __future__ import annotations

import functools
from typing import TypeVar

import torch
from torch import nn

from app.inference.device import Machine
from app.preprocessing.slices import MULTIPLE

Net = TypeVar("Net", bound=nn.Module)


def choose_precision(wanted: str, device: torch.device) -> torch.dtype:
    """Choose bfloat16 where the recipe and the device agree to it, float16 where it is asked for, else float32."""
    if wanted == "fp16":
        return torch.float16
    native = has_bf16(device) if wanted == "auto" else wanted == "bf16"
    return torch.bfloat16 if native else torch.float32


def choose_volume_precision(wanted: str, device: torch.device, depth: int) -> torch.dtype:
    """Choose as `choose_precision` does, for networks that halve volumes of a `depth` in voxels four times.

    On processors, bfloat16 weight gradients of 3D convolutions are wrong where an image is two voxels deep (oneDNN as
    of torch 2.13 leaves memory uninitialised). These networks get there from 16 or 32.
    """
    if device.type == "cpu" and depth <= 2 * MULTIPLE:
        return torch.float32
    return choose_precision(wanted, device)


@functools.cache
def has_bf16(device: torch.device) -> bool:
    """Check whether a device computes in bfloat16 natively."""
    machine = Machine.probe()
    return machine.gpu_bf16 if device.type == "cuda" else machine.cpu_bf16


def placed(network: Net, device: torch.device) -> Net:
    """Put a network on a device, in the layout that 2D convolutions like best."""
    return network.to(device).to(memory_format=torch.channels_last)  # type: ignore[no-any-return,call-overload]


def placed3d(network: Net, device: torch.device) -> Net:
    """Put a network on a device, in the layout that 3D convolutions like best."""
    return network.to(device).to(memory_format=torch.channels_last_3d)  # type: ignore[no-any-return,call-overload]
