"""What this machine's GPU is, how fast it copies its memory, and how fast it multiplies matrices: the two ceilings.

python benchmarks/card.py
"""

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch

COPIED_BYTES = 4 * 2**30  # many times any cache
SIZE = 8192  # of the matrices


def main() -> None:
    """Print it, as JSON."""
    print(json.dumps({**software(), **(ceilings() if torch.cuda.is_available() else {"machine": "no GPU"})}, indent=2))


def software() -> dict[str, Any]:
    """Versions, and the number of cores that this process may use."""
    import transformers

    found = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    return {**found, "transformers": transformers.__version__, "cores": len(os.sched_getaffinity(0))}


def ceilings() -> dict[str, Any]:
    """The card's name, bytes read and written by a copy, and bf16 matrix products, in a second."""
    device = torch.device("cuda")
    copied = torch.ones(2, COPIED_BYTES, dtype=torch.uint8, device=device)
    copy = seconds(lambda: copied[0].copy_(copied[1]))
    left, right = (torch.randn(SIZE, SIZE, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = seconds(lambda: torch.mm(left, right))
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        said = str(error)
    return {
        "machine": torch.cuda.get_device_name(),
        "nvidia-smi": said,
        "copy_gb_per_second_read_and_written": 2 * COPIED_BYTES / copy / 1e9,
        "bf16_matmul_tflops": 2 * SIZE**3 / product / 1e12,
    }


def seconds(work: Callable[[], object], repetitions: int = 20) -> float:
    """Of one call, on the GPU, after three that do not count."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repetitions):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / repetitions


if __name__ == "__main__":
    main()
