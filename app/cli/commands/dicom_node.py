"""The command that serves a PACS: receive, complete, send."""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from app.cli.argument_types import EXIT_CODES
from app.cli.options import add_options, given
from app.core.config import ModelOptions, NodeConfig, RuntimeOptions
from app.core.constants import MODALITIES, Modality
from app.core.errors import NothingToDo, UsageError
from app.core.signals import Interrupted, SignalGuard
from app.dicom.destination import Destination, check_title, require_network

if TYPE_CHECKING:
    from app.batch.clinic.node import Complete, Node
    from app.dicom.receiving import Listener
    from app.dicom.selection import SeriesRules
    from app.inference.models import Model

log = logging.getLogger(__name__)

#: Seconds between two looks at the spool.
_PAUSE: Final = 1.0
_MOST_PORT: Final = 65535
_ABOUT = (
    "Receives studies by C-STORE, waits until one is quiet, makes the sequence that it lacks, and sends that as a "
    "series of the same study. Runs until SIGTERM or SIGINT; what was received and not sent is taken up by the next "
    "start. Titles are no passwords: let a firewall say who reaches the port."
)


def add_dicom_node(commands: Any) -> None:
    """Declare the command `dicom-node`."""
    p = commands.add_parser(
        "dicom-node", help="receive studies from a PACS, complete and return them", description=_ABOUT,
        epilog=EXIT_CODES,
    )  # fmt: skip
    add_options(p, NodeConfig)
    p.add_argument("--make", choices=get_args(Modality), help="the sequence to make; default: the one that lacks")
    add_options(p, ModelOptions, "weights_dir", "model", "min_expected_ssim")
    add_options(p, RuntimeOptions, "device", "precision")
    p.set_defaults(command=_serve)


def _serve(options: argparse.Namespace) -> int:
    from app.batch.clinic.node import Node, Patience
    from app.batch.clinic.spool import Spool
    from app.dicom.receiving import receiving
    from app.dicom.selection import SeriesRules
    from app.dicom.site_names import read_site_names
    from app.inference.synthesizer import Synthesizer

    config = _config_of(options)
    forward, listener = Destination.parse(config.forward), _listener_of(config)
    require_network()
    rules = SeriesRules(site=read_site_names(config.series_names))
    spool, guard = Spool(config.spool), SignalGuard()
    with spool.owned():
        synthesizer = Synthesizer.from_options(
            ModelOptions(**given(options, ModelOptions)), RuntimeOptions(**given(options, RuntimeOptions))
        )
        complete = _completion(synthesizer.model, options.make, rules, config.stamp)
        node = Node(spool, complete, forward, Patience(config.quiet, config.keep))
        with receiving(listener, spool.store) as port:
            log.info("%s listens on %s:%d for %s.", config.ae, config.host, port, ", ".join(config.allow))
            return _work(node, guard)


def _work(node: Node, guard: SignalGuard) -> int:
    """Work until a signal comes; return the exit code."""
    try:
        with guard.installed():
            while True:
                node.work()
                time.sleep(_PAUSE)
    except Interrupted as interruption:
        log.info("%s: stopped; what was received waits in the spool.", interruption)
        return 128 + interruption.number


def _config_of(options: argparse.Namespace) -> NodeConfig:
    values = given(options, NodeConfig)
    lacking = [f"--{name}" for name in ("spool", "forward", "allow") if name not in values]
    if lacking:
        raise UsageError(f"a node needs {', '.join(lacking)}: where studies wait, who gets them, and who may send.")
    return NodeConfig(**values)


def _listener_of(config: NodeConfig) -> Listener:
    """Say where to listen, and to whom.

    Raises:
        UsageError: a title or the port cannot be.
    """
    from app.dicom.receiving import Listener

    if config.port > _MOST_PORT:
        raise UsageError(f"there is no port {config.port}; give one from 1 to {_MOST_PORT}.")
    return Listener(config.host, config.port, check_title(config.ae), tuple(check_title(t) for t in config.allow))


def _completion(model: Model, make: Modality | None, rules: SeriesRules, stamp: bool) -> Complete:
    """Make what completes the study of a folder."""
    from app.batch.clinic.completion import Wish, complete_study
    from app.batch.clinic.results import Forms, Places
    from app.inference.clinic.study import open_study

    # What lies there is of the same study, however it was made.
    wish = Wish(target=make, forms=Forms(dicom=True, stamp=stamp), overwrite=True)

    def complete(images: Path, result: Path) -> Places:
        study = replace(open_study(images, rules=rules), name=images.parent.name)
        if make is None and len(study.readers) == len(MODALITIES):
            raise NothingToDo("all four sequences are there; nothing to make.")
        return complete_study(study, model, wish, result)

    return complete
