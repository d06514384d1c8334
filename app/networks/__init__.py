"""Define the networks; they read no files, and `architectures` needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.networks.architectures import GeneratorConfig
    from app.networks.hf_gan import HfGan
    from app.networks.unet import UNetGenerator


def new_generator(config: GeneratorConfig) -> HfGan | UNetGenerator:
    """Build an untrained generator of that shape."""
    from app.networks.architectures import UNetConfig
    from app.networks.hf_gan import HfGan
    from app.networks.unet import UNetGenerator

    return UNetGenerator(config) if isinstance(config, UNetConfig) else HfGan(config)
