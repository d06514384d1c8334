"""CG-SAMR and UCG-SAMR: whole exams made of a lesion's outline and an atlas, or of tissue maps.

Source: Guo et al., Anatomic and Molecular MR Image Synthesis Using Confidence Guided CNNs (IEEE TMI 2021); numbers of
equations are its. Widths and kernels stand in a supplement that was not at hand; docstrings say what was chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.networks.architectures import CgSamrConfig
    from app.networks.cgsamr.generator import CgSamr
    from app.networks.cgsamr.pix2pix import Pix2Pix
    from app.networks.cgsamr.unpaired import UcgSamr

    Simulator = CgSamr | UcgSamr | Pix2Pix


def new_simulator(config: CgSamrConfig) -> Simulator:
    """Build an untrained network of that shape."""
    from app.networks.cgsamr.generator import CgSamr
    from app.networks.cgsamr.pix2pix import Pix2Pix
    from app.networks.cgsamr.unpaired import UcgSamr

    if config.form == "ucgsamr":
        return UcgSamr(config)
    return CgSamr(config) if config.form == "cgsamr" else Pix2Pix(config)
