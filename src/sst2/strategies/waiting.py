"""How long a rank's backward pass goes on when its own gradients are there: communication that nothing hides."""

import torch

from sst2.device_clock import DeviceClock, Moment


class Waiting:
    """From the last gradient that a rank computes to the end of its backward pass, summed up.

    Args:
        device: where the rank computes.
    """

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
