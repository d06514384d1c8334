"""The command that segments tumours."""

from __future__ import annotations

import argparse
import os
from typing import Any

from app.cli.argument_types import EXIT_CODES
from app.cli.commands.synthesize import add_resume, choose_part, resume_of
from app.cli.options import add_options, given
from app.core.config import ON_ERROR, ClusterOptions, ModelOptions, NamingOptions, RuntimeOptions, SegmentConfig

#: Options of `synthesize` that a segmentation has as well.
_SHARED = (
    "input_dir", "output_dir", "jobs", "profile_file", "overwrite", "part_id", "num_parts", "report_dir",
    "synthesis_dir",
)  # fmt: skip
_MODEL = (
    "a tissnet or segmenter3d of `info`, or completed, the default: the default generator makes the sequence that "
    "lacks, and the tumour segmenter sees four"
)
_ON_ERROR = (
    "a file that cannot be used counts as missing (fallback, the default); its subject is left out (skip), or ends the "
    "run (stop)"
)
_ABOUT = (
    "Writes <ID>-seg.nii.gz (1 core without enhancement, 2 oedema, 3 enhancing tumour) for every subject with four "
    "sequences, or three."
)


def add_segment(commands: Any) -> None:
    """Declare the command `segment`."""
    p = commands.add_parser(
        "segment", help="find the tumours of a folder of subjects", description=_ABOUT, epilog=EXIT_CODES
    )
    add_options(p, SegmentConfig, *_SHARED)
    add_options(p, ModelOptions, "weights_dir")
    p.add_argument("--model", default=argparse.SUPPRESS, metavar="NAME", help=_MODEL)
    p.add_argument("--on-error", choices=ON_ERROR, default=argparse.SUPPRESS, help=_ON_ERROR)
    add_options(p, RuntimeOptions, "device", "precision")
    add_options(p, NamingOptions)
    add_options(p, ClusterOptions)
    add_resume(p)
    p.set_defaults(command=_segment)


def _segment(options: argparse.Namespace) -> int:
    from app.batch.outcomes import exit_code_of
    from app.batch.run import run

    values = given(options, SegmentConfig) | resume_of(options)
    part_id, num_parts = choose_part(values.get("part_id"), values.get("num_parts"), os.environ)
    values |= {"part_id": part_id, "num_parts": num_parts}
    model, runtime = ModelOptions(**given(options, ModelOptions)), RuntimeOptions(**given(options, RuntimeOptions))
    naming = NamingOptions(**given(options, NamingOptions))
    cluster = ClusterOptions(**given(options, ClusterOptions))
    return exit_code_of(run(SegmentConfig(**values, model=model, runtime=runtime, naming=naming, cluster=cluster)))
