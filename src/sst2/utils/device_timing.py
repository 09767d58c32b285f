"""Timing on the device, which on a GPU is not when the host has asked for the work: phases of a step, waiting."""

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch.profiler import record_function

Moment = Any  # seconds of the host's clock, or a torch.cuda.Event


class DeviceClock:
    """Tells moments without waiting for the device, and the time between them later.

    A CPU does the work while the host asks for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"

    def on_core(self) -> float:
        """Seconds for which this thread has had a core so far; 0 on a GPU, which no other process takes away."""
        return 0.0 if self._on_gpu else time.thread_time()

    @property
    def is_stopped(self) -> bool:
        """Whether work is recorded to a CUDA graph, not done."""
        return self._on_gpu and torch.cuda.is_current_stream_capturing()

    def now(self) -> Moment:
        """This moment of the device: on a GPU, when it has done all that was asked of it so far."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, spans: Iterable[tuple[Moment, Moment]]) -> float:
        """The sum of the times between pairs of moments. On a GPU, the host waits until all of them have come."""
        if not self._on_gpu:
            seconds: float = sum(end - begin for begin, end in spans)
            return seconds
        torch.cuda.synchronize()
        milliseconds: float = sum(begin.elapsed_time(end) for begin, end in spans)
        return milliseconds / 1000


# A graph is the three before it in one, or forward, backward and the collective; at the stop check, after a step, all
# ranks agree whether to go on.
PHASES = ("data", "forward", "backward", "optimizer", "graph", "stop_check")


class Phases:
    """The time that a rank has spent in each of `PHASES`, summed up. On a GPU it is the device's time.

    Attributes:
        are_marked: whether phases are marked in the trace that torch.profiler records.
    """

    def __init__(self, device: torch.device) -> None:
        self.are_marked = False
        self._mark: record_function | None = None
        self._clock = DeviceClock(device)
        self._current: tuple[str, Moment, float] | None = None
        self._spans: dict[str, list[tuple[Moment, Moment]]] = {phase: [] for phase in PHASES}
        self._on_core = dict.fromkeys(PHASES, 0.0)

    def begin(self, phase: str) -> None:
        """One of `PHASES` begins, and the one before ends. Those that are recorded to a graph go by as it does."""
        if self._clock.is_stopped:
            return
        now = self.end()
        self._current = phase, now, self._clock.on_core()
        if self.are_marked:
            self._mark = record_function(phase)
            self._mark.__enter__()

    def end(self) -> Moment:
        """The step is over. Returns the moment."""
        now = self._clock.now()
        if self._current is not None:
            phase, began, on_core = self._current
            self._spans[phase].append((began, now))
            self._on_core[phase] += self._clock.on_core() - on_core
        self._current = None
        if self._mark is not None:
            self._mark.__exit__(None, None, None)
            self._mark = None
        return now

    def take(self) -> list[float]:
        """Seconds since the last call, in the order of `PHASES`."""
        spans, self._spans = self._spans, {phase: [] for phase in PHASES}
        return [self._clock.seconds(spans[phase]) for phase in PHASES]

    def take_on_core(self) -> dict[str, float]:
        """Of the time since the last call, the seconds by phase for which this thread had a core: 0 on a GPU."""
        on_core, self._on_core = self._on_core, dict.fromkeys(PHASES, 0.0)
        return on_core


class Waiting:
    """From the last gradient that a rank computes to the end of its backward pass, summed up."""

    def __init__(self, device: torch.device) -> None:
        self._clock = DeviceClock(device)
        self._began: Moment | None = None
        self._spans: list[tuple[Moment, Moment]] = []

    def begin(self, *_: object) -> None:
        """This rank's own work is done; for use as a hook."""
        self._began = self._clock.now()

    def end(self) -> None:
        """The backward pass is over, and all gradients are shared."""
        if self._began is not None:
            self._spans.append((self._began, self._clock.now()))
        self._began = None

    def take(self) -> float:
        """Seconds since the last call."""
        spans, self._spans = self._spans, []
        return self._clock.seconds(spans)
