"""What a synthesised sequence is worth to whoever needs it: a frozen 3D segmenter finds the tumour with it.

The judge was trained on real sequences alone and teaches no generator: one that taught would be pleased with what it
taught.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.core.constants import MODALITIES, Modality
from app.core.errors import CaseError, VolumeError
from app.data.labels import REGIONS
from app.data.nifti_reader import Volume, load_volume
from app.evaluation.metrics.segmentation import segmentation_scores
from app.evaluation.scoring import Pair, Scores
from app.inference.segmentation import TumourSegmenter

log = logging.getLogger(__name__)

#: Group of the rows that no sequence was replaced in.
REAL: Final = "four real"
#: What is reported per region, with decimals.
COLUMNS: Final[dict[str, int]] = {"dice": 3, "nsd1": 3, "hd95": 1}


def score_downstream(pairs: Sequence[Pair], judge: TumourSegmenter) -> list[Scores]:
    """Segments every subject from its four real sequences, and with each synthesised one in the place of the real.

    Args:
        pairs: as `app.evaluation.scoring.find_pairs` gives them; those without a mask or the other three sequences
            become a problem.

    Returns:
        Per subject one row with modality `REAL`, and one per pair. Metrics against the true mask as
        `segmentation_scores` names them; those of a pair also, with `own_` before, against the judge's result on the
        four real sequences.
    """
    results: list[Scores] = []
    for subject, group in _by_subject(pairs).items():
        try:
            real = _load_real(group[0])
            truth = _load_truth(group[0], next(iter(real.values())))
            arrays = {m: v.data for m, v in real.items()}
            spacing = next(iter(real.values())).grid.lps_spacing
            own = judge.segment(arrays)
        except (VolumeError, CaseError) as error:
            results.append(Scores(subject, REAL, problems=[str(error)]))
            continue
        results.append(Scores(subject, REAL, segmentation_scores(own, truth, spacing)))
        for pair in group:
            scores = Scores(subject, pair.modality)
            try:
                made = load_volume(pair.prediction, strict=True)
                if not made.grid.same_as(real[pair.modality].grid):
                    raise VolumeError(f"{pair.prediction} is not on the grid of {pair.reference}.")
                found = judge.segment({**arrays, pair.modality: made.data})
                against = segmentation_scores(found, own, spacing)
                scores.values = segmentation_scores(found, truth, spacing) | {
                    f"own_{name}": value for name, value in against.items()
                }
            except (VolumeError, CaseError) as error:
                scores.problems.append(str(error))
            results.append(scores)
        log.info("%s segmented", subject)
    return results


def downstream_rows(scores: Sequence[Scores], own: bool = False) -> list[list[str]]:
    """Header and cells of a table of means: the four real sequences, each replaced one, and the mean over those.

    Args:
        own: against the judge's own result on the four real sequences; else against the true masks, and with `kept`,
            the Dice as a share of that with the four real sequences of the same subjects.
    """
    names = [f"{metric}_{region}" for region in REGIONS for metric in COLUMNS]
    header = ["against own result" if own else "replaced", "n", *(n.replace("_", " ") for n in names)]
    table = [header if own else [*header, *(f"kept {region}" for region in REGIONS)]]
    for group, values in downstream_summary(scores).items():
        if own and group == REAL:
            continue
        cells = [f"{values['own_' * own + n]:.{COLUMNS[n.partition('_')[0]]}f}" for n in names]
        kept = [f"{100 * values[f'kept_{r}']:.0f} %" if f"kept_{r}" in values else "-" for r in REGIONS]
        table.append([group, f"{values['n']:.0f}", *cells, *([] if own else kept)])
    return table


def downstream_summary(scores: Sequence[Scores]) -> dict[str, dict[str, float]]:
    """Means per group: `REAL`, each replaced sequence, and `mean` over all replaced ones; `kept_*` as in the table."""
    usable = [s for s in scores if s.values]
    real = {s.subject: s.values for s in usable if s.modality == REAL}
    groups: dict[str, list[Scores]] = {REAL: [s for s in usable if s.modality == REAL]}
    groups |= {m: [s for s in usable if s.modality == m] for m in MODALITIES}
    groups["mean"] = [s for s in usable if s.modality != REAL]
    summary: dict[str, dict[str, float]] = {}
    for group, rows in groups.items():
        if not rows:
            continue
        found = {name: float(np.mean([r.values[name] for r in rows])) for name in rows[0].values}
        if group != REAL:
            # Of the same subjects, as often as each is there: some are harder than others.
            whole = {r: float(np.mean([real[row.subject][f"dice_{r}"] for row in rows])) for r in REGIONS}
            found |= {f"kept_{r}": found[f"dice_{r}"] / max(whole[r], 1e-6) for r in REGIONS}
        summary[group] = {"n": float(len(rows)), **found}
    return summary


def _by_subject(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.subject, []).append(pair)
    return groups


def _load_real(pair: Pair) -> dict[Modality, Volume]:
    files = {**pair.others, pair.modality: pair.reference}
    if lacking := [m for m in MODALITIES if m not in files]:
        raise CaseError(f"{pair.subject} has no real {', '.join(lacking)}; the judge needs all four sequences.")
    volumes = {m: load_volume(files[m], strict=True) for m in MODALITIES}
    first = volumes[MODALITIES[0]].grid
    for modality, volume in volumes.items():
        if not volume.grid.same_as(first):
            raise VolumeError(f"{files[modality]} is on another grid than {files[MODALITIES[0]]}.")
    return volumes


def _load_truth(pair: Pair, like: Volume) -> NDArray[np.float32]:
    if pair.segmentation is None:
        raise CaseError(f"{pair.subject} has no segmentation to judge by; name its folder with --segmentations.")
    mask = load_volume(pair.segmentation, strict=True)
    if not mask.grid.same_as(like.grid):
        raise VolumeError(f"{pair.segmentation} is on another grid than the sequences of {pair.subject}.")
    return mask.data
