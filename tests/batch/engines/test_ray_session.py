from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.batch.engines import ray_session as module
from app.batch.engines.placement import Node
from app.batch.engines.ray_session import RAY_VERSION, import_ray, nodes_of, ray_session
from app.core.errors import DeviceError, UsageError
from app.core.signals import Interrupted

ROOT = Path(__file__).parents[3]


class _Ray:
    """Stands for the package."""

    def __init__(self, init=lambda **_: None):
        self.init, self.ended = init, 0

    def is_initialized(self):
        return False

    def shutdown(self):
        self.ended += 1


def test_one_version_everywhere():
    assert f"ray=={RAY_VERSION}" in (ROOT / "requirements-cluster.txt").read_text().split()


def test_without_ray_one_sentence_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(module.os, "environ", {})
    with pytest.raises(UsageError, match=f"--device all needs Ray.*pip install 'ray=={RAY_VERSION}'"):
        import_ray("--device all", own=True)


@pytest.mark.parametrize("address", [None, "192.0.2.1:6379", "ray://192.0.2.1:10001"])
def test_a_cluster_that_is_not_there(address):
    def init(**_):
        raise ConnectionError("nobody answers\nand more")

    ray = _Ray(init)
    with pytest.raises(DeviceError, match=r"ray:// is Ray's client|\(nobody answers\)"):
        with ray_session(ray, address):
            pass
    assert ray.ended == 1


def test_a_signal_while_it_starts_is_none_of_its_own():
    def init(**_):
        sys.exit(15)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted), ray_session(_Ray(init), "auto"):
        pass
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_handler_and_the_folder_are_as_before(monkeypatch, tmp_path):
    places = []

    def init(**options):
        places.append((Path.cwd(), Path(options["_temp_dir"])))
        signal.signal(signal.SIGTERM, lambda *_: None)

    before, here = signal.getsignal(signal.SIGTERM), Path.cwd()
    ray = _Ray(init)
    with ray_session(ray, None, cores=1):
        assert signal.getsignal(signal.SIGTERM) is before
        ((code, folder),) = places
        assert (code / "app").is_dir()
        assert folder.is_dir()
    assert (Path.cwd(), ray.ended, folder.exists()) == (here, 1, False)


def test_nodes_that_live_are_counted():
    nodes = [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}}, {"Alive": False, "Resources": {"CPU": 8.0}},
             {"Alive": True, "Resources": {"memory": 1.0}}]  # fmt: skip
    assert nodes_of(SimpleNamespace(nodes=lambda: nodes)) == [Node(8, 2.0), Node(0, 0.0)]
