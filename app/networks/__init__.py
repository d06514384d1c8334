"""Define the networks; they read no files, and `architectures` needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from app.networks.architectures import Ds3NetConfig, GeneratorConfig
    from app.networks.ds3net.slice_generator import Ds3NetSliceGenerator
    from app.networks.hf_gan import HfGan
    from app.networks.unet import UNetGenerator


@overload
def new_generator(config: GeneratorConfig) -> HfGan | UNetGenerator: ...
@overload
def new_generator(config: Ds3NetConfig) -> Ds3NetSliceGenerator: ...
def new_generator(config: GeneratorConfig | Ds3NetConfig) -> HfGan | UNetGenerator | Ds3NetSliceGenerator:
    """Build an untrained generator of that shape."""
    from app.networks.architectures import Ds3NetConfig, UNetConfig
    from app.networks.ds3net.slice_generator import Ds3NetSliceGenerator
    from app.networks.hf_gan import HfGan
    from app.networks.unet import UNetGenerator

    if isinstance(config, Ds3NetConfig):
        return Ds3NetSliceGenerator(config)
    return UNetGenerator(config) if isinstance(config, UNetConfig) else HfGan(config)
