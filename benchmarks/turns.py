"""Ways to train that take turns on one machine: each is a process of its own that rests while another one works.

Where there is a GPU, all of them load, compile and warm up side by side: those seconds are more than one alone takes.
"""

import argparse
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

Count = Any  # an int, or a tensor () on the device: nobody waits for it before the round has ended
Step = Callable[[], tuple[Count, Count]]  # takes one optimizer step; returns its sentences and their tokens


@dataclass(frozen=True)
class Loop:
    """A training loop that is not ours to turn.

    Attributes:
        run: trains without an end, and calls what it is given after each step, with its sentences and their tokens.
    """

    run: Callable[[Callable[[Count, Count], None]], None]


Maker = Callable[[Path, int], Step | Loop]  # of inputs and batch size


class Round(NamedTuple):
    """What one way to train has done in its turn; memory is the peak so far, of the device or of the process.

    A process without a GPU has all libraries of this job in it, also where it trains another way.

    CPU seconds are those of all its threads. Other programs that want the same cores add to them little, where they may
    double the other seconds.
    """

    seconds: float
    sentences: int
    tokens: int
    memory_mib: float
    compiled: int  # graphs of torch.compile, so far
    cpu_seconds: float


@dataclass
class Turns:
    """All that was measured.

    Attributes:
        rounds: by way to train.
        warm_up: by way to train; its seconds include compilation and captures, not the loading of model and data.
        peaks: FLOP/s of large matrix products by dtype, for each round.
        failed: why there are no rounds, or no more, of a way to train.
    """

    rounds: dict[str, list[Round]]
    warm_up: dict[str, Round] = field(default_factory=dict)
    peaks: dict[str, list[float]] = field(default_factory=lambda: {"float32": [], "bfloat16": []})
    failed: dict[str, str] = field(default_factory=dict)


class Worker:
    """In the process of one way to train: takes as many steps as it is told, and says how long they took.

    Args:
        connection: to the process that measures.
        warm_up: steps before the first ones that are timed.
    """

    def __init__(self, connection: Connection, warm_up: int) -> None:
        self._connection = connection
        self._left, self._counts = warm_up, list[tuple[Count, Count]]()
        self._started, self._cpu_started = time.perf_counter(), time.process_time()

    def count(self, sentences: Count, tokens: Count) -> None:
        """A step is done. At the end of a turn, this returns when the next one begins."""
        self._counts.append((sentences, tokens))
        self._left -= 1
        if self._left:
            return
        synchronize()
        seconds, cpu_seconds = time.perf_counter() - self._started, time.process_time() - self._cpu_started
        sentences, tokens = (sum(map(int, counts)) for counts in zip(*self._counts, strict=True))
        self._connection.send(Round(seconds, sentences, tokens, _peak_memory_mib(), _compiled_graphs(), cpu_seconds))
        self._left, self._counts = self._connection.recv(), []
        if not self._left:
            os._exit(0)
        synchronize()
        self._started, self._cpu_started = time.perf_counter(), time.process_time()


def work(connection: Connection, make: Maker, folder: Path, batch_size: int, warm_up: int) -> None:
    """The process of one way to train."""
    made = make(folder, batch_size)
    worker = Worker(connection, warm_up)
    if isinstance(made, Loop):
        made.run(worker.count)
        raise RuntimeError("the training loop has ended by itself")
    while True:
        worker.count(*made())


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak_memory_mib() -> float:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _compiled_graphs() -> int:
    dynamo = sys.modules.get("torch._dynamo.utils")
    return int(dynamo.counters["stats"]["unique_graphs"]) if dynamo else 0


def measure(
    folder: Path,
    makers: dict[str, Maker],
    arguments: argparse.Namespace,
    after_round: Callable[[Turns], None] = lambda _: None,
) -> Turns:
    """Have all ways to train take turns. One that fails is left out from then on.

    Args:
        folder: of `write_inputs`.
        makers: of their steps, by name; called each in a process of its own.
        arguments: with those of `add_arguments`.
        after_round: called with what is measured so far.
    """
    import torch

    at_once = torch.cuda.is_available()  # where cores do the work, starting processes would slow each other down
    spawn, forkserver = multiprocessing.get_context("spawn"), multiprocessing.get_context("forkserver")
    context: SpawnContext | ForkServerContext = spawn if at_once else forkserver
    context.set_forkserver_preload(["sst2.training.setup", "sst2.training.results"])  # which import the libraries
    turns = Turns({name: [] for name in makers})
    ends: dict[str, Connection] = {}
    processes: dict[str, BaseProcess] = {}
    began: dict[str, float] = {}
    patience = arguments.ready_within

    def hear(name: str, seconds: float | None = None) -> Round | None:
        """What a process has to say, or None if it fails to."""
        try:
            if seconds is None or ends[name].poll(max(0.0, seconds)):
                heard: Round = ends[name].recv()
                return heard
            reason = f"not ready within {patience:.0f} s"
        except (EOFError, OSError):
            processes[name].join(5)
            reason = f"exit code {processes[name].exitcode}"
        print(f"{name}: {reason}", file=sys.stderr, flush=True)
        turns.failed[name] = reason
        processes[name].kill()
        del ends[name]
        return None

    def hear_of_warm_up(name: str) -> None:
        warm_up = hear(name, None if patience is None else patience - (time.monotonic() - began[name]))
        if warm_up is not None:
            turns.warm_up[name] = warm_up

    try:
        for name, make in makers.items():
            ends[name], other = context.Pipe()
            words = (other, make, folder, arguments.batch_size, arguments.warm_up)
            processes[name] = context.Process(target=work, args=words)
            began[name] = time.monotonic()
            processes[name].start()
            other.close()  # else nobody would hear of its end
            if not at_once:
                hear_of_warm_up(name)
        for name in list(ends) if at_once else ():
            hear_of_warm_up(name)
        for _ in range(arguments.rounds):
            for name in list(ends):
                ends[name].send(arguments.steps)
                if (taken := hear(name)) is not None:
                    turns.rounds[name].append(taken)
            for dtype, rates in turns.peaks.items():
                rates.append(peak(dtype, arguments.small))
            after_round(turns)
        for end in ends.values():
            end.send(0)
        for name in ends:
            processes[name].join(10)
    finally:
        for process in processes.values():
            process.kill()
    return turns


def add_arguments(parser: argparse.ArgumentParser, rounds: int, steps: int) -> None:
    """The flags that `measure` reads, with these defaults."""
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--steps", type=int, default=steps, help="optimizer steps of each in a round")
    parser.add_argument(
        "--warm_up", type=int, default=8, metavar="STEPS", help="optimizer steps of each before it is timed"
    )
    parser.add_argument(
        "--ready_within",
        type=float,
        metavar="SECONDS",
        help="leave out what is not ready so long after its start, warm-up included",
    )
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--small", action="store_true", help="a tiny model: a trial of the benchmark, not a figure")


def peak(dtype: str, small: bool = False) -> float:
    """FLOP/s of large matrix products, the most that a step could reach."""
    import torch

    from sst2.training.flops import matrix_peak

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = 128 if small else 8192 if device.type == "cuda" else 2048
    return matrix_peak(device, getattr(torch, dtype), seconds=0.01 if small else 1.0, size=size)
