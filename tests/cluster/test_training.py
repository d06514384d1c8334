"""Training on two machines, here two network namespaces with a cable between them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.helpers import QUICK, SMALL

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).parent / "training_worker.py"
STEPS = 20
#: A mean over all pixels, since each process has another brain's area; and nothing that each draws for itself but its
#: slices. `schedule.batch_size` counts per process.
STILL = ("flip", "rotate", "zoom", "contrast", "brightness", "gamma", "bias", "noise", "shift")
CHANGES = [*SMALL, *QUICK, "losses.tversky=0", "losses.pixels='all'", f"schedule.steps={STEPS}",
           "optimizer.learning_rate=1e-4",
           *(f"augmentation.{name}=0" for name in STILL)]  # fmt: skip


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextlib.contextmanager
def _two_nodes() -> Iterator[list[tuple[str, str, str]]]:
    """Name, address and network device of each."""
    tag = f"{os.getpid() % 10000}"
    nodes = [(f"tetrad{tag}-{n}", f"10.213.7.{n + 1}", f"tt{tag}v{n}") for n in range(2)]
    try:
        for name, *_ in nodes:
            _ip("netns", "add", name)
        _ip("link", "add", nodes[0][2], "type", "veth", "peer", "name", nodes[1][2])
        for name, address, device in nodes:
            _ip("link", "set", device, "netns", name)
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", device)
            for link in ("lo", device):
                _ip("-n", name, "link", "set", link, "up")
        yield nodes
    finally:
        for name, *_ in nodes:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.fixture
def nodes() -> Iterator[list[tuple[str, str, str]]]:
    if shutil.which("ip") is None:
        pytest.skip("ip is not installed (Debian: iproute2)")
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(_two_nodes())
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here ({error.stderr.decode().strip()})")
        yield made


def _environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in {"WORLD_SIZE", "RANK", "LOCAL_RANK"}}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | more


def _arguments(data: Path, place: Path, name: str, batch: int) -> list[str]:
    return [str(WORKER), str(data), str(place / name), str(place / f"{name}.json"), "smoke", *CHANGES,
            f"schedule.batch_size={batch}"]  # fmt: skip


def test_two_nodes_learn_what_one_process_learns(nodes, training_data, tmp_path):
    done = subprocess.run([sys.executable, *_arguments(training_data, tmp_path, "one", 4)], env=_environment(),
                          capture_output=True, text=True, timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    processes = []
    for rank, (name, _, device) in enumerate(nodes):
        command = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2",
                   "--nproc-per-node", "1", "--node-rank", str(rank), "--master-addr", nodes[0][1],
                   "--master-port", "29500", *_arguments(training_data, tmp_path, "two", 2)]  # fmt: skip
        processes.append(subprocess.Popen(command, env=_environment(GLOO_SOCKET_IFNAME=device), text=True,
                                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT))  # fmt: skip
    messages = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], messages[0][-3000:] + messages[1][-3000:]
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert len(one) == len(two) == STEPS
    assert max(abs(a - b) for a, b in zip(one, two, strict=True)) < 1e-5
