"""Moments as the device has them, which on a GPU is not when the host has asked for the work."""

import time
from collections.abc import Iterable
from typing import Any

import torch

Moment = Any  # seconds of the host's clock, or a torch.cuda.Event


class DeviceClock:
    """Tells moments without waiting for the device, and the time between them later.

    Args:
        device: where the work is done. A CPU does it while the host asks for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"

    @property
    def is_stopped(self) -> bool:
        """Whether work is recorded to a CUDA graph, not done."""
        return self._on_gpu and torch.cuda.is_current_stream_capturing()

    def now(self) -> Moment:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, spans: Iterable[tuple[Moment, Moment]]) -> float:
        """The sum of the times between pairs of moments. On a GPU, the host waits until all of them have come."""
        if not self._on_gpu:
            return sum(end - begin for begin, end in spans)
        torch.cuda.synchronize()
        return sum(begin.elapsed_time(end) for begin, end in spans) / 1000
