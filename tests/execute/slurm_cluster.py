"""A Slurm cluster of one node on this machine: munged, slurmctld and slurmd of the system's packages, started by root.

Nothing is installed or configured outside of one folder; all of it ends with `close`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "sinfo")
CPUS, MEMORY = 4, 8000  # of the node; its processors need not be there

# Two partitions of the node: what waits in `urgent` preempts jobs of `normal`, which are queued again.
_CONFIGURATION = """
ClusterName=runner
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={ctld}
SlurmdPort={slurmd}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
SchedulerType=sched/backfill
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
KillWait=10
ReturnToService=2
MinJobAge=300
MaxArraySize=1001
NodeName={node} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=normal Nodes={node} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes={node} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str | None:
    """Return why no Slurm can be started here; None where it can."""
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if absent:
        return f"no {', '.join(absent)} here (Debian: apt-get install slurmctld slurmd munge)"
    return None if os.geteuid() == 0 else "starting slurmd needs root"


class SlurmCluster:
    """Slurm in `folder`; `variables` let its commands find it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True)
        os.chmod(folder, 0o755)
        conf = folder / "slurm.conf"
        conf.write_text(_CONFIGURATION.format(
            host=socket.gethostname(), node=socket.gethostname().partition(".")[0], folder=folder, cpus=CPUS,
            memory=MEMORY, ctld=_port(), slurmd=_port(),
        ))  # fmt: skip
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        self.variables = {"SLURM_CONF": str(conf)}
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        self._start(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
            f"--pid-file={folder}/munge.pid", f"--seed-file={folder}/munge.seed", "--log-file=/dev/null",
        )  # fmt: skip
        until(lambda: (folder / "munge.socket").exists(), "munged")
        self._start("slurmctld", "-D", "-c", "-i")
        self._start("slurmd", "-D", "-c")
        until(lambda: "idle" in self.command("sinfo", "-h", "-o", "%T"), f"slurmd (see {folder}/*.log)")

    def command(self, *words: str) -> str:
        """Run a command of Slurm and return what it printed; "" where it failed."""
        done = subprocess.run(
            words, env={**os.environ, **self.variables}, capture_output=True, text=True, check=False, timeout=60
        )
        return done.stdout if done.returncode == 0 else ""

    def close(self) -> None:
        """Cancel all jobs and end the daemons."""
        self.command("scancel", "--user", "root")
        with suppress(TimeoutError):
            until(lambda: not self.command("squeue", "-h").strip(), "the queue", 20)
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, *words: str) -> None:
        program = shutil.which(words[0])
        assert program is not None
        log = open(self._folder / f"{words[0]}.out", "wb")  # noqa: SIM115  the process writes to it
        with log:
            self._processes.append(subprocess.Popen(
                [program, *words[1:]], env={**os.environ, "SLURM_CONF": str(self._folder / "slurm.conf")},
                stdout=log, stderr=log,
            ))  # fmt: skip


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(true: Callable[[], bool], what: str, seconds: float = 120) -> None:
    """Wait for something that must happen within `seconds`."""
    limit = time.monotonic() + seconds
    while not true():
        if time.monotonic() > limit:
            raise TimeoutError(f"{what} does not answer")
        time.sleep(0.2)
