"""How long a rank's backward pass goes on when its own gradients are there: communication that nothing hides."""

import time

import torch


class Waiting:
    """From the last gradient that a rank computes to the end of its backward pass, summed up.

    Args:
        device: where the rank computes. On a GPU, events are recorded, and read only by `take`.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._began: float | torch.cuda.Event | None = None
        self._spans: list[tuple] = []

    def begin(self, *_: object) -> None:
        """This rank's own work is done; for use as a hook."""
        self._began = self._now()

    def end(self) -> None:
        """The backward pass is over, and all gradients are shared."""
        if self._began is not None:
            self._spans.append((self._began, self._now()))
        self._began = None

    def take(self) -> float:
        """Seconds since the last call."""
        spans, self._spans = self._spans, []
        if not self._on_gpu:
            return sum(end - begin for begin, end in spans)
        torch.cuda.synchronize()
        return sum(begin.elapsed_time(end) for begin, end in spans) / 1000

    def _now(self) -> "float | torch.cuda.Event":
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
