"""Where the weights are. Importing this module needs no third-party package."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

#: The environment variable that names another folder of weights.
VARIABLE: Final = "TETRAD_WEIGHTS"


def builtin_weights(package: Path) -> Path:
    """Find the weights that come with Tetrad.

    Args:
        package: the folder of the package `app`. Installed it holds them, in the repository they lie beside it.
    """
    inside = package / "weights"
    return inside if inside.is_dir() else package.parent / "weights"


def choose_weights(environment: Mapping[str, str], builtin: Path) -> Path:
    """Choose the folder of weights: the one that `TETRAD_WEIGHTS` names, else the built-in one."""
    named = environment.get(VARIABLE)
    return Path(named).expanduser() if named else builtin


#: The weights that come with Tetrad, whatever the environment says.
BUILTIN_WEIGHTS: Final = builtin_weights(Path(__file__).resolve().parents[1])
#: The default of every `--weights`.
WEIGHTS_DIR: Final = choose_weights(os.environ, BUILTIN_WEIGHTS)


def advise_on(folder: Path) -> str:
    """Say what to do where a folder of weights has no manifest; the end of a sentence."""
    if os.environ.get(VARIABLE) and folder == WEIGHTS_DIR:
        return f"let {VARIABLE} name a weights folder with a manifest, or unset it"
    return "give a weights folder with a manifest"
