"""Start a Ray cluster on this machine for one run, or join one that is there."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import app
from app.batch.engines.placement import Node
from app.core.errors import DeviceError, UsageError
from app.core.signals import Interrupted

log = logging.getLogger(__name__)

#: As `requirements-cluster.txt` names it.
RAY_VERSION: Final = "2.60.0"
#: Bytes of shared memory: Ray's least. Volumes go from and to the disk, never through it.
_OBJECT_STORE: Final = 80 * 1024**2
#: Nothing is told to Ray's makers; what concerns the user is said by this program.
_QUIET: Final = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}


def import_ray(purpose: str, own: bool) -> Any:
    """Load Ray, an optional package.

    Args:
        purpose: what needs it, the subject of a sentence.
        own: whether a cluster shall be started for this run.

    Raises:
        UsageError: it is not installed.
    """
    settings = dict(_QUIET)
    if own:
        # Its ports are open to the network for as long as it lives; only who knows this word is served.
        settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    # Before the import: Ray reads them once.
    os.environ.update({name: value for name, value in settings.items() if name not in os.environ})
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise UsageError(
            f"{purpose} needs Ray, which is not installed: pip install 'ray=={RAY_VERSION}' "
            "(in the image: docker build --build-arg CLUSTER=yes)."
        ) from None


@contextlib.contextmanager
def ray_session(ray: Any, address: str | None, cores: int | None = None) -> Iterator[None]:
    """Be connected with a cluster; one that was started for this is gone at the end.

    Args:
        address: of a running cluster; None starts one on this machine.
        cores: those that such a one offers; None for all.

    Raises:
        DeviceError: there is no such cluster, or none can be started.
    """
    if address is None and ray.is_initialized():
        # The caller's own, which is theirs to end.
        yield
    elif address is None:
        folder = tempfile.mkdtemp(prefix="tetrad-ray-", dir=_short_place())
        try:
            with _connected(ray, lambda: _start(ray, folder, cores), "a Ray cluster could not be started here"):
                yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    else:
        with _connected(ray, lambda: _join(ray, address), f"no Ray cluster can be joined at {address}"):
            yield


def nodes_of(ray: Any) -> list[Node]:
    """List what the machines of the cluster offer."""
    offers = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(int(offer.get("CPU", 0)), float(offer.get("GPU", 0))) for offer in offers]


@contextlib.contextmanager
def _connected(ray: Any, connect: Any, failure: str) -> Iterator[None]:
    try:
        _keeping_handler(connect)
    except (ImportError, OSError, RuntimeError, ValueError, TimeoutError) as error:
        ray.shutdown()
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DeviceError(f"{failure} ({reason}); see docs/cluster.md.") from None
    try:
        yield
    finally:
        ray.shutdown()


def _keeping_handler(connect: Any) -> None:
    """Connect, and give SIGTERM back to who had it: Ray would end the run where it stands.

    Raises:
        Interrupted: it came meanwhile.
    """
    handler = signal.getsignal(signal.SIGTERM)
    try:
        # Workers look for code where this program's is, not in the working directory, which may be anybody's data.
        with contextlib.chdir(Path(app.__file__).parent.parent):
            connect()
    except SystemExit:
        raise Interrupted(signal.SIGTERM) from None
    finally:
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGTERM, handler)


def _start(ray: Any, folder: str, cores: int | None) -> None:
    _isolate()
    # It warns of too little shared memory, which is not used here.
    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(
        address="local", num_cpus=cores, include_dashboard=False, object_store_memory=_OBJECT_STORE,
        _temp_dir=folder, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR,
    )  # fmt: skip


def _isolate() -> None:
    """Keep Ray's processes from code that the environment names, where this program is kept from it (`python -I`)."""
    if sys.flags.isolated:
        for name in [name for name in os.environ if name.startswith("PYTHON")]:
            del os.environ[name]
        os.environ |= {"PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def _join(ray: Any, address: str) -> None:
    if address.startswith("ray://"):
        raise ValueError("ray:// is Ray's client; start the run on a machine of the cluster and give HOST:PORT or auto")
    ray.init(address=address, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR)


def _short_place() -> str:
    """Choose the folder for Ray's sockets: the system takes no paths over about 100 bytes."""
    place = tempfile.gettempdir()
    return place if len(place) < 20 else "/tmp"
