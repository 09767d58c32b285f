"""Metrics of optimizer steps: loss, skipped steps, tokens and time, summed up on the device without waiting for it."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator

from sst2.checkpoints.training_state import TrainingState
from sst2.training.flops import DTYPES, matrix_peak
from sst2.training.slow_ranks import RankTimes
from sst2.utils.device_timing import PHASES, Phases, Waiting

STEPS_BETWEEN_READS = 16  # on a GPU


class StepMetrics:
    """Sums of one rank since the last `read`, kept where they arise.

    Reading a number from a GPU makes the host wait for all the work before it, and the GPU then waits for the host. A
    CPU computes at once, so that nothing is lost by reading after each step.

    Args:
        accelerator: knows the ranks.
        waiting: of the strategy's backward passes.
        skipped_in_a_row: the last steps of an earlier start that changed nothing.
        rank_times: gets this rank's own times, where ranks are compared.

    Attributes:
        phases: to be told which phase of a step begins.
        peak: FLOP/s of a large matrix product on this rank's device in the precision of forward passes, measured while
            the other ranks measure theirs.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        waiting: Waiting,
        skipped_in_a_row: int = 0,
        rank_times: RankTimes | None = None,
    ) -> None:
        device = accelerator.device
        self._accelerator, self._waiting, self._rank_times = accelerator, waiting, rank_times
        self.phases = Phases(device)
        self.peak = matrix_peak(device, DTYPES[accelerator.mixed_precision], seconds=0.02)
        self._every = 1 if device.type == "cpu" else STEPS_BETWEEN_READS
        # exact, in any order, for some thousand losses in float32
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sums = torch.zeros(2, dtype=dtype, device=device)  # of the loss, and of the weights of its sentences
        # skipped steps: in a row now, in a row at most, in all
        self._skipped = torch.tensor([skipped_in_a_row, skipped_in_a_row, 0], device=device)
        self._steps = self._padded_tokens = 0
        self._seconds = 0.0

    def add(self, loss_sum: torch.Tensor, grad_norm: torch.Tensor, loss_weight: float | torch.Tensor) -> None:
        """Add one step's results to the sums on the device, in place: a CUDA graph may hold it.

        Loss, in nats, and the weight of its sentences (their number without `--class_weights`) are this rank's;
        `grad_norm` is of all ranks, and not finite if the step was skipped. All tensors are ().
        """
        is_finite = grad_norm.isfinite()
        # A number is filled in by the device; copied there, it would have the host wait.
        weight = loss_weight if isinstance(loss_weight, torch.Tensor) else torch.full_like(self._sums[0], loss_weight)
        both = torch.stack([loss_sum.to(self._sums.dtype), weight.to(self._sums.dtype)])
        self._sums += torch.where(is_finite, both, 0.0)
        now, most, total = self._skipped
        now = torch.where(is_finite, 0, now + 1)
        self._skipped.copy_(torch.stack([now, torch.maximum(now, most), total + ~is_finite]))

    def count(self, padded_tokens: int, seconds: float) -> None:
        """Count one step on the host, which took so many seconds for it."""
        self._steps += 1
        self._padded_tokens += padded_tokens
        self._seconds += seconds

    @contextmanager
    def between_steps(self, phase: str) -> Iterator[None]:
        """Around what all ranks do together after a step: its time counts as a phase of the next one."""
        started = time.perf_counter()
        self.phases.begin(phase)
        yield
        self.phases.end()
        self._seconds += time.perf_counter() - started

    @property
    def is_due(self) -> bool:
        """Whether steps have gone unread for so long that a run which has broken down might not be noticed."""
        return self._steps >= self._every

    def read(self, state: TrainingState) -> int:
        """Add what was counted to `state`, over all ranks. All ranks call it.

        Returns:
            The most steps in a row, since the last call or going on until now, that changed nothing.
        """
        if not self._steps:
            return 0
        started = time.perf_counter()
        on_host = [self._padded_tokens, self._waiting.take(), *self.phases.take()]
        if self._rank_times is not None:
            own_times = dict(zip(("waiting", *PHASES), on_host[1:], strict=True))
            self._rank_times.add(self._steps, own_times, self.phases.take_on_core(), self._padded_tokens)
        own = torch.cat([self._sums, self._sums.new_tensor(on_host)])
        loss_sum, loss_weight, padded_tokens, *times = self._accelerator.reduce(own, reduction="sum").tolist()
        times = [seconds / self._accelerator.num_processes for seconds in times]
        now, most, total = map(int, self._skipped.tolist())
        state.add_measured(
            loss_sum,
            loss_weight,
            int(padded_tokens),
            dict(zip(("waiting", *PHASES), times, strict=True)),
            self._seconds + time.perf_counter() - started,
        )
        state.skipped_steps += total
        state.skipped_in_a_row = now
        self._sums.zero_()
        self._skipped.copy_(torch.tensor([now, now, 0]))
        self._steps = self._padded_tokens = 0
        self._seconds = 0.0
        return most


def peak_memory_mib(device: torch.device) -> float:
    """Highest memory so far in MiB: allocated on the GPU, or resident of this process on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else peak_host_memory_mib()


def peak_host_memory_mib() -> float:
    """Highest resident memory of this process so far in MiB."""
    with suppress(OSError, IndexError):  # of this program alone: ru_maxrss begins at what its launcher had
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere


def progress(step: int, total: int, begun: tuple[float, int]) -> str:
    """How far training is: `25/425 (5.9 %), 0:12:30 left`, at the pace of this start with its evaluations.

    Args:
        step: the last one that is done.
        total: steps of the run.
        begun: when this start began to train, by `time.perf_counter`, and after which step.
    """
    since, first = begun
    seconds_per_step = (time.perf_counter() - since) / max(1, step - first)
    left = timedelta(seconds=round((total - step) * seconds_per_step))
    return f"{step}/{total} ({100 * step / total:.1f} %), {left} left"


def pop_averages(state: TrainingState) -> dict[str, float]:
    """Averages since the last call, from the sums in `state`, which begin anew.

    Loss per sentence in nats (the weighted mean with `--class_weights`), speeds, the share of tokens that were padding,
    by how much the rank with the most tokens had more than the mean, and the shares of time of the phases of a step and
    of waiting for other ranks, which is part of `backward`, or of `graph`.
    """
    sums, times = state.logged, state.logged_times
    state.logged, state.logged_times = {}, {}
    return {
        "loss": sums["loss"] / sums["loss_weight"] if sums["loss_weight"] else float("nan"),
        "sentences_per_second": sums["sentences"] / sums["seconds"],
        "tokens_per_second": sums["tokens"] / sums["seconds"],
        "padding_share": 1 - sums["tokens"] / sums["padded_tokens"],
        "token_imbalance": sums["busiest_tokens"] / sums["tokens"] - 1,
        "step_seconds": sums["seconds"] / sums["steps"],
        **{f"{name}_share": time / sums["seconds"] for name, time in times.items()},
    }
