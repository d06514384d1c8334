"""Find the segmentation of each subject below a folder."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from app.core.errors import UsageError
from app.data.cases import Case
from app.data.file_tree import images_below

log = logging.getLogger(__name__)

_SEGMENTATION = re.compile(r"^(?:(?P<subject>.+)[-_])?seg\.nii(\.gz)?$", re.IGNORECASE)


def find_segmentations(folder: Path, cases: Iterable[Case] = ()) -> dict[str, Path]:
    """Find the segmentation of each subject below a folder.

    It is named `<subject>-seg.nii[.gz]`, or `seg.nii[.gz]` in a folder of the subject's name.

    Args:
        cases: whose segmentation may have another name where a folder holds one subject and one segmentation; one
            beside the sequences goes before one elsewhere.

    Raises:
        UsageError: the folder does not exist.
    """
    if not folder.is_dir():
        raise UsageError(f"the folder {folder} does not exist.")
    masks: dict[str, list[Path]] = {}
    beside: dict[Path, list[Path]] = {}
    for path in images_below(folder):
        if match := _SEGMENTATION.match(path.name):
            masks.setdefault(match["subject"] or path.parent.name, []).append(path)
            beside.setdefault(path.parent, []).append(path)
    places = [(case, {file.parent for file in case.files.values()}) for case in cases]
    subjects = Counter(place for _, folders in places for place in folders)
    for case, folders in places:
        near = [path for place in sorted(folders) for path in beside.get(place, [])]
        alone = all(subjects[place] == 1 for place in folders)
        if own := [path for path in masks.get(case.subject, []) if path in near]:
            masks[case.subject] = own
        elif alone and len(near) == 1:
            masks[case.subject] = near
    for subject, paths in masks.items():
        if len(paths) > 1:
            log.warning("%s has %d segmentations; %s is used.", subject, len(paths), paths[0])
    return {subject: paths[0] for subject, paths in masks.items()}
