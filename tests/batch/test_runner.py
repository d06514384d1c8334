from __future__ import annotations

import sys

import pytest

from app.batch import runner
from app.batch.prefetch import PrefetchingRunner
from app.batch.run import run
from app.core.config import ClusterOptions
from app.core.errors import DeviceError, UsageError
from app.core.signals import SignalGuard
from app.data.discovery import scan
from app.inference.device import Machine, choose_devices
from tests.batch.helpers import config_of


def test_devices_that_are_not_there(tmp_path, write_subject, weights_dir, monkeypatch):
    write_subject(tmp_path / "in" / "a")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for device in ("all", "cuda:0,cuda:1", "cpu,cuda:7"):
        with pytest.raises(DeviceError):
            run(config_of(tmp_path, weights_dir, model="tiny", device=device))
    with pytest.raises(UsageError):
        run(config_of(tmp_path, weights_dir, model="tiny", device="cpu,gpu"))


def test_all_are_the_gpus():
    machine = Machine(gpus=("A", "B"))
    assert choose_devices("all", machine) == ["cuda:0", "cuda:1"]
    assert choose_devices("cuda:1,cpu", machine) == ["cuda:1", "cpu"]


@pytest.mark.parametrize("device", ["cpu", "all", "cpu,cpu"])
def test_one_process_does_for_one_device(tmp_path, write_subject, weights_dir, monkeypatch, device):
    write_subject(tmp_path / "in" / "a")
    (tmp_path / "out").mkdir()
    several = []
    monkeypatch.setattr(runner, "choose_devices", lambda asked, _: ["cpu"] if asked == "all" else asked.split(","))
    monkeypatch.setattr(runner, "RayRunner", lambda *arguments: several.append(arguments[1]))
    cases = scan(tmp_path / "in").cases
    opened = runner.open_runner(config_of(tmp_path, weights_dir, device=device), cases, SignalGuard())
    if device == "cpu,cpu":
        assert several == [["cpu", "cpu"]]
        return
    assert isinstance(opened, PrefetchingRunner)
    with opened:
        assert [o.status for o in opened] == ["made"]
        assert list(opened.drain()) == []
    assert (opened.model["name"], "numpy on cpu" in opened.runtime) == ("regression", True)


def test_ray_serves_one_device_too_where_it_is_asked_for(tmp_path, write_subject, weights_dir, monkeypatch):
    write_subject(tmp_path / "in" / "a")
    config = config_of(tmp_path, weights_dir, cluster=ClusterOptions("ray", ray_address="auto"), device="all")
    monkeypatch.setattr(runner, "RayRunner", lambda *arguments: arguments[1])
    # Which GPUs a cluster has is not for this machine to say.
    assert runner.open_runner(config, scan(tmp_path / "in").cases, SignalGuard()) == ["all"]


def test_several_devices_without_ray_are_a_usage_error(tmp_path, write_subject, weights_dir, monkeypatch):
    write_subject(tmp_path / "in" / "a")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="--device cpu,cpu needs Ray, which is not installed: pip install"):
        run(config_of(tmp_path, weights_dir, device="cpu,cpu"))
