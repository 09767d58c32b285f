"""A real SLURM of two nodes on this machine: munge, slurmctld and two slurmd on loopback, without systemd.

Needs Debian's slurmctld, slurmd, slurm-client and munge, and to be root.
"""

import os
import random
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

CONFIGURATION = """
ClusterName=sst2
FirstJobId={job}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdTimeout=10
KillWait=30
MinJobAge=3600
SchedulerParameters=sched_interval=1,bf_interval=1,requeue_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=2 RealMemory={memory}
PartitionName=low Nodes=n[1-2] Default=YES PriorityTier=1 PreemptMode=REQUEUE MaxTime=INFINITE State=UP
PartitionName=high Nodes=n[1-2] PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""
PORTS = range(30_000, 32_700, 3)  # of three each: below those that systems hand out, above those of train.sh's jobs
MOST_JOBS = 60  # of one cluster
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")


def missing() -> str:
    """What this machine lacks for a cluster of its own; nothing if it can have one."""
    lacking = [program for program in PROGRAMS if shutil.which(program) is None]
    return "needs to be root" if os.geteuid() else f"needs {', '.join(lacking)}" if lacking else ""


class Cluster:
    """The daemons, and the commands of those who use them.

    Another one may run beside it: it has ports of its own, and numbers of jobs, from which slurm/train.sh makes ports.

    Args:
        folder: of its files.
        port: the first of three.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self._jobs = range(1 + (port - PORTS.start) // 3 * MOST_JOBS, 1 + ((port - PORTS.start) // 3 + 1) * MOST_JOBS)
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("munge", "state", "spool-n1", "spool-n2"):
            (folder / name).mkdir(parents=True)
        host = socket.gethostname()
        memory = int(0.8 * psutil.virtual_memory().total / 2**20)  # MiB; less than this is there takes a node down
        self._file = folder / "slurm.conf"
        ports = {"port": port, "first": port + 1, "last": port + 2}
        text = CONFIGURATION.format(host=host, folder=folder, memory=memory, job=self._jobs.start, **ports)
        self._file.write_text(text)
        key = folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        for path in (folder / "munge", key):
            shutil.chown(path, "munge", "munge")
        self.environment = os.environ | {"SLURM_CONF": str(self._file)}

    def start(self) -> None:
        munge = self.folder / "munge"
        files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        flags = [f"--{flag}={munge / name}" for flag, name in files.items()]
        self._start("munged", "runuser", "-u", "munge", "--", "munged", "--foreground", "--force", *flags)
        self._start("slurmctld", "slurmctld", "-D")
        deadline = time.monotonic() + 60
        while "Slurmctld(primary) at" not in (pings := self.run("scontrol", "ping")) or "UP" not in pings:
            assert self._daemons["slurmctld"].poll() is None, self.logs()
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.1)
        for node in ("n1", "n2"):
            self.start_node(node)
        self.wait_for_nodes()

    def start_node(self, node: str) -> None:
        self._start(node, "slurmd", "-D", "-N", node)

    def kill_node(self, node: str, with_processes: bool = False) -> None:
        """Kill the node's daemon, and also all that it has started, as a node does that loses power."""
        daemon = self._daemons.pop(node)
        daemon.kill()
        daemon.wait()
        if with_processes:
            tasks = [process for process in psutil.process_iter() if self._is_on(process, node)]
            watchers = {parent for task in tasks for parent in task.parents() if parent in self.steps()}
            for process in (*watchers, *tasks):
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    def steps(self) -> list[psutil.Process]:
        """What watches over the processes of jobs, one a job and node, and one for the batch script."""
        return [process for process in psutil.process_iter(["name"]) if self._is_step(process)]

    def wait_for_nodes(self, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while set(self.run("sinfo", "--Node", "--noheader", "--format=%N %T").splitlines()) != {"n1 idle", "n2 idle"}:
            assert time.monotonic() < deadline, self.run("sinfo", "--Node") + self.logs()
            time.sleep(0.2)

    def run(self, *command: object, folder: Path | None = None) -> str:
        words = [*map(str, command)]
        done = subprocess.run(words, env=self.environment, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or command[0] in ("sinfo", "scontrol"), done.stderr
        return done.stdout

    def logs(self) -> str:
        return "\n".join(file.read_text()[-2000:] for file in self.folder.glob("*.log"))

    def stop(self) -> None:
        subprocess.run(["scancel", "--full", "--signal=KILL", "--user=root"], env=self.environment, check=False)
        for process in reversed(self._daemons.values()):
            process.terminate()
        for process in self._daemons.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("a") as output:
            self._daemons[name] = subprocess.Popen(
                command, env=self.environment, stdout=output, stderr=output, start_new_session=True
            )
        if name == "munged":
            while not (self.folder / "munge" / "socket").exists():
                assert self._daemons[name].poll() is None, (self.folder / f"{name}.out").read_text()
                time.sleep(0.05)

    def _is_step(self, process: psutil.Process) -> bool:
        """Whether it is a `slurmstepd: [JOB.STEP]` of this cluster."""
        with suppress(psutil.Error):
            job = re.search(r"\[(\d+)\.", " ".join(process.cmdline()))
            return process.name() == "slurmstepd" and job is not None and int(job[1]) in self._jobs
        return False

    def _is_on(self, process: psutil.Process, node: str) -> bool:
        """Whether it is a process of a job on a node of this cluster."""
        with suppress(psutil.Error):
            variables = process.environ()
            found = variables.get("SLURMD_NODENAME"), variables.get("SLURM_CONF")
            return found == (node, str(self._file))
        return False


def _free_ports() -> int:
    """The first of three ports that nobody listens at."""
    while True:
        port = random.choice(PORTS)
        with ExitStack() as stack, suppress(OSError):
            for number in range(port, port + 3):
                stack.enter_context(socket.socket()).bind(("", number))
            return port


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """Two idle nodes, taken down again at the end."""
    cluster = Cluster(folder, _free_ports())
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
