"""Where the script is, a run that has ended, and terminals for it."""

import fcntl
import json
import os
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]


SCRIPT = REPOSITORY / "train_sst2.py"


@dataclass
class Finished:
    """A job that has ended."""

    code: int
    stdout: str
    stderr: str
    run_dir: Path

    @property
    def metrics(self) -> dict[str, Any]:
        metrics: dict[str, Any] = json.loads((self.run_dir / "metrics.json").read_text())
        return metrics

    def logged(self, split: str) -> list[dict[str, Any]]:
        lines = (self.run_dir / "metrics.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["split"] == split]


def without_times(values: dict[str, Any]) -> dict[str, Any]:
    """What is left of a logged point, or of metrics.json, when everything that depends on the clock is gone."""
    measured = {
        "seconds",
        "step_seconds",
        "sentences_per_second",
        "tokens_per_second",
        "matmul_peak_share",
        "peak_memory_mib",
        "rank_compute_seconds",
        "rank_waiting_seconds",
        "slowest_rank",
        "slowest_rank_slowdown",
        "slow_ranks",
    }
    phases = ("waiting", "data", "forward", "backward", "optimizer", "graph", "stop_check")
    measured |= {f"{name}_share" for name in phases}
    return {name: value for name, value in values.items() if name not in measured}


@contextmanager
def terminal(descriptor: int) -> Iterator[list[str]]:
    """Have a file descriptor be a terminal of 80 columns. The list then holds what was written to it, a few lines."""
    controller, end = os.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    before = os.dup(descriptor)
    os.dup2(end, descriptor)
    os.close(end)
    written: list[str] = []
    try:
        yield written
    finally:
        os.dup2(before, descriptor)
        os.close(before)
        text = b""
        with suppress(OSError):  # when all is read, and nobody else has it open
            while part := os.read(controller, 65536):
                text += part
        os.close(controller)
        written.append(text.decode())


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)
