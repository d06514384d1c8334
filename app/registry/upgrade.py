"""Brings folders of weights that version 0.1 wrote to today's form.

There a model's entry held everything in one table, and each training repeated the whole history before it. A recipe was
recorded with the keys of every task; what its own task never used, or left at its default, is not taken over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from app.core.atomic_io import save_together
from app.core.constants import MODALITIES
from app.core.errors import WeightsError
from app.core.json_text import readable_json
from app.registry.lineage import LINEAGE, Lineage, ModelScores, TrainingRecord
from app.registry.manifest import (
    MANIFEST,
    SCHEMA,
    FileRecord,
    Manifest,
    encoded,
    read_form,
    read_manifest,
    remove_unused,
)

_KINDS: Final = {"segmenter": "segmenter2d", "judge": "segmenter3d"}
_TASKS: Final = {"segmentation": "segmentation2d", "judging": "segmentation3d"}
#: Fields of a specification that keep their names.
_SAME: Final = ("views", "contrast", "fusion", "flip_average", "refiner", "refine", "specialists", "window", "overlap")
_RENAMED: Final = {
    "data.makes": "data.targets",
    "schedule.targets": "schedule.targets_per_batch",
    "losses.judge": "losses.discriminator",
    "losses.judge_class": "losses.discriminator_class",
}
#: Defaults of version 0.1, by section.
_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "network": {"kind": "hybrid", "preset": "half", "widths": [32, 64, 128, 256], "fine_skip": False,
                "discriminator_width": 64, "confidence": "none", "frozen": False, "intensity_prior": "none"},
    "data": {"makes": list(MODALITIES), "views": ["axial", "sagittal", "coronal"], "axial": [144, 176],
             "sagittal": [176, 144], "coronal": [144, 144], "min_brain_pixels": 2000, "single_missing": 1.0,
             "tumour_share": 0.0, "min_tumour_share": 0.001, "balance_types": True, "held_out": 0,
             "patch": [96, 96, 96]},
    "augmentation": {"flip": 0.5, "shift": 6, "rotate": 0.0, "zoom": 0.0, "contrast": 0.1, "brightness": 0.1,
                     "gamma": 0.0, "bias": 0.0, "noise": 0.0, "thick": 0.0, "transplant": 0.0, "hidden": 0.0,
                     "fade": 0.0, "poor": 0.0, "recolour_t1n": 0.0, "recolour_t2f": 0.0},
    "losses": {"l1": 10.0, "adversarial": 0.25, "classification": 0.25, "judge": 1.0, "judge_class": 1.0,
               "feature": 1.0, "cycle": 1.0, "ssim": 5.0, "ssim_tissue": "dual", "tversky": 5.0, "dice": 0.0,
               "enhancing": 0.0, "confidence": 1.0, "segmentation": 1.0, "entropy": 1.0},
    "refinement": {"width": 16, "shared_encoder": False, "overlap": 0.1, "blur": 0.5, "drift": 0.1, "contrast": 0.1,
                   "noise": 0.05},
    "optimizer": {"name": "adam", "learning_rate": 5e-4, "reference_batch": 64, "discriminator_rate": 1.0,
                  "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "clip_norm": 0.1, "ema": 0.999},
    "schedule": {"precision": "auto", "batch_size": 64, "targets": 4, "steps": 0, "budget_minutes": 0.0,
                 "warmup": 0.03, "epoch_steps": 0, "validate_every": 1,
                 "validation_views": ["axial", "sagittal", "coronal"], "validation_subjects": 6},
    "output": {"contrast": 0.5, "fusion": "mean", "flip_average": False},
}  # fmt: skip
_VOLUMES: Final = ("data.patch", "data.tumour_share", "data.held_out")
_SCANNERS: Final = tuple(
    f"augmentation.{key}"
    for key in ("flip", "rotate", "zoom", "contrast", "brightness", "gamma", "bias", "noise", "thick")
)
_RUN: Final = [
    "optimizer.name",
    "optimizer.learning_rate",
    "optimizer.reference_batch",
    "optimizer.beta1",
    "optimizer.beta2",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "optimizer.ema",
    "schedule.precision",
    "schedule.batch_size",
    "schedule.steps",
    "schedule.budget_minutes",
    "schedule.warmup",
    "schedule.epoch_steps",
    "schedule.validate_every",
    "schedule.validation_subjects",
]
#: Keys, or whole sections, that each task of version 0.1 used; the task `synthesis` all but those of the others.
_USED: Final[dict[str, tuple[str, ...]]] = {
    "segmentation": (
        *_RUN, *_SCANNERS, "augmentation.shift", "data.views", "data.axial", "data.sagittal", "data.coronal",
        "data.min_brain_pixels", "data.tumour_share", "data.min_tumour_share", "data.balance_types", "data.held_out",
        "losses.segmentation", "losses.entropy",
    ),
    "judging": (*_RUN, *_SCANNERS, *_VOLUMES, "losses.segmentation", "losses.entropy"),
    "refinement": (
        *_RUN, *_SCANNERS, *_VOLUMES, "data.single_missing", "losses.l1", "losses.ssim", "losses.ssim_tissue",
        "losses.dice", "refinement", "schedule.targets", "output.contrast",
    ),
    "enhancement": (
        *_RUN, *_SCANNERS, *_VOLUMES, "data.single_missing", "augmentation.recolour_t1n", "augmentation.recolour_t2f",
        "losses.entropy", "losses.dice", "losses.enhancing", "refinement.overlap",
    ),
}  # fmt: skip
_NOT_SYNTHESIS: Final = ("refinement", "data.patch", "losses.dice", "losses.segmentation", "losses.entropy")


def upgrade_folder(folder: Path) -> int:
    """Rewrite the manifest and the lineage of a folder of version 0.1; its weights stay as they are.

    Returns:
        How many models it has.

    Raises:
        WeightsError: the folder has no manifest of version 0.1, or is damaged.
        OutputError: it cannot be written to; it stays as it was.
    """
    form = read_form(folder)
    if form["schema"] == SCHEMA:
        raise WeightsError(f"{folder} is of today's form already; there is nothing to upgrade.")
    before = read_manifest(folder)
    after, shared = _with_shared_files(before)
    texts = {folder / LINEAGE: readable_json(upgraded(form)[1].to_json()), folder / MANIFEST: encoded(after)}
    save_together({**shared, **texts})
    remove_unused(before, after)
    return len(after.entries)


def upgraded(form: Mapping[str, Any]) -> tuple[dict[str, Any], Lineage]:
    """Translate a manifest of version 0.1 into today's form and its lineage.

    Raises:
        KeyError, TypeError, ValueError: it is damaged.
    """
    models, trainings = {}, dict[str, TrainingRecord]()
    for name, entry in form["models"].items():
        models[name] = _spec_of(name, entry)
        _add_training(trainings, name, _main_sha256(entry), entry)
    today = {"schema": SCHEMA, "default": form.get("default"), "fallback": form.get("fallback"), "models": models}
    return today, Lineage(trainings=trainings)


def _with_shared_files(manifest: Manifest) -> tuple[Manifest, dict[Path, bytes]]:
    """The manifest with every intensity file once, named by its checksum; and those files."""
    entries, contents = {}, {}
    for name, entry in manifest.entries.items():
        files = dict(entry.files)
        if "intensity" in files:
            content = entry.path_of("intensity").read_bytes()
            stated = files["intensity"]
            files["intensity"] = FileRecord(
                path=f"intensity-{stated.sha256[:8]}.json", sha256=stated.sha256, bytes=stated.bytes
            )
            contents[manifest.folder / files["intensity"].path] = content
        entries[name] = replace(entry, files=files)
    return replace(manifest, entries=entries), contents


def _spec_of(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry's files and specification in today's words."""
    kind = _KINDS.get(entry["kind"], entry["kind"])
    spec: dict[str, Any] = {"kind": kind, "files": entry["files"], "normalization": _normalization(entry)}
    spec |= {key: entry[key] for key in _SAME if key in entry}
    if "makes" in entry:
        spec["targets"] = [m for m in MODALITIES if m in entry["makes"]]
    if "canvas" in entry:
        spec["canvas"] = entry["canvas"]
    if "architecture" in entry:
        spec["architecture"] = _architecture(kind, entry["architecture"])
    if "target_medians" in entry:
        raise WeightsError(f"model {name!r} has an intensity code of version 0.1, which no longer exists; "
                           "take it out of the manifest and train it anew.")  # fmt: skip
    if "stage_one" in entry:
        first = entry["stage_one"]
        spec["first_stage"] = {"model": first["model"], "sha256": first["sha256"], "fusion": first.get("joined")}
    return spec


def _normalization(entry: Mapping[str, Any]) -> dict[str, Any]:
    stated = dict(entry["normalization"])
    if "intensities" in stated:
        keys = ("mean", "std", "clip")
        stated["intensities"] = {m: dict(zip(keys, v, strict=True)) for m, v in stated["intensities"].items()}
    return stated


def _architecture(kind: str, stated: Mapping[str, Any]) -> dict[str, Any]:
    """The network's shape, which names the network where there are several of a kind."""
    shape = {key: value for key, value in stated.items() if key not in {"fine_skip", "shared_encoder"}}
    if kind == "generator":
        shape.setdefault("network", "hf_gan")
    elif kind == "refiner":
        shape.setdefault("network", "refiner")
    return shape


def _add_training(trainings: dict[str, TrainingRecord], model: str, sha256: str, entry: Mapping[str, Any]) -> None:
    """Add the training that an entry tells of, and all before it."""
    told = entry.get("training", {})
    first, teacher, start = entry.get("stage_one"), told.get("teacher"), told.get("started_from")
    for origin in filter(None, (first, teacher, start)):
        _add_training(trainings, origin["model"], origin["sha256"], origin)
    recipe = told.get("recipe", {})
    if sha256 in trainings and not (told or entry.get("scores")):
        return
    trainings[sha256] = TrainingRecord(
        model=model,
        task=_TASKS.get(recipe.get("task", ""), recipe.get("task")),
        recipe=_recipe(recipe) if recipe else told.get("config", {}),
        subjects=tuple(told.get("names", ())),
        seed=told.get("seed"),
        steps=told.get("steps"),
        slices=told.get("slices"),
        minutes=told.get("minutes"),
        started_from=start["sha256"] if start else None,
        first_stage=first["sha256"] if first else None,
        teacher=teacher["sha256"] if teacher else None,
        source=entry.get("origin"),
        scores=_scores(entry.get("scores")) or getattr(trainings.get(sha256), "scores", None),
    )


def _recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Keys that the recipe's task used and that differ from their defaults, in today's words."""
    task, kept = recipe["task"], {"note": recipe["note"]} if recipe.get("note") else {}
    sections: dict[str, Any] = kept
    for section, defaults in _DEFAULTS.items():
        for key, value in recipe.get(section, {}).items():
            name = f"{section}.{key}"
            if value != defaults.get(key) and _is_used(task, section, name):
                section_name, _, new = _RENAMED.get(name, name).partition(".")
                sections.setdefault(section_name, {})[new] = value
    return sections


def _is_used(task: str, section: str, name: str) -> bool:
    if task == "synthesis":
        return not {section, name} & set(_NOT_SYNTHESIS)
    return bool({section, name} & set(_USED[task]))


def _scores(stated: Mapping[str, Any] | None) -> ModelScores | None:
    if not stated:
        return None
    by_target = {m: stated[m] for m in MODALITIES if m in stated}
    return ModelScores(
        subjects=tuple(stated["subjects"]), mean=stated["mean"], by_target=by_target, unrefined=stated.get("unrefined")
    )


def _main_sha256(entry: Mapping[str, Any]) -> str:
    files = entry["files"]
    return str(next(files[role]["sha256"] for role in ("coefficients", "torch", "onnx") if role in files))
