"""The most memory that the processes of a run have had, and what there is of it."""

import math
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from sst2.config.launcher import launched_by, read_number
from sst2.training.step_metrics import peak_host_memory_mib

MIB = 2**20


@dataclass(frozen=True)
class RankMemory:
    """Of one process, in MiB.

    Attributes:
        node: number of its node, from 0; several may have one host name.
        host_mib: the most that was resident. Libraries and mapped files, which processes share, count in each.
        launcher_mib: of the launcher on its node, in the node's first process; else 0.
        allocated_mib, reserved_mib: the most that tensors took on its GPU, and that torch kept there; None on a CPU.
        gpu_mib: what the GPU has.
    """

    rank: int
    node: int
    host: str
    host_mib: float
    launcher_mib: float
    allocated_mib: float | None = None
    reserved_mib: float | None = None
    gpu_mib: float | None = None


def memory_of_ranks(accelerator: Accelerator) -> list[RankMemory]:
    """The peaks of all processes up to now, in the order of their ranks. All ranks call it, and get all of them."""
    everyone: list[RankMemory] = gather_object([memory_of_rank(accelerator)])
    return everyone


def memory_of_rank(accelerator: Accelerator) -> RankMemory:
    """The peaks of this process up to now."""
    rank, device = accelerator.process_index, accelerator.device
    on_gpu = {}
    if device.type == "cuda":
        on_gpu = {
            "allocated_mib": torch.cuda.max_memory_allocated(device) / MIB,
            "reserved_mib": torch.cuda.max_memory_reserved(device) / MIB,
            "gpu_mib": torch.cuda.get_device_properties(device).total_memory / MIB,
        }
    return RankMemory(
        rank=rank,
        node=rank // processes_of_node(accelerator),
        host=socket.gethostname(),
        host_mib=peak_host_memory_mib(),
        launcher_mib=_launcher_mib() if accelerator.is_local_main_process else 0.0,
        **on_gpu,
    )


def processes_of_node(accelerator: Accelerator) -> int:
    """Processes on this node, as the launcher says."""
    return max(1, read_number("LOCAL_WORLD_SIZE", accelerator.num_processes))


def peaks_of_nodes(ranks: list[RankMemory]) -> dict[int, float]:
    """MiB of host memory by node: the peaks of its processes and their launcher, added up, which is a bit too much."""
    peaks: dict[int, float] = {}
    for one in ranks:
        peaks[one.node] = peaks.get(one.node, 0.0) + one.host_mib + one.launcher_mib
    return peaks


def host_limit_mib() -> float:
    """What the processes of this node may have together: its memory, or what SLURM or a control group grants of it."""
    total: float = psutil.virtual_memory().total / MIB
    granted = read_number("SLURM_MEM_PER_NODE", 0)  # MiB; 0, too, stands for all
    return min([total, cgroup_limit_mib(), *([float(granted)] if granted else [])])


def cgroup_limit_mib(process: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """The least of the memory limits of this process's control group and of those above it; infinite without any.

    Of both versions: `memory.max` in `root`, or `memory.limit_in_bytes` in its folder `memory`. In a container, the
    group may be known under the host's path, of which only its end, or nothing but the root, can be seen.
    """
    limits = [math.inf]
    with suppress(OSError, ValueError):  # not Linux
        for line in process.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            top, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
            own = top / path.lstrip("/")
            for group in (own, *own.parents):
                with suppress(OSError, ValueError):  # it is not there, or "max"
                    limits.append(int((group / name).read_text(encoding="ascii")) / MIB)
                if group == top:
                    break
    return min(limits)


def _launcher_mib() -> float:
    if launched_by() == "python":
        return 0.0
    with suppress(psutil.Error, OSError):
        launcher: float = psutil.Process(os.getppid()).memory_info().rss / MIB
        return launcher
    return 0.0
