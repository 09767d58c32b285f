"""What makes a CPU train at its speed: memory that is kept, and as many threads as are worth it."""

import ctypes
import os
from contextlib import suppress

import psutil
import torch

from sst2.config.launcher import launched_by, threads_are_chosen
from sst2.distributed.devices import computes_on_cpu

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of mallopt(3)
_KEPT_BYTES = 2**31 - 1  # its arguments are int


def keep_memory() -> None:
    """Have the C library keep freed memory for the next allocation, as torch does on a GPU.

    By default large tensors are mapped afresh every time, and the kernel fills their pages with zeros: every step would
    touch the same gigabyte anew. C libraries other than glibc know nothing of it, and are left as they are.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - raises where it is not glibc
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_M_TOP_PAD, 64 << 20)


SMALL_MATRIX = 100_000  # weights of a layer, up to which one thread is as fast as two: benchmarks/threads.py


def use_all_cores() -> None:
    """On a CPU, give each process its share of the node's cores, unless somebody has decided on a number of threads.

    Where launchers find nothing they mostly set OMP_NUM_THREADS to 1, which leaves cores idle.
    """
    if not computes_on_cpu() or launched_by() == "python" or threads_are_chosen():
        return
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # physical ones: a core's second thread has no matrix unit to give
    cores = min(psutil.cpu_count(logical=False) or allowed, allowed)
    torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def limit_threads(model: torch.nn.Module) -> None:
    """Compute a small model with one thread: its operations are over before a second one has woken up.

    What it computes then depends on the machine's number of cores no longer, to the last bit. A number of threads that
    somebody has set (OMP_NUM_THREADS) stays.
    """
    largest = max((layer.weight.numel() for layer in model.modules() if isinstance(layer, torch.nn.Linear)), default=0)
    if largest <= SMALL_MATRIX and (os.environ.get("OMP_NUM_THREADS") == "1" or not threads_are_chosen()):
        torch.set_num_threads(1)
