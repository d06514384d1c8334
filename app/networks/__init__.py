"""Networks, which read no files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.networks.hf_gan import Generator, GeneratorConfig
    from app.networks.unet import PlainConfig, PlainGenerator


def config_from_json(form: Mapping[str, Any]) -> GeneratorConfig | PlainConfig:
    """A generator's shape from the manifest's form, which names the network unless it is the hybrid-fusion one."""
    from app.networks.hf_gan import GeneratorConfig
    from app.networks.unet import PlainConfig

    if form.get("network", "hybrid") == "unet":
        return PlainConfig.from_json(form)
    return GeneratorConfig(**form)


def new_generator(config: GeneratorConfig | PlainConfig) -> Generator | PlainGenerator:
    """An untrained generator of that shape."""
    from app.networks.hf_gan import Generator
    from app.networks.unet import PlainConfig, PlainGenerator

    return PlainGenerator(config) if isinstance(config, PlainConfig) else Generator(config)
