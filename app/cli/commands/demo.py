"""Run the real pipeline on a phantom, from an empty folder to a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from app.batch.outcomes import exit_code_of
from app.batch.run import run
from app.core.atomic_io import save_bytes
from app.core.config import ModelOptions, RunConfig, RuntimeOptions
from app.core.constants import DISPLAY_NAMES, MODALITIES, Modality
from app.core.errors import CaseError, ExitCode
from app.data.nifti_reader import load_volume
from app.data.phantom import make_phantom, write_phantom
from app.evaluation.metrics.ssim import official_score
from app.report.figures import picture

#: Name of the phantom.
SUBJECT = "phantom"


def run_demo(folder: Path, drop: Modality, seed: int, device: str, model: str | None) -> str:
    """Make a phantom without one sequence, synthesise that, score and picture it.

    Returns:
        Files and scores, in a few lines for a person.

    Raises:
        CaseError: the pipeline failed on the phantom.
    """
    phantom = make_phantom(seed=seed)
    source, output = folder / "input", folder / "output"
    for old in (source / SUBJECT).glob("*.nii.gz") if source.exists() else ():
        old.unlink()
    write_phantom(phantom, source, SUBJECT, leave_out=(drop,))
    config = RunConfig(
        source, output, RuntimeOptions(device), ModelOptions(model=model), on_error="stop", overwrite=True
    )
    summary = run(config)
    if exit_code_of(summary) != ExitCode.OK:
        raise CaseError(f"the demo failed on its phantom in {source / SUBJECT}; see the message above.")
    output_file = output / f"{SUBJECT}-{drop}.nii.gz"
    synthesis, truth = load_volume(output_file).data, phantom.volumes[drop]
    score = official_score(synthesis, truth, phantom.labels > 0)
    name = str(summary.outcomes[0].outputs[0].model)
    image = picture(
        {m: phantom.volumes[m] for m in MODALITIES if m != drop},
        drop,
        synthesis,
        truth,
        np.asarray(phantom.labels == 1),
        title=f"Tetrad demo: a phantom's {DISPLAY_NAMES[drop]}, made by {name}",
    )
    png = folder / f"{SUBJECT}-{drop}.png"
    save_bytes(image, png)
    return (
        f"synthesised {DISPLAY_NAMES[drop]}: {output_file}\n"
        f"picture: {png}\n"
        f"official SSIM against the phantom's truth: healthy {score.healthy:.4f}, tumour {score.tumour:.4f} "
        "(a phantom's; they say that the pipeline works, not how good the model is)"
    )
