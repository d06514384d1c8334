"""A Slurm cluster of one node on this machine, for one test."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
#: A requeued job may start again as soon as its old credential has expired: at once, not in two minutes.
_CONFIG = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={controller_port}
SlurmdPort={node_port}
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0
ReturnToService=2
KillWait=5
MinJobAge=3600
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
NodeName={host} NodeAddr=127.0.0.1 CPUs=3 State=UNKNOWN
"""


def reason_to_skip() -> str | None:
    """Says what lacks here."""
    lacking = [program for program in PROGRAMS if shutil.which(program) is None]
    if lacking:
        return f"{lacking[0]} is not installed (Debian: slurmctld slurmd slurm-client munge)"
    return None if os.geteuid() == 0 else "Slurm's daemons need root here"


class SlurmCluster:
    """Ask the cluster that runs."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.environment = os.environ | {"SLURM_CONF": str(place / "slurm.conf")}

    def call(self, *command: str | Path, **environment: str) -> str:
        """Run one of Slurm's commands."""
        done = subprocess.run(list(map(str, command)), check=False, cwd=self.place, capture_output=True, text=True,
                              env=self.environment | environment)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def wait(self, seconds: float) -> None:
        """Wait until no job is left."""
        deadline = time.monotonic() + seconds
        while self.call("squeue", "-h"):
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.2)

    def logs(self) -> str:
        """Everything that was logged."""
        return "\n".join(f"{path}\n{path.read_text()}" for path in sorted(self.place.glob("*.log")))


@contextlib.contextmanager
def slurm_cluster(place: Path) -> Iterator[SlurmCluster]:
    """Start the daemons, and end them."""
    (place / "state").mkdir()
    (place / "spool").mkdir()
    (place / "munge.key").write_bytes(os.urandom(1024))
    (place / "munge.key").chmod(0o400)
    ports = {"controller_port": _free_port(), "node_port": _free_port()}
    (place / "slurm.conf").write_text(_CONFIG.format(host=socket.gethostname().split(".")[0], place=place, **ports))
    (place / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    cluster = SlurmCluster(place)
    names = {"key": "key-file", "socket": "socket", "pid": "pid-file", "log": "log-file", "seed": "seed-file"}
    try:
        cluster.call("munged", "--force", *(f"--{option}={place}/munge.{end}" for end, option in names.items()))
        cluster.call("slurmctld", "-f", place / "slurm.conf")
        cluster.call("slurmd", "-f", place / "slurm.conf")
        deadline = time.monotonic() + 30
        while "idle" not in cluster.call("sinfo", "-h", "-o", "%T"):
            assert time.monotonic() < deadline, cluster.logs()
            time.sleep(0.2)
        yield cluster
    finally:
        with contextlib.suppress(AssertionError):
            cluster.call("scancel", "--user=root")
        for name in ("slurmd", "slurmctld", "munge"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((place / f"{name}.pid").read_text()), signal.SIGTERM)
        deadline = time.monotonic() + 10
        while any(place.glob("*.pid")) and time.monotonic() < deadline:
            time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
