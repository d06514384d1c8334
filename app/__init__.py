"""Tetrad: completes the four-sequence brain tumour MRI exam (T1n, T1c, T2w, T2-FLAIR)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["Segmenter", "Synthesizer", "__version__"]

if TYPE_CHECKING:
    from app.inference.synthesizer import Synthesizer
    from app.inference.tumour.segmenter import Segmenter


def __getattr__(name: str) -> Any:
    # They need the numerical stack; `--help` and `check` must not pay for it.
    if name == "Synthesizer":
        from app.inference.synthesizer import Synthesizer

        return Synthesizer
    if name == "Segmenter":
        from app.inference.tumour.segmenter import Segmenter

        return Segmenter
    raise AttributeError(f"module 'app' has no attribute {name!r}")
