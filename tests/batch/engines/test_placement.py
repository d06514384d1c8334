from __future__ import annotations

import pytest

from app.batch.engines.placement import Node, Place, choose_places, names_devices, places_of
from app.core.config import ClusterOptions, RunConfig, RuntimeOptions
from app.core.errors import DeviceError, UsageError


def _config(device="auto", **options) -> RunConfig:
    return RunConfig(runtime=RuntimeOptions(device=device), cluster=ClusterOptions("ray", **options))


@pytest.mark.parametrize(
    "nodes,device,options,expected",
    [
        ([Node(16)] * 2, "auto", {}, [Place("cpu", 4)] * 8),
        ([Node(2), Node(0)], "auto", {}, [Place("cpu", 2)]),
        ([Node(16)], "cpu", {"worker_cores": 8}, [Place("cpu", 8)] * 2),
        ([Node(16)], "cpu", {"workers": 3}, [Place("cpu", 4)] * 3),
        ([Node(32, 4), Node(16)], "auto", {}, [Place("cuda", 8, 1.0)] * 4),
        ([Node(32, 2), Node(8, 2)], "all", {}, [Place("cuda", 4, 1.0)] * 4),
        ([Node(16, 1)], "cuda", {"worker_gpus": 0.5}, [Place("cuda", 8, 0.5)] * 2),
        # Three shares of 0.3 fit on a GPU, and none spans two.
        ([Node(60, 2)], "cuda", {"worker_gpus": 0.3}, [Place("cuda", 10, 0.3)] * 6),
        ([Node(16, 2)], "cpu", {}, [Place("cpu", 4)] * 4),
    ],
)
def test_a_cluster_is_filled(nodes, device, options, expected):
    assert choose_places(nodes, _config(device, **options)) == expected


@pytest.mark.parametrize(
    "nodes,device,options", [([Node(16)], "cuda", {}), ([Node(4)], "cpu", {"worker_cores": 8}), ([], "auto", {})]
)
def test_without_room_one_sentence(nodes, device, options):
    with pytest.raises(DeviceError, match="no node of the cluster has room"):
        choose_places(nodes, _config(device, **options))


def test_named_devices_are_of_one_machine():
    assert [names_devices(d) for d in ("cuda", "all", "cuda:1", "cpu,cpu")] == [False, False, True, True]
    assert places_of(["cuda:0", "cpu"], 8) == [Place("cuda:0", 4), Place("cpu", 4)]
    assert places_of(["cpu"] * 3, 2, asked=2) == [Place("cpu", 2)] * 3
    with pytest.raises(UsageError, match="names no devices of a cluster"):
        choose_places([Node(8)], _config("cuda:1"))
