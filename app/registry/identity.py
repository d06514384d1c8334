"""Which model it is, for headers and records."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.core.constants import Modality


@dataclass(frozen=True)
class Identity:
    """Tell one model from every other, and from itself with changed files.

    Attributes:
        name: what `--model` calls it.
        sha256: of the file that makes the images; trainings are known by it.
        fingerprint: SHA-256 over all that changes an output: every file, and the manifest's entry.
    """

    name: str
    sha256: str
    fingerprint: str = field(default="", compare=False)

    def refined_by(self, refiner: Identity | None) -> str:
        """Give the fingerprint of what makes an image: this model, and a refiner where there is one."""
        own = self.fingerprint or self.sha256
        if refiner is None:
            return own
        return hashlib.sha256(f"{own} {refiner.fingerprint or refiner.sha256}".encode()).hexdigest()


def identity_record(identity: Identity, specialists: Mapping[Modality, Identity]) -> dict[str, Any]:
    """Give a model's name, fingerprint and checksum, and those of its specialists by sequence, for records."""
    return {**_told(identity), "specialists": {m: _told(other) for m, other in specialists.items()}}


def _told(identity: Identity) -> dict[str, str]:
    return {"name": identity.name, "sha256": identity.fingerprint, "weights_sha256": identity.sha256}
