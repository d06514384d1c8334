"""Recipes: everything that decides a training run, as TOML with checked keys and values."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from app.core.config import FusionName
from app.core.constants import MODALITIES, VIEWS, Confidence, Modality, View
from app.core.errors import UsageError
from app.preprocessing.slices import Canvas
from app.training.forms import build
from app.training.rules import check

#: Recipes that come with the package, named without `.toml`.
BUILT_IN = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class NetworkRecipe:
    """What is trained.

    Attributes:
        kind: `hybrid` (the hybrid-fusion generator) or `unet` (a plain one).
        preset: width of the hybrid-fusion generator: `compact`, `half` or `full`.
        widths: channels per level of the plain one, each level at half the resolution; the default gives 1.8 million
            parameters.
        fine_skip: as in `app.networks.hf_gan.HfGanConfig`.
        discriminator_width: channels of the discriminator's first stage; used when an adversarial loss is.
        confidence: the head that says how wrong each pixel is expected to be (`app.networks.confidence`).
        frozen: train that head alone on a network that stays as `--start` gave it: its images keep every bit.
        intensity_prior: what the network is told of the target's median score (`app.preprocessing.target_intensity.MedianPredictor`): nothing,
            the mean over the training subjects, or what the present sequences predict.
    """

    kind: Literal["hybrid", "unet"] = "hybrid"
    preset: Literal["compact", "half", "full"] = "half"
    widths: tuple[int, ...] = (32, 64, 128, 256)
    fine_skip: bool = False
    discriminator_width: int = 64
    confidence: Confidence = "none"
    frozen: bool = False
    intensity_prior: Literal["none", "mean", "predicted"] = "none"


@dataclass(frozen=True)
class DataRecipe:
    """What it is trained on.

    Attributes:
        makes: sequences that the network learns to make.
        views: views that slices are drawn from; also those that the exported model is run on.
        axial, sagittal, coronal: the canvas: rows and columns per view, multiples of 16.
        min_brain_pixels: slices with fewer are left out.
        single_missing: probability that only the target lacks; else one or two more sequences do.
        tumour_share: probability that a slice is drawn from those that show the tumour, where the subject has any.
        min_tumour_share: a slice shows the tumour when this share of its canvas is tumour.
        balance_types: draw every tumour type (from the subjects' names) equally often.
        held_out: how many subjects, drawn by the seed, are kept for validation and never trained on.
        patch: sides of what the networks that see volumes are trained on and run with, multiples of 16. Only for the
            tasks `judging`, `refinement` and `enhancement`; of the rest, `tumour_share`, `held_out` and, but in the
            first, `single_missing` count there.
    """

    makes: tuple[Modality, ...] = MODALITIES
    views: tuple[View, ...] = VIEWS
    axial: tuple[int, int] = (144, 176)
    sagittal: tuple[int, int] = (176, 144)
    coronal: tuple[int, int] = (144, 144)
    min_brain_pixels: int = 2000
    single_missing: float = 1.0
    tumour_share: float = 0.0
    min_tumour_share: float = 0.001
    balance_types: bool = True
    held_out: int = 0
    patch: tuple[int, int, int] = (96, 96, 96)

    @property
    def canvas(self) -> Canvas:
        """Window sizes per view."""
        return Canvas({"axial": self.axial, "sagittal": self.sagittal, "coronal": self.coronal})


@dataclass(frozen=True)
class AugmentationRecipe:
    """How much slices vary; all zero leaves them alone. Geometry moves all sequences together, the rest is per input.

    Attributes:
        flip: probability of mirroring left and right (not in sagittal slices, which have no left).
        shift: largest translation in pixels, each way.
        rotate, zoom: largest rotation in degrees and relative change of size.
        contrast, brightness: largest relative and absolute change of an input's scores.
        gamma: largest absolute log of the exponent on an input's scores, mapped to [0, 1].
        bias: largest relative change by a smooth field.
        noise: largest deviation of Gaussian noise, in scores.
        thick: half of the inputs look as if acquired in slices of 1 to so many voxels; up to 1, none does.
        transplant: probability that a slice gets the tumour of a randomly drawn slice too, in all sequences.
        hidden: probability that one of the four sequences, as an input, does not show a transplanted tumour.
        fade: probability of each input that its tumours stand out less than they do, not at all, or inversely.
        poor: probability that two or three of a slice's four sequences look poorly acquired: thick slices, little
            contrast, tumours of any shade.
        recolour_t1n, recolour_t2f: probability that the tumours of a T1n, of a T2-FLAIR, have any shade; of slices of
            the task `synthesis`, and of patches of `enhancement`.
    """

    flip: float = 0.5
    shift: int = 6
    rotate: float = 0.0
    zoom: float = 0.0
    contrast: float = 0.1
    brightness: float = 0.1
    gamma: float = 0.0
    bias: float = 0.0
    noise: float = 0.0
    thick: float = 0.0
    transplant: float = 0.0
    hidden: float = 0.0
    fade: float = 0.0
    poor: float = 0.0
    recolour_t1n: float = 0.0
    recolour_t2f: float = 0.0


@dataclass(frozen=True)
class LossRecipe:
    """Weights of the losses (0 leaves one out, with its computation); the defaults are the papers'.

    Attributes:
        l1: mean absolute error in the brain.
        adversarial: binary cross-entropy against the discriminator.
        classification: cross-entropy of the discriminator's sequence head.
        judge, judge_class: the discriminator's own: binary cross-entropy, the mean of real and made images', and
            cross-entropy of the sequence that a real image is.
        feature: one minus the cosine between the bottlenecks of both passes.
        cycle: mean absolute error of the second pass, which sees the first's result.
        ssim: one minus SSIM; `ssim_tissue` says whether over the whole brain or as equal halves of healthy and tumour.
        tversky: focal Tversky of the frozen segmenter's answer.
        dice: one minus Dice of that answer, on axial slices; only for the task `refinement`, which has L1, SSIM and it.
            For `enhancement`, of the network's own answer.
        enhancing: how many times more the enhancing tumour of a T1c counts in L1. For `enhancement`, the weight of the
            mean absolute error there, as a share of the brain's.
        confidence: how wrong the network expects to be, against how wrong it is; used with `network.confidence`.
        segmentation: focal Tversky of the task `segmentation`, Dice of `judging`.
        entropy: cross-entropy of these two tasks and of `enhancement`: it moves a network whose overlap is nothing yet.
    """

    l1: float = 10.0
    adversarial: float = 0.25
    classification: float = 0.25
    judge: float = 1.0
    judge_class: float = 1.0
    feature: float = 1.0
    cycle: float = 1.0
    ssim: float = 5.0
    ssim_tissue: Literal["whole", "dual"] = "dual"
    tversky: float = 5.0
    dice: float = 0.0
    enhancing: float = 0.0
    confidence: float = 1.0
    segmentation: float = 1.0
    entropy: float = 1.0


@dataclass(frozen=True)
class RefinementRecipe:
    """The 3D refiner, for the task `refinement`; `data.patch` is what it sees at once.

    A generator makes its own training subjects better than any other. What the refiner is taught on is therefore made
    worse first, so that it does not learn to trust a first stage that is better than it will be: the last four say how
    much, in the brain, each patch by its own random share.

    Attributes:
        width: channels at full resolution, as many as are compared; the paper's is 64.
        shared_encoder: one encoder for all present sequences instead of one for each.
        overlap: least share of a window that the next one covers again, when it is run.
        blur: probability of a blur by five voxels, along an axis drawn per patch.
        drift: largest deviation of a smooth error, in scores.
        contrast: largest relative change of the patch's scores.
        noise: largest deviation of Gaussian noise, in scores.
    """

    width: Literal[16, 32, 64] = 16
    shared_encoder: bool = False
    overlap: float = 0.1
    blur: float = 0.5
    drift: float = 0.1
    contrast: float = 0.1
    noise: float = 0.05


@dataclass(frozen=True)
class OptimizerRecipe:
    """How weights move.

    Attributes:
        name: `adam` or `adamw`.
        learning_rate: peak at `reference_batch` slices per step, scaled linearly to the real number; a reference of 0
            does not scale.
        discriminator_rate: the discriminator's, as a multiple of the generator's.
        clip_norm: largest norm of the gradient; larger ones are scaled down to it.
        ema: share that the averaged weights keep at each step.
    """

    name: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 5e-4
    reference_batch: int = 64
    discriminator_rate: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = 0.1
    ema: float = 0.999


@dataclass(frozen=True)
class ScheduleRecipe:
    """How long, how much at once.

    Attributes:
        precision: of the networks; `auto` is bfloat16 where the device computes in it natively. Losses are float32, and
            so is, on a processor, a judge whose `data.patch` is less than 48 deep, or an enhancer's less than 96.
        batch_size: slices per step and process.
        targets: sequences made per batch, of those that are made: 4 is Algorithm 1 of the paper (each in turn), 1 draws
            one.
        steps, budget_minutes: the run ends, annealed, with whichever comes first; at least one is above 0.
        warmup: share of the run in which the rate rises.
        epoch_steps: steps between checkpoints, pictures and validations; 0 is one pass over the slices.
        validate_every: epochs between validations (the last always validates); 0 never does.
        validation_views: views that validation runs, fewer being faster.
        validation_subjects: at most so many held-out subjects are used.
    """

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    batch_size: int = 64
    targets: int = 4
    steps: int = 0
    budget_minutes: float = 0.0
    warmup: float = 0.03
    epoch_steps: int = 0
    validate_every: int = 1
    validation_views: tuple[View, ...] = VIEWS
    validation_subjects: int = 6


@dataclass(frozen=True)
class OutputRecipe:
    """How the trained generator is run, beside the views of `DataRecipe`.

    Attributes:
        contrast: share of the way by which what it makes is brought to a scan's spread (`app.inference.postprocessing.stretch`).
        fusion: how its views become one volume (`app.inference.view_fusion`).
        flip_average: whether the exam is also run mirrored, and both are averaged.
    """

    contrast: float = 0.5
    fusion: FusionName = "mean"
    flip_average: bool = False


@dataclass(frozen=True)
class Recipe:
    """One training run.

    Attributes:
        task: `synthesis` trains a generator, `segmentation` the light segmenter, `judging` the 3D segmenter that judges
            exams, `refinement` the 3D refiner of what a generator makes, `enhancement` the 3D enhancer of its T1c.
        note: what the recipe is for.
        seed: decides every random number.
    """

    task: Literal["synthesis", "segmentation", "judging", "refinement", "enhancement"] = "synthesis"
    note: str = ""
    seed: int = 0
    network: NetworkRecipe = field(default_factory=NetworkRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    augmentation: AugmentationRecipe = field(default_factory=AugmentationRecipe)
    losses: LossRecipe = field(default_factory=LossRecipe)
    refinement: RefinementRecipe = field(default_factory=RefinementRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    output: OutputRecipe = field(default_factory=OutputRecipe)

    def to_json(self) -> dict[str, Any]:
        """For checkpoints and the manifest; `from_json` is the inverse."""
        form: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return form

    @classmethod
    def from_json(cls, form: Mapping[str, Any], source: str = "the recipe") -> Recipe:
        """Checks keys, types and values.

        Raises:
            UsageError: names the key, what is wrong, and the nearest known key.
        """
        recipe = build(cls, form, source)
        check(recipe, source)
        return recipe


def load_recipe(name: str, changes: Sequence[str] = ()) -> Recipe:
    """A recipe from a file, or a built-in one by name, with `section.key=value` changes applied.

    A file may say `extends = "NAME"`: it then changes that recipe (built in, or a path beside the file).

    Raises:
        UsageError: it does not exist, is no TOML, or has a key or value that cannot be.
    """
    form = _read(Path(name), [])
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise UsageError(f"--set {change!r} is not of the form section.key=value.")
        _set(form, key.strip(), _value(value.strip()))
    return Recipe.from_json(form, f"recipe {name}")


def built_in() -> dict[str, str]:
    """Names of the built-in recipes and what they are for."""
    notes = {p.stem: str(tomllib.loads(p.read_text(encoding="utf-8")).get("note", "")) for p in BUILT_IN.glob("*.toml")}
    return dict(sorted(notes.items()))


def _read(path: Path, seen: list[Path]) -> dict[str, Any]:
    asked = path
    if path.suffix != ".toml" and not path.is_file():
        path = BUILT_IN / f"{path.name}.toml"
    if path in seen:
        raise UsageError(f"recipe {path} extends itself.")
    try:
        form = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError:
        known = sorted(p.stem for p in BUILT_IN.glob("*.toml"))
        near = difflib.get_close_matches(asked.stem, known, 1)
        advice = f"did you mean {near[0]!r}? Give" if near else "give"
        names = ", ".join(known)
        raise UsageError(f"recipe {asked} cannot be read; {advice} a .toml file or one of {names}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path} is no TOML: {error}.") from None
    if (base := form.pop("extends", None)) is not None:
        beside = path.parent / str(base)
        return _merged(_read(beside if beside.suffix == ".toml" else Path(str(base)), [*seen, path]), form)
    return form


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        before = merged.get(key, {})
        merged[key] = _merged(before, value) if isinstance(value, Mapping) and isinstance(before, Mapping) else value
    return merged


def _set(form: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        form = form.setdefault(section, {})
        if not isinstance(form, dict):
            raise UsageError(f"--set {key}: {section!r} is a value, not a section.")
    form[last] = value


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
