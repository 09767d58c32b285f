"""Optimizer steps as CUDA graphs: captured once for each shape, then replayed whole.

A step of DistilBERT on some hundred tokens is over a thousand small operations. Asking for them one by one takes a host
several times as long as a GPU needs to do them; a graph is asked for at once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from sst2.config.settings import Settings
from sst2.data.collation import Batch, MicroBatches
from sst2.data.packing import Pack
from sst2.distributed.strategies.strategy import Strategy
from sst2.utils.errors import UserError

FEWEST_TOKENS = 64  # numbers of tokens are rounded up to a multiple of it,
IGNORED = -100  # torch's label for what has none
BUCKETS = 8  # or of the power of two below the usual number divided by this

StepResult = tuple[torch.Tensor, torch.Tensor]  # the sum of a step's losses and its gradient norm, () each
StepFunction = Callable[[MicroBatches], StepResult]


class StepRunner:
    """Runs steps eagerly, operation by operation."""

    def run(self, micro_batches: MicroBatches, step_function: StepFunction) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Run a step on this rank's micro-batches, which are on the host.

        Returns:
            What `step_function` has returned, and the tokens that it was given, padding included.
        """
        return *step_function(micro_batches), sum(batch.size for batch, _ in micro_batches)


def step_runner(
    strategy: Strategy,
    settings: Settings,
    lengths: np.ndarray,
    start_phase: Callable[[str], None],
) -> StepRunner:
    """Have steps captured to CUDA graphs, if they can be.

    They can on one process with one GPU, for packed batches in bf16, one micro-batch a step. The sizes of padded
    batches, and of attention in grids, follow from their sentences; fp16's loss scale is looked at by the host, ranks
    wait for each other, and gradient checkpointing saves and restores random states on the host.

    `lengths` are the tokens of each training sentence, (sentences,).
    """
    fits = settings.cuda_graphs == "auto" and settings.batching == "packed" and settings.mixed_precision == "bf16"
    fits = fits and settings.gradient_accumulation_steps == 1 and strategy.fits_a_graph
    fits = fits and not settings.gradient_checkpointing
    if not fits or _runs_in_grids(strategy):
        return StepRunner()
    assert settings.global_batch_size is not None
    return CudaGraphRunner(strategy.optimizer, strategy.device, settings.global_batch_size, lengths, start_phase)


@torch.no_grad()
def _runs_in_grids(strategy: Strategy) -> bool:
    """Whether attention asks for grids, whose sizes follow from the sentences; found out by a batch of two."""
    pack = Pack.of(np.array([2, 3])).to(strategy.device)
    ids = torch.zeros(pack.num_tokens, dtype=torch.int64, device=strategy.device)
    strategy.model.eval()
    strategy.model(input_ids=ids, position_ids=ids, pack=pack)
    return pack.has_grids


def pad_to_bucket(batch: Batch, multiple: int, longest: int) -> Batch:
    """A packed batch with some sentences more, of padding, that no loss looks at: its shape is one of few.

    They are as many in every batch, `multiple` / `FEWEST_TOKENS`, and each has a token at least: attention might leave
    the gradients of an empty one as it finds them in memory.

    Args:
        batch: packed, on the CPU.
        multiple: of which the number of tokens is one afterwards; a multiple of `FEWEST_TOKENS`.
        longest: tokens of the longest sentence that may come.
    """
    count = multiple // FEWEST_TOKENS
    spare = count + -(batch.size + count) % multiple
    lengths = np.diff(spare * np.arange(count + 1) // count)
    pack = Pack.of(np.concatenate([batch.inputs["pack"].lengths, lengths]), max(longest, FEWEST_TOKENS + 1))
    filled = {name: F.pad(batch.inputs[name], (0, spare)) for name in ("input_ids", "position_ids")}
    return Batch(filled | {"pack": pack}, F.pad(batch.labels, (0, count), value=IGNORED), batch.indices)


class CudaGraphRunner(StepRunner):
    """Replays steps of `batch_size` sentences, and runs others eagerly. A shape that comes again is captured.

    The first time, the step is run as it would be without this class; libraries then prepare what they cannot prepare
    in a capture. Nothing is captured for which the GPU has no room: graphs keep their memory, all in one pool, and
    steps without one need theirs beside it.

    Args:
        optimizer: of the steps; the learning rates of its groups may change from step to step, nothing else.
        lengths: (sentences,) tokens of each training sentence.
        start_phase: called with `graph` when a step is replayed or captured.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        batch_size: int,
        lengths: np.ndarray,
        start_phase: Callable[[str], None],
    ) -> None:
        self._batch_size, self._start_phase = batch_size, start_phase
        self._optimizer, self._device = optimizer, device
        self._longest = int(lengths.max())
        usual = batch_size * float(lengths.mean())
        self._multiple = max(FEWEST_TOKENS, 2 ** int(np.log2(usual / BUCKETS)))
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self._graphs: dict[int, Graph | None] = {}  # by number of tokens; None where there is none yet
        self._pool: Any = None

    @property
    def captured(self) -> int:
        """Number of shapes that are captured."""
        return sum(graph is not None for graph in self._graphs.values())

    def run(self, micro_batches: MicroBatches, step_function: StepFunction) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Run a step: see `StepRunner.run`.

        Raises:
            UserError: the device refuses to capture it.
        """
        ((batch, weight),) = micro_batches
        if len(batch.labels) != self._batch_size:  # an epoch's short last step
            return super().run(micro_batches, step_function)
        batch = pad_to_bucket(batch, self._multiple, self._longest)
        self._start_phase("graph")
        if batch.size not in self._graphs or not (self._graphs[batch.size] or self._has_room()):
            self._graphs.setdefault(batch.size, None)
            return super().run([(batch, weight)], step_function)
        for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        graph = self._graphs[batch.size]
        if graph is None:
            try:
                with self._capturable():
                    graph = Graph(step_function, batch.to(self._device), weight, self._pool)
            except RuntimeError as error:  # which leaves CUDA's state such that nothing can go on
                reason = str(error).partition("\n")[0]
                raise UserError(
                    f"this GPU cannot capture steps as CUDA graphs ({reason}): give --cuda_graphs no"
                ) from error
            self._graphs[batch.size], self._pool = graph, graph.pool
        return *graph.replay(batch), batch.size

    def _has_room(self) -> bool:
        """Whether another step fits the GPU beside all that is there."""
        free, _ = torch.cuda.mem_get_info(self._device)
        return free > torch.cuda.max_memory_allocated(self._device)

    @contextmanager
    def _capturable(self) -> Iterator[None]:
        """A graph repeats the numbers that it was captured with, so that it has to find learning rates in memory."""
        groups = self._optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group, in_memory in zip(groups, self._rates, strict=True):
            group.update(lr=in_memory, capturable=True)
        try:
            yield
        finally:
            for group, rate in zip(groups, rates, strict=True):
                group.update(lr=rate, capturable=False)


class Graph:
    """One shape's step, and the memory that it finds its batch in."""

    def __init__(self, step_function: StepFunction, batch: Batch, weight: float, pool: Any) -> None:
        self._batch = batch
        self._graph = torch.cuda.CUDAGraph()
        # What other threads ask of the GPU meanwhile is no business of the capture.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._result = step_function([(batch, weight)])
        self.pool = self._graph.pool()

    def replay(self, batch: Batch) -> StepResult:
        """Copy a batch of the graph's shape to where the graph finds it, and take its step."""
        for own, new in zip(self._batch.tensors(), batch.tensors(), strict=True):
            own.copy_(new.pin_memory(), non_blocking=True)
        self._graph.replay()
        loss, norm = self._result
        return loss.clone(), norm.clone()  # the next graph may use their memory
