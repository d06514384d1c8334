"""Write one self-contained page to scroll through the three planes of inputs, brain and result, side by side.

The page opens from disk and asks no network for anything: NiiVue and the images lie in it.
Source: NiiVue, https://github.com/niivue/niivue (BSD-2-Clause), `assets/LICENSE.niivue`.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from app.core.atomic_io import save_bytes
from app.core.constants import DISPLAY_NAMES, MODALITIES, Modality
from app.core.errors import WeightsError
from app.core.plain_text import printable
from app.core.types import Affine, MaskArray, VolumeArray
from app.data.nifti_reader import load_volume

#: NiiVue as npm publishes it, packed.
ASSET: Final = Path(__file__).parent / "assets" / "niivue-0.69.0.umd.js.gz"
ASSET_SHA256: Final = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
#: Voxels that are shown around the brain.
_MARGIN: Final = 24
_PERCENTILE: Final = 99.5
#: Of volumes with 1 mm voxels, axes L, P, S.
_PLAIN: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>@TITLE@</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; \
style-src 'unsafe-inline'; img-src data: blob:; connect-src data: blob:; font-src data: blob:; worker-src blob:">
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 0; background: #111; color: #ddd; }
header { padding: .5rem 1rem; } header strong { color: #ff8a80; } label { margin-left: 1rem; }
main { display: flex; gap: 4px; height: calc(100vh - 4.5rem); }
figure { flex: 1; margin: 0; min-width: 0; display: flex; flex-direction: column; }
figcaption { text-align: center; padding: .2rem; } .made figcaption { color: #ff8a80; }
.place { position: relative; flex: 1; min-height: 0; } canvas { position: absolute; width: 100%; height: 100%; }
</style></head><body data-state="loading">
<header>@TITLE@ <strong>Synthetic images: research use, not for diagnosis.</strong>
<label><input type="checkbox" id="brain" checked> the brain's outline</label>
<label>Click or drag to move, scroll to leaf through a plane. The patient's right is on the left.</label>
<span id="said"></span></header>
<main></main>
<script type="application/json" id="volumes">@VOLUMES@</script>
<script>@NIIVUE@</script>
<script>
"use strict";
(async () => {
  const {columns, brain} = JSON.parse(document.getElementById("volumes").textContent);
  const views = [];
  for (const [number, column] of columns.entries()) {
    const figure = document.createElement("figure");
    figure.className = column.made ? "made" : "";
    const caption = document.createElement("figcaption");
    caption.textContent = column.name;
    const place = document.createElement("div");
    place.className = "place";
    const canvas = document.createElement("canvas");
    canvas.id = "c" + number;
    place.append(canvas);
    figure.append(caption, place);
    document.querySelector("main").append(figure);
    const view = new niivue.Niivue({
      isRadiologicalConvention: true, isCornerOrientationText: true, show3Dcrosshair: false, crosshairWidth: 0.5,
      backColor: [0, 0, 0, 1], multiplanarLayout: niivue.MULTIPLANAR_TYPE.COLUMN, loadingText: "",
      multiplanarShowRender: niivue.SHOW_RENDER.NEVER, sliceType: niivue.SLICE_TYPE.MULTIPLANAR,
    });
    await view.attachToCanvas(canvas);
    if (!view.gl) throw new Error("this browser has no WebGL 2");
    view.addVolume(await niivue.NVImage.loadFromBase64(
      {base64: column.data, name: number + ".nii.gz", colormap: "gray", cal_min: 0, cal_max: 255}));
    view.addVolume(await niivue.NVImage.loadFromBase64(
      {base64: brain, name: "brain" + number + ".nii.gz", colormap: "green", opacity: 0.6, cal_min: 0.5, cal_max: 1}));
    views.push(view);
  }
  for (const view of views) view.broadcastTo(views.filter((v) => v !== view), {"2d": true, "3d": false});
  document.getElementById("brain").onchange = (event) => {
    for (const view of views) view.setOpacity(1, event.target.checked ? 0.6 : 0);
  };
  for (const view of views) view.drawScene();
  document.body.dataset.state = "ready";
})().catch((error) => {
  document.body.dataset.state = "failed";
  document.getElementById("said").textContent = "The images cannot be shown: " + error.message;
});
</script></body></html>
"""


@dataclass(frozen=True)
class ViewColumn:
    """Hold one volume of the page.

    Attributes:
        volume: float32, axes L, P, S, background 0 or air.
        made: whether it is synthetic.
    """

    name: str
    volume: VolumeArray
    made: bool = False


def viewer_page(columns: list[ViewColumn], brain: MaskArray, title: str, affine: Affine = _PLAIN) -> bytes:
    """Make the page.

    Args:
        columns: of one shape, which the brain has too.
        affine: from voxels to NIfTI's millimetres.

    Raises:
        WeightsError: NiiVue's file is missing or damaged.
    """
    box = _box_of(brain)
    shifted = affine.copy()
    shifted[:3, 3] = (affine @ [*(side.start for side in box), 1.0])[:3]
    content = {
        "columns": [{"name": c.name, "made": c.made, "data": _packed(_grey(c.volume[box]), shifted)} for c in columns],
        "brain": _packed(_outline(brain[box]), shifted),
    }
    parts = {
        "TITLE": html.escape(printable(title)).replace("@", "&#64;"),
        # Nothing in a name may end the script that holds it.
        "VOLUMES": json.dumps(content).replace("<", "\\u003c"),
        "NIIVUE": _niivue().replace("</script", "<\\/script"),
    }
    page = _PAGE
    for name, text in parts.items():
        page = page.replace(f"@{name}@", text)
    return page.encode()


def write_clinic_view(
    aligned: Mapping[Modality, VolumeArray],
    brain: MaskArray,
    target: Modality,
    synthesis: VolumeArray,
    title: str,
    path: Path,
) -> None:
    """Write the page of an exam as scanned.

    Args:
        aligned, synthesis: float32, axes L, P, S, 1 mm, one shape.

    Raises:
        OutputError: it cannot be written.
        WeightsError: NiiVue's file is missing or damaged.
    """
    columns = [ViewColumn(DISPLAY_NAMES[m], aligned[m]) for m in MODALITIES if m in aligned]
    columns.append(ViewColumn(f"{DISPLAY_NAMES[target]} (synthesis)", synthesis, made=True))
    save_bytes(viewer_page(columns, brain, title), path)


def write_files_view(inputs: Mapping[Modality, Path], target: Modality, made: Path, title: str, path: Path) -> None:
    """Write the page of images on one grid.

    Raises:
        VolumeError: one cannot be read.
        ValueError: they have several shapes.
        OutputError: the page cannot be written.
        WeightsError: NiiVue's file is missing or damaged.
    """
    volumes = {m: load_volume(inputs[m]) for m in MODALITIES if m in inputs}
    synthesis = load_volume(made, strict=True)
    if any(v.data.shape != synthesis.data.shape for v in volumes.values()):
        raise ValueError(f"{made} and its inputs have several shapes")
    columns = [ViewColumn(DISPLAY_NAMES[m], v.data) for m, v in volumes.items()]
    columns.append(ViewColumn(f"{DISPLAY_NAMES[target]} (synthesis)", synthesis.data, made=True))
    save_bytes(viewer_page(columns, synthesis.data > 0, title, synthesis.grid.lps_affine), path)


def _niivue() -> str:
    """Read NiiVue, and check that it is the release that is meant.

    Raises:
        WeightsError: it is missing or damaged.
    """
    try:
        content = gzip.decompress(ASSET.read_bytes())
    except (OSError, EOFError) as error:
        raise WeightsError(f"{ASSET} cannot be read ({error}); install Tetrad again, or leave out --view.") from None
    if hashlib.sha256(content).hexdigest() != ASSET_SHA256:
        raise WeightsError(f"{ASSET} is not NiiVue 0.69.0; install Tetrad again, or leave out --view.")
    return content.decode()


def _outline(brain: MaskArray) -> NDArray[np.uint8]:
    """Leave the outermost voxels of a mask."""
    from scipy import ndimage

    return np.asarray(brain ^ ndimage.binary_erosion(brain), dtype=np.uint8)


def _box_of(brain: MaskArray) -> tuple[slice, ...]:
    """Find the brain's box with a margin; all where there is no brain."""
    if not brain.any():
        return tuple(slice(0, n) for n in brain.shape)
    box = []
    for axis, length in enumerate(brain.shape):
        planes = np.flatnonzero(brain.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append(slice(max(0, int(planes[0]) - _MARGIN), min(length, int(planes[-1]) + 1 + _MARGIN)))
    return tuple(box)


def _grey(volume: VolumeArray) -> NDArray[np.uint8]:
    """Bring a volume to 256 grey levels."""
    content = volume[volume > 0]
    peak = float(np.percentile(content, _PERCENTILE)) if content.size else 1.0
    return np.asarray(np.rint(np.clip(volume / max(peak, 1e-6), 0, 1) * 255), dtype=np.uint8)


def _packed(values: NDArray[np.uint8], affine: Affine) -> str:
    image = nib.Nifti1Image(values, affine)
    return base64.b64encode(gzip.compress(image.to_bytes(), 6, mtime=0)).decode()
