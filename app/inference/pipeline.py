"""From the present sequences of a case to the missing one, step by step."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np

from app import __version__
from app.core.constants import Modality
from app.core.errors import CaseError, DoubtfulError
from app.core.types import VolumeArray
from app.data.nifti_reader import Volume
from app.data.nifti_writer import DESCRIPTION, scale_to_type, to_image
from app.inference.fine_detail import strengthen_detail
from app.inference.models import Model
from app.inference.postprocessing import check_finite, clean, lift_highlights, stretch
from app.inference.prepared import Prepared
from app.inference.slicewise.view_fusion import FusedPrediction
from app.preprocessing.expected_quality import INPUTS, Expectation, reaches
from app.preprocessing.foreground import vote_foreground
from app.preprocessing.normalization import denormalize, measure

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Synthesized:
    """Hold a made sequence.

    Attributes:
        image: on the grid of its reference.
        expectation: what it is expected to be worth; None where the model does not tell.
    """

    image: nib.Nifti1Image
    expectation: Expectation | None = None


def synthesize_case(
    volumes: Mapping[Modality, Volume], target: Modality, reference: Modality, model: Model
) -> Synthesized:
    """Synthesize one sequence of one case.

    Args:
        volumes: one to three present sequences on one grid.
        target: the sequence to make, not among them.
        reference: the present sequence whose geometry, header and number type the result copies.
        model: predicts it, or has a specialist for it.

    Raises:
        CaseError: the inputs have no brain in common, the network does not fit into memory, or the model does not make
            that sequence.
        DoubtfulError: less is expected of it than was asked for.
    """
    chosen = model.model_for(target)
    prepared = prepare(volumes, chosen)
    predicted = predict(prepared, target, chosen)
    expectation = expect(predicted, prepared, target, chosen)
    refined = refine(predicted, prepared, target, chosen)
    return Synthesized(finish(refined.volume, prepared, target, reference, chosen), expectation)


def prepare(volumes: Mapping[Modality, Volume], model: Model) -> Prepared:
    """Find the brain and bring the inputs into model space.

    Raises:
        CaseError: the inputs have no brain in common.
    """
    scheme = model.spec.normalization
    arrays = {m: v.data for m, v in volumes.items()}
    foreground = vote_foreground(arrays)
    if not foreground.any():
        raise CaseError("the inputs have no voxel that is bright in most of them; check that they show one brain.")
    measured = {m: measure(a, m, scheme) for m, a in arrays.items()}
    prepared = Prepared(arrays, foreground, measured, {m: v.grid for m, v in volumes.items()}, scheme.background)
    model.precompute(prepared)
    return prepared


def predict(prepared: Prepared, target: Modality, model: Model) -> FusedPrediction:
    """Predict the target in model space.

    This model predicts it, whether or not it has a specialist (`Model.model_for`).

    Raises:
        CaseError: the network does not fit into memory, or makes other sequences only.
    """
    return model.predict(prepared, target)


def expect(predicted: FusedPrediction, prepared: Prepared, target: Modality, model: Model) -> Expectation | None:
    """Tell what a prediction is expected to be worth; None where the model does not tell.

    Raises:
        DoubtfulError: that is less than was asked for (`ModelOptions.min_expected_ssim`), or cannot be told.
    """
    least = model.min_expected_ssim
    try:
        found = model.expect(predicted, prepared, target)
    except (CaseError, ArithmeticError, LookupError, RuntimeError, ValueError) as error:
        # What only describes an image must not cost it.
        if least is not None:
            raise DoubtfulError(f"nobody knows what to expect of its {target}: {error}") from None
        log.warning("What to expect of %s could not be told: %s", target, error)
        return None
    if least is None:
        return found
    if found is None or found.ssim is None:
        count = len(prepared.arrays)
        why = f"it was made from {count} of three sequences" if count < INPUTS else "this model does not tell"
        raise DoubtfulError(
            f"nobody knows what to expect of its {target}, since {why}; leave out --min-expected-ssim to have it "
            "all the same."
        )
    if not reaches(found.ssim.value, least):
        strange = f"; {found.unlike[0]}" if found.unlike else ""
        raise DoubtfulError(
            f"its {target} is expected to reach an SSIM of {found.ssim.value:.3f} in the brain, {least:g} is asked for "
            f"by --min-expected-ssim{strange}."
        )
    return found


def refine(predicted: FusedPrediction, prepared: Prepared, target: Modality, model: Model) -> FusedPrediction:
    """Correct a prediction by the second, three-dimensional stage; unchanged where the model has none.

    The expected error stays: the refiner has no opinion on it.

    Raises:
        CaseError: the prediction is not finite, or the refiner does not fit into memory.
    """
    if model.refiner is None:
        return predicted
    # A refiner would make a smooth volume even of nothing, and nobody would know.
    check_finite(predicted.volume, prepared.foreground, model.identity.name)
    volume = model.refiner.refine(predicted.volume, prepared.normalized, target, prepared.foreground, prepared.padding)
    return replace(predicted, volume=volume)


def finish(
    predicted: VolumeArray, prepared: Prepared, target: Modality, reference: Modality, model: Model
) -> nib.Nifti1Image:
    """Clear the background, restore intensities, and put the volume into the reference's geometry.

    Raises:
        CaseError: the prediction is not finite (`app.inference.postprocessing.check_finite`).
    """
    check_finite(predicted, prepared.foreground, model.identity.name)
    intensity = model.intensity_of(target, prepared.measured)
    detailed = strengthen_detail(predicted, prepared.foreground, model.detail)
    stretched = stretch(detailed, prepared.foreground, model.contrast)
    lifted = lift_highlights(stretched, prepared.foreground, model.highlights)
    cleaned = clean(lifted, prepared.foreground, intensity, prepared.padding)
    restored = denormalize(cleaned, intensity, prepared.foreground)
    grid = prepared.grids[reference]
    return to_image(scale_to_type(restored, grid), grid, describe(model, target, inputs=len(prepared.arrays)))


def finish_confidence(
    error: VolumeArray, prepared: Prepared, target: Modality, reference: Modality, model: Model
) -> nib.Nifti1Image:
    """Turn an expected error b into the map of confidence 1 / (1 + b).

    It is near 1 where the network is sure, 0.5 where it expects to err by one deviation, and 0 in the background.

    Args:
        error: b, the expected absolute error in deviations of the real sequence over the brain (before `stretch`);
            float32, axes (left, posterior, superior).

    Returns:
        A float32 image in the reference's geometry.
    """
    confidence = np.where(prepared.foreground, 1 / (1 + error), np.float32(0))
    text = f"confidence of {describe(model, target, inputs=len(prepared.arrays))}"
    return to_image(confidence, prepared.grids[reference], text, dtype=np.dtype(np.float32))


def fingerprint_of(model: Model) -> str:
    """Give the checksum of a model and its refiner."""
    return model.identity.refined_by(None if model.refiner is None else model.refiner.identity)


def describe(model: Model, target: Modality, inputs: int) -> str:
    """Describe an output in its header, so that nobody takes it for a scan.

    A long name of a model is cut, so that the fingerprint behind it has its place.
    """
    begin = f"synthetic {target} from {inputs}, tetrad {__version__}, "
    end = f" {fingerprint_of(model)[:8]}" + ("" if model.fusion is None else f" {model.fusion.name}")
    return begin + model.name[: DESCRIPTION - len(begin) - len(end)] + end
