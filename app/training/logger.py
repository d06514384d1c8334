"""Logs of a run: `log.csv`, sample pictures, and TensorBoard events where tensorboard is installed."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.core.atomic_io import save_bytes
from app.core.errors import OutputError

log = logging.getLogger(__name__)


class RunLog:
    """Appends numbers to a run's folder; a resumed run goes on in the same files.

    Args:
        step: where the run stands; what was logged after it, by a sitting that was killed, is taken back.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        self._csv = folder / "log.csv"
        self._take_back(step)
        self._board: Any = None
        if find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        else:
            log.info("tensorboard is not installed: the run is logged to %s only.", self._csv)

    def _take_back(self, step: int) -> None:
        if not self._csv.exists():
            return
        rows = self._csv.read_text(encoding="utf-8").splitlines(keepends=True)
        # The last row may be torn.
        whole = [r for r in rows if r.endswith("\n")]
        kept = [r for r in whole if not (number := r.partition(",")[0]).isdigit() or int(number) <= step]
        if len(kept) < len(rows):
            save_bytes("".join(kept).encode(), self._csv)

    def write(self, step: int, minutes: float, values: Mapping[str, float]) -> None:
        """Write one row per value: step, minutes, name, value."""
        new = not self._csv.exists()
        try:
            with self._csv.open("a", newline="") as stream:
                writer = csv.writer(stream, lineterminator="\n")
                if new:
                    writer.writerow(["step", "minutes", "name", "value"])
                writer.writerows([step, f"{minutes:.3f}", name, f"{value:.6g}"] for name, value in values.items())
        except OSError as error:
            raise OutputError(
                f"{self._csv} cannot be written ({error.strerror}); free space, and go on with --resume."
            ) from None
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def picture(self, rows: Sequence[Sequence[NDArray[np.float32]]], path: Path, step: int) -> None:
        """Draw equally large images as a PNG.

        Each is shown in the range of its row's first image; values that are not finite are black.
        """
        lines = []
        for row in rows:
            low, high = np.percentile(row[0], [1, 99.5])
            # Rows of a slice run to the patient's left; pictures are looked at with the front up.
            scaled = [(np.nan_to_num(image, nan=low) - low) / max(high - low, 1e-6) for image in row]
            lines.append(np.hstack([image.clip(0, 1).T for image in scaled]))
        width = max(line.shape[1] for line in lines)
        sheet = np.vstack([np.pad(line, ((0, 2), (0, width - line.shape[1]))) for line in lines])
        import matplotlib.image

        buffer = io.BytesIO()
        matplotlib.image.imsave(buffer, sheet, cmap="gray", vmin=0, vmax=1, format="png")
        path.parent.mkdir(exist_ok=True)
        save_bytes(buffer.getvalue(), path)
        if self._board is not None:
            self._board.add_image("sample", sheet[None], step)

    def close(self) -> None:
        """Flush the events that are held."""
        if self._board is not None:
            self._board.close()
