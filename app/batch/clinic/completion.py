"""Complete one exam as scanned, from its folder to the files of its result, and send these where that is wanted."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.batch.clinic.results import (
    Forms,
    Places,
    is_good_enough,
    is_whole,
    read_record,
    request_of,
    send_result,
    write_result,
)
from app.core.constants import Modality
from app.core.errors import UsageError
from app.dicom.destination import Destination, require_network
from app.inference.clinic.pipeline import complete_exam, maker_of
from app.inference.clinic.scans import choose_target
from app.inference.clinic.study import Study
from app.inference.models import Model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wish:
    """Say what is wanted of an exam.

    Attributes:
        target: the sequence to make; the one that lacks if None.
        reference: whose grid the result has; the one of the same weighting if None.
        mask: of the brain; found if None.
        mask_of: the sequence that it was drawn on; any with its grid if None.
        send_to: where the derived series goes; nowhere if None.
        overwrite: make a result again that is there.
    """

    target: Modality | None = None
    reference: Modality | None = None
    mask: Path | None = None
    mask_of: Modality | None = None
    forms: Forms = field(default_factory=Forms)
    send_to: Destination | None = None
    overwrite: bool = False


def check_wish(study: Study, wish: Wish) -> None:
    """Check, before any work, that a study can get what is wanted.

    Raises:
        UsageError: a series is wanted of a study without DICOM, or what sends it is not installed.
    """
    if wish.send_to is not None:
        require_network()
    if wish.forms.dicom and not study.series:
        what = "--dicom" if wish.send_to is None else "--send"
        raise UsageError(f"{study.name} holds no DICOM, so no series can be derived from it; leave out {what}.")


def complete_study(study: Study, model: Model, wish: Wish, folder: Path) -> Places:
    """Make what an exam lacks, write it, and send it where that is wanted.

    Raises:
        UsageError: another result of that name is there: perhaps another patient's.
        CaseError, VolumeError: the exam is refused; nothing is written or sent.
        SendError: the result is written, and could not be sent.
    """
    check_wish(study, wish)
    target = choose_target(study.readers, wish.target)
    sequences = {m: read() for m, read in study.readers.items() if m != target}
    maker = maker_of(model, target, sequences)
    request = request_of(sequences, maker, wish.reference, wish.mask, wish.mask_of)
    places = Places(folder, f"{study.name}-{target}")
    if not wish.overwrite and _is_there(places, request, wish.forms, maker.min_expected_ssim):
        log.info("%s is there already, kept (--overwrite makes it again).", places.image)
    else:
        done = complete_exam(
            sequences, model, target=target, reference=wish.reference, mask=wish.mask, mask_of=wish.mask_of
        )
        _warn([*study.warnings, *done.warnings])
        write_result(study, done, request, places, wish.forms)
        log.info("%s: %s made from %s on the grid of %s.", study.name, target, ", ".join(done.aligned), done.reference)
    if wish.send_to is not None:
        if send_result(places, wish.send_to):
            log.info("%s: sent to %s.", places.series, wish.send_to)
        else:
            log.info("%s was sent to %s before.", places.series, wish.send_to)
    return places


def _is_there(places: Places, request: object, forms: Forms, least: float | None) -> bool:
    """Tell whether the result of just this request is there, and good enough.

    Raises:
        UsageError: another one has its name: perhaps another patient's.
    """
    if not places.image.exists():
        return False
    record = read_record(places.record)
    if record.get("request") != request:
        raise UsageError(
            f"{places.image} was made from other inputs or in another way; --overwrite makes it again, --id or another "
            "folder keeps both."
        )
    return is_whole(places, forms) and is_good_enough(record, least)


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        log.warning("%s", warning)
