"""What a run was asked to do: the options, each described once.

Importing this module needs no third-party package. A field described by `_option` is an option of the command line
(`app.cli.options`) and a row of `docs/options.md`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from app.core import weights_dir
from app.core.errors import UsageError

OnError = Literal["fallback", "skip", "stop"]
BackendName = Literal["auto", "torch", "onnx"]
Precision = Literal["auto", "bf16", "fp16", "fp32", "int8"]
#: Which of several files of one sequence is used.
RunChoice = Literal["first", "last"]
#: Which outputs that are there are kept: those of the same inputs, or of any.
Resume = Literal["same", "any"]
#: How views become one volume: see `app.inference.slicewise.view_fusion`.
FusionName = Literal["mean", "median", "confidence"]
#: What a network's images may cost.
Quality = Literal["fast", "default", "best"]
#: What hands subjects to workers: this process itself, or Ray.
Engine = Literal["local", "ray"]

ON_ERROR: Final[tuple[OnError, ...]] = ("fallback", "skip", "stop")
BACKENDS: Final[tuple[BackendName, ...]] = ("auto", "torch", "onnx")
PRECISIONS: Final[tuple[Precision, ...]] = ("auto", "bf16", "fp16", "fp32", "int8")
RESUMES: Final[tuple[Resume, ...]] = ("same", "any")
FUSIONS: Final[tuple[FusionName, ...]] = ("mean", "median", "confidence")
QUALITIES: Final[tuple[Quality, ...]] = ("fast", "default", "best")
ENGINES: Final[tuple[Engine, ...]] = ("local", "ray")

#: The weights unless `--weights` names others.
WEIGHTS_DIR: Final = weights_dir.WEIGHTS_DIR


def _option(help: str, metavar: str | None = None, **more: Any) -> dict[str, Any]:
    """Describe a field as an option.

    Args:
        help: the one description of it.
        metavar: the value's name in help.
        more: `flag`, where the option is not named as the field; `natural=True`, where 0 is allowed.
    """
    return {"help": help, "metavar": metavar, **more}


@dataclass(frozen=True)
class RuntimeOptions:
    """How networks are run.

    Raises:
        UsageError: a value that does not exist.
    """

    device: str = field(
        default="auto",
        metadata=_option(
            "auto, cpu, cuda, cuda:N, several with commas, or all GPUs; default: auto (a GPU if there is one)"
        ),
    )
    backend: BackendName = field(
        default="auto", metadata=_option("default: auto (torch if the model has weights for it)")
    )
    precision: Precision = field(
        default="auto",
        metadata=_option(
            "int8 is for slice networks on a processor; default: auto (on a GPU bf16 where it is native, else fp16; on "
            "a processor bf16 where it multiplies matrices (AMX), else int8 where the model was measured for it, else "
            "bf16 where that is native, else fp32)"
        ),
    )
    batch_size: int | None = field(
        default=None, metadata=_option("slices per network call; default: the device's", "N")
    )

    def __post_init__(self) -> None:
        backend, precision, batch_size = self.backend, self.precision, self.batch_size
        if backend not in BACKENDS or precision not in PRECISIONS or (batch_size is not None and batch_size < 1):
            raise UsageError(f"{backend=}, {precision=}, {batch_size=} do not exist.")


@dataclass(frozen=True)
class ModelOptions:
    """Which model is run, and how its predictions become one volume.

    Attributes:
        with_error: whether the expected error of each prediction is wanted.

    Raises:
        UsageError: a value that does not exist.
    """

    weights_dir: Path = field(
        default=WEIGHTS_DIR,
        metadata=_option("folder with manifest.json; default: the project's own", "DIR", flag="--weights"),
    )
    model: str | None = field(
        default=None, metadata=_option("a model of `info`; default: the manifest's default", "NAME")
    )
    refine: bool | None = field(
        default=None,
        metadata=_option(
            "correct what is made with the model's 3D refiner; default: as the model's manifest entry says"
        ),
    )
    specialists: bool = field(
        default=True,
        metadata=_option(
            "let other models make the sequences that the model's manifest entry leaves to them; default: yes"
        ),
    )
    fusion: FusionName | None = field(
        default=None,
        metadata=_option(
            "how the views become one volume: their mean, their median, or the mean weighted by how sure each is "
            "(inverse squares of the errors that the model expects); default: the model's own way, else mean"
        ),
    )
    flip_average: bool | None = field(
        default=None,
        metadata=_option(
            "also run the exam mirrored left to right and average both: axial and coronal slices are run twice; "
            "default: the model's own way, else not"
        ),
    )
    quality: Quality = field(
        default="default",
        metadata=_option(
            "what a network's images may cost: fast makes every second slice of each view, interpolates between them "
            "and runs no mirrored exam; best runs every slice and the mirrored exam; default: the model's own way, and "
            "where that runs the mirrored exam, every second slice of it between every second of the other"
        ),
    )
    intensity: str | None = field(
        default=None,
        metadata=_option(
            "for models with intensity encoding, the brightness that they aim at: the mean of their training subjects "
            "(mean, the default), a sample of these that each exam seeds by itself (sample), or the median of the "
            "brain as a share of the brightest, 0 to 1",
            "mean|sample|VALUE",
        ),
    )
    min_expected_ssim: float | None = field(
        default=None,
        metadata=_option(
            "refuse an exam whose image is expected to reach less than this SSIM inside the brain, 0 to 1, judged by a "
            "trial on its own sequences; one with fewer than three sequences is refused as well, and nothing stands in "
            "for what is refused; default: nothing is refused",
            "SSIM",
        ),
    )
    with_error: bool = False

    def __post_init__(self) -> None:
        if self.intensity is not None and not _is_intensity(self.intensity):
            raise UsageError(f"intensity={self.intensity!r} does not exist; use mean, sample or a number from 0 to 1.")
        if self.fusion is not None and self.fusion not in FUSIONS:
            raise UsageError(f"fusion={self.fusion!r} does not exist; use one of {', '.join(FUSIONS)}.")
        if self.min_expected_ssim is not None and not 0 <= self.min_expected_ssim <= 1:
            raise UsageError(f"min_expected_ssim={self.min_expected_ssim} is no SSIM; use a number from 0 to 1.")
        if self.quality not in QUALITIES:
            raise UsageError(f"quality={self.quality!r} does not exist; use one of {', '.join(QUALITIES)}.")


def _is_intensity(text: str) -> bool:
    """Check that a text names an intensity: `mean`, `sample`, or a number from 0 to 1."""
    try:
        return text in {"mean", "sample"} or 0 <= float(text) <= 1
    except ValueError:
        return False


@dataclass(frozen=True)
class NamingOptions:
    """What the user says of the names of files and subjects."""

    names: tuple[str, ...] = field(
        default=(),
        metadata=_option(
            "teach a name: t1c='*_POST.nii.gz' says that such files are the T1c of the subject named by the first *; "
            "none='*_old.nii.gz' passes files over; with a slash the pattern is of the path below the input; may be "
            "given several times",
            "SEQUENCE=PATTERN",
            flag="--name",
        ),
    )
    run: RunChoice | None = field(
        default=None,
        metadata=_option("which of several files of one sequence is used, by name; default: such a subject is refused"),
    )
    name_from_folders: bool = field(
        default=False,
        metadata=_option("name subjects by their folders as well (siteA_sub-01), where names repeat"),
    )


@dataclass(frozen=True)
class ClusterOptions:
    """Which workers share a run, each with a model of its own.

    Raises:
        UsageError: values that do not exist or contradict each other.
    """

    engine: Engine = field(
        default="local",
        metadata=_option("ray: workers of a Ray cluster, or of one started for this run; default: local, no workers"),
    )
    ray_address: str | None = field(
        default=None,
        metadata=_option("of a running Ray cluster, or auto; default: one for this run, on this machine", "ADDRESS"),
    )
    workers: int | None = field(
        default=None, metadata=_option("most workers under Ray; default: as many as it has room for", "N")
    )
    worker_cores: int | None = field(
        default=None, metadata=_option("cores of each worker under Ray; default: 4, or the share beside a GPU", "N")
    )
    worker_gpus: float = field(
        default=1.0, metadata=_option("share of a GPU for each worker under Ray, above 0; default: 1", "SHARE")
    )

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise UsageError(f"engine={self.engine!r} does not exist; use {' or '.join(ENGINES)}.")
        if not 0 < self.worker_gpus <= 1:
            raise UsageError(f"worker_gpus={self.worker_gpus} is no share of a GPU; use a number above 0, up to 1.")
        others = self.ray_address, self.workers, self.worker_cores, self.worker_gpus
        if self.engine == "local" and others != (None, None, None, 1.0):
            raise UsageError("--ray-address, --workers, --worker-cores and --worker-gpus need --engine ray; give it.")


@dataclass(frozen=True)
class RunConfig:
    """One `synthesize` run.

    Attributes:
        runtime: how networks are run.
        model: which model; its `with_error` belongs to `confidence_dir`.
        naming: how names are read.
        cluster: which workers share the run.
        resume: which outputs that are there are kept (`--resume`, in `app.cli.commands.synthesize`).

    Raises:
        ValueError: maps of confidence are wanted of a model that is not asked for its error.
    """

    input_dir: Path = field(
        default=Path("/input"), metadata=_option("folder of the subjects; default: /input", "DIR", flag="--input")
    )
    output_dir: Path = field(
        default=Path("/output"), metadata=_option("folder of the images made; default: /output", "DIR", flag="--output")
    )
    runtime: RuntimeOptions = RuntimeOptions()
    model: ModelOptions = ModelOptions()
    naming: NamingOptions = NamingOptions()
    cluster: ClusterOptions = ClusterOptions()
    confidence_dir: Path | None = field(
        default=None,
        metadata=_option(
            "write <ID>-<sequence>-confidence.nii.gz there (not in the output), on the output's grid: 1 / (1 + the "
            "error that the model expects, in deviations of the real sequence), so near 1 where it is sure, 0.5 at an "
            "expected error of one deviation, 0 in the background; needs a model with a confidence head",
            "DIR",
        ),
    )
    jobs: int | None = field(
        default=None,
        metadata=_option(
            "threads that decode the next subjects while the network runs; default: 1 per 16 cores, beside a GPU half "
            "the cores, 2 to 8 (1 with --on-error stop)",
            "N",
        ),
    )
    on_error: OnError = field(
        default="fallback",
        metadata=_option(
            "a subject that cannot be done normally is made by the voxel-wise regression from what can be read "
            "(fallback, the default), left out (skip), or ends the run (stop)"
        ),
    )
    profile_file: Path | None = field(
        default=None,
        metadata=_option("write a Chrome trace: seconds per stage and subject", "FILE", flag="--profile-run"),
    )
    complete_all: bool = field(default=False, metadata=_option("make all that a subject lacks, one file each"))
    overwrite: bool = field(default=False, metadata=_option("make outputs again that are there and good"))
    part_id: int = field(
        default=0, metadata=_option("which part, from 0; default: from the scheduler", "I", natural=True)
    )
    num_parts: int = field(default=1, metadata=_option("of how many; 1 ignores the scheduler", "N"))
    report_dir: Path | None = field(
        default=None, metadata=_option("where the run record (JSON) goes; not in the output", "DIR")
    )
    view: bool = field(
        default=False,
        metadata=_option(
            "write <ID>-<sequence>-view.html, a page to scroll through inputs, brain and result in a browser: in "
            "views/ of the report folder, of exams as scanned beside the result"
        ),
    )
    resume: Resume = "same"
    #: Whether subjects that lack nothing are work as well.
    takes_complete: ClassVar[bool] = False
    #: Whether pages to scroll through lie in the report folder.
    needs_report: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.confidence_dir is not None and not self.model.with_error:
            raise ValueError("confidence_dir needs a model that is asked for its error (ModelOptions.with_error)")
        if self.view and self.needs_report and self.report_dir is None:
            raise UsageError("--view writes its pages into the report folder; give one with --report-dir.")

    def to_json(self) -> dict[str, Any]:
        """Return the form of the run record: all options on one level."""
        form = asdict(self)
        form |= {**form.pop("runtime"), **form.pop("model"), **form.pop("naming"), **form.pop("cluster")}
        del form["with_error"]
        return {k: str(v) if isinstance(v, Path) else v for k, v in form.items()}


@dataclass(frozen=True)
class SegmentConfig(RunConfig):
    """One `segment` run; what `RunConfig` says of sequences that are made does not count."""

    synthesis_dir: Path | None = field(
        default=None,
        metadata=_option(
            "write the sequence that was made for an exam that lacks one there, as <ID>-<sequence>.nii.gz", "DIR",
            flag="--with-synthesis",
        ),
    )  # fmt: skip
    takes_complete: ClassVar[bool] = True


@dataclass(frozen=True)
class ClinicConfig(RunConfig):
    """One `synthesize --clinic` run: exams as scanned, each in a folder of its own."""

    dicom: bool = field(default=False, metadata=_option("write a derived DICOM series as well; of a DICOM study alone"))
    send: str | None = field(
        default=None, metadata=_option("send the derived series to a DICOM node by C-STORE", "AET@HOST:PORT")
    )
    stamp: bool = field(
        default=False, metadata=_option("write SYNTHETIC into the pixels of the derived series, in a corner")
    )
    series_names: Path | None = field(
        default=None, metadata=_option("what this site calls its DICOM series; see docs/clinic.md", "FILE")
    )
    allow_other_study: bool = field(
        default=False, metadata=_option("series of several studies of one patient may be one exam")
    )
    takes_complete: ClassVar[bool] = True
    needs_report: ClassVar[bool] = False


@dataclass(frozen=True)
class NodeConfig:
    """One `dicom-node`.

    Raises:
        UsageError: nobody may send, or nobody gets the result.
    """

    spool: Path = field(metadata=_option("folder where studies wait until they are sent", "DIR"))
    forward: str = field(metadata=_option("where the derived series go", "AET@HOST:PORT"))
    allow: tuple[str, ...] = field(metadata=_option("title of a node that may send; may be given several times", "AET"))
    ae: str = field(default="TETRAD", metadata=_option("title of this node; default: TETRAD", "AET"))
    host: str = field(
        default="127.0.0.1",
        metadata=_option("address to listen on; default: 127.0.0.1, which this machine alone can reach", "ADDRESS"),
    )
    port: int = field(default=11112, metadata=_option("port to listen on; default: 11112", "N"))
    quiet: int = field(
        default=30,
        metadata=_option("seconds without a further image after which a study is whole; default: 30", "SECONDS"),
    )
    keep: int = field(
        default=24,
        metadata=_option(
            "hours after its last image that a study stays which could not be completed or sent; default: 24. What was "
            "sent is removed at once",
            "HOURS",
            natural=True,
        ),
    )
    stamp: bool = field(
        default=False, metadata=_option("write SYNTHETIC into the pixels of the derived series, in a corner")
    )
    series_names: Path | None = field(
        default=None, metadata=_option("what this site calls its DICOM series; see docs/clinic.md", "FILE")
    )
