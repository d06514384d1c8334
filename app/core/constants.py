"""Define fixed facts of the field: sequences, views, labels and the anatomical frame.

Importing this module costs nothing: no third-party package is needed.
"""

from __future__ import annotations

from typing import Final, Literal

Modality = Literal["t1c", "t1n", "t2f", "t2w"]
View = Literal["axial", "sagittal", "coronal"]
#: What a file that Tetrad writes shows: a sequence, or the tumour's labels.
Content = Modality | Literal["seg"]
#: Stands where a sequence's name stands otherwise: in `<ID>-seg.nii.gz`, in records.
SEGMENTATION: Final = "seg"

#: The confidence head of a generator (`app.networks.confidence`). `none`: no head. `bounded`: a confidence c in (0, 1),
#: by a sigmoid; the expected error cannot fall below lambda. `likelihood`: c above 0, by an exponential, with lambda 1;
#: this is the Laplace likelihood itself.
Confidence = Literal["none", "bounded", "likelihood"]

#: Order of every four-wide axis, as in the challenge (alphabetical).
MODALITIES: Final[tuple[Modality, ...]] = ("t1c", "t1n", "t2f", "t2w")

#: Index of a view is the value of the network's view code (released networks use the same).
VIEWS: Final[tuple[View, ...]] = ("axial", "sagittal", "coronal")

#: What a person calls each sequence.
DISPLAY_NAMES: Final[dict[Modality, str]] = {"t1c": "T1c", "t1n": "T1n", "t2f": "T2-FLAIR", "t2w": "T2w"}

#: Whose header a synthesised sequence copies when that sequence is present: the one of the same
#: weighting, acquired with the most similar protocol.
REFERENCE_OF: Final[dict[Modality, Modality]] = {"t1c": "t1n", "t1n": "t1c", "t2w": "t2f", "t2f": "t2w"}

#: Every array inside Tetrad runs Left, Posterior, Superior: index 0 of axis 0 is the patient's right,
#: of axis 1 the front, of axis 2 the feet (the orientation of BraTS files).
ORIENTATION: Final[tuple[str, str, str]] = ("L", "P", "S")

#: Classes of a label map: background, necrotic core, oedema, enhancing tumour.
CLASSES: Final = 4

#: Tumour types that BraTS names (`BraTS-GLI-...`); another name is no type, and its code all zero.
TUMOUR_TYPES: Final = ("GLI", "MET", "MEN", "PED", "SSA")

#: Extent in voxels that an axis of an input may have.
MIN_EXTENT: Final = 32
MAX_EXTENT: Final = 512

#: Largest distance between the same corner of two volumes that count as one grid, in shortest edges of a voxel.
GRID_TOLERANCE: Final = 0.1

#: The 3D segmenter that measures exams. It must teach nobody: it would approve of its own lessons.
TUMOUR_SEGMENTER: Final = "tumour_segmenter"
