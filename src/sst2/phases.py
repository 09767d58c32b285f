"""Where the time of an optimizer step goes."""

import torch

from sst2.device_clock import DeviceClock, Moment

# A graph is the three before it in one; at the stop check, after a step, all ranks agree whether to go on.
PHASES = ("data", "forward", "backward", "optimizer", "graph", "stop_check")


class Phases:
    """The time that a rank has spent in each of `PHASES`, summed up. On a GPU it is the device's time.

    Args:
        device: where the rank computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._clock = DeviceClock(device)
        self._current: tuple[str, Moment] | None = None
        self._spans: dict[str, list[tuple[Moment, Moment]]] = {phase: [] for phase in PHASES}

    def begin(self, phase: str) -> None:
        """One of `PHASES` begins, and the one before ends. Those that are recorded to a graph go by as it does."""
        if self._clock.is_stopped:
            return
        now = self.end()
        self._current = phase, now

    def end(self) -> Moment:
        """The step is over. Returns the moment."""
        now = self._clock.now()
        if self._current is not None:
            phase, began = self._current
            self._spans[phase].append((began, now))
        self._current = None
        return now

    def take(self) -> list[float]:
        """Seconds since the last call, in the order of `PHASES`."""
        spans, self._spans = self._spans, {phase: [] for phase in PHASES}
        return [self._clock.seconds(spans[phase]) for phase in PHASES]
