"""Which steps are recorded, and what is left as it was. Recording needs a GPU: tests/gpu/test_cuda_graphs_on_gpu.py."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sst2.data.collation import Batch, MicroBatches, collate
from sst2.data.splits import Split
from sst2.training.steps import cuda_graphs
from sst2.training.steps.buckets import Buckets
from sst2.training.steps.cuda_graphs import CudaGraphRunner
from sst2.training.steps.runner import Number, Step
from sst2.utils.errors import UserError

WholeStep = Callable[[Batch], tuple[torch.Tensor, torch.Tensor]]


class Recorded:
    """In place of a CUDA graph: takes the step anew each time, and notes what it was recorded with."""

    rates: list[Any] = []  # noqa: RUF012  emptied by the fixture

    def __init__(self, whole_step: WholeStep, batch: Batch, pool: object) -> None:
        self._whole_step, self.pool = whole_step, "the pool"
        assert pool == (None if not self.rates else "the pool")
        whole_step(batch)

    def replay(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        Passes.replayed.append(batch.size)
        return self._whole_step(batch)


class Passes:
    """Passes that note their sizes."""

    taken: list[int] = []  # noqa: RUF012
    divisors: list[tuple[int, float]] = []  # noqa: RUF012  where they were found, and which
    replayed: list[int] = []  # noqa: RUF012

    def __call__(self, micro_batches: MicroBatches, divisor: Number) -> torch.Tensor:
        ((batch, _),) = micro_batches
        assert isinstance(divisor, torch.Tensor)
        self.divisors.append((divisor.data_ptr(), float(divisor)))
        self.taken.append(batch.size)
        return torch.zeros(())


class Alone:
    """A strategy of one process."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        groups = [{"params": torch.nn.Parameter(torch.zeros(3)), "lr": rate} for rate in (0.25, 0.75)]
        self.optimizer = torch.optim.AdamW(groups)
        self.rates: list[list[Any]] = []  # of each step
        self.counted: list[tuple[float, float, float]] = []

    def count(self, loss_sum: torch.Tensor, grad_norm: torch.Tensor, loss_weight: Number) -> None:
        self.counted.append((float(loss_sum), float(grad_norm), float(loss_weight)))

    def reduce_gradients(self) -> None:
        """None to share."""

    def optimizer_step(self) -> torch.Tensor:
        groups = self.optimizer.param_groups
        self.rates.append([group["lr"].clone() for group in groups])
        if groups[0]["capturable"]:
            Recorded.rates.append([float(group["lr"]) for group in groups])
        return torch.ones(())


@pytest.fixture
def strategy() -> Any:
    return Alone()


@pytest.fixture
def graphs(strategy: Any, monkeypatch: pytest.MonkeyPatch) -> CudaGraphRunner:
    for noted in (Recorded.rates, Passes.taken, Passes.replayed, Passes.divisors):
        noted.clear()
    monkeypatch.setattr(cuda_graphs, "Graph", Recorded)
    monkeypatch.setattr(cuda_graphs, "has_room", lambda device: True)
    buckets = Buckets.of(2, np.array([10, 20]))
    return CudaGraphRunner(strategy, batch_of, strategy.count, buckets, start_phase=lambda phase: None)


def batch_of(lengths: np.ndarray) -> Batch:
    """Of sentences whose indices are their lengths."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    labels, ids = np.zeros(len(lengths), np.int64), np.ones(offsets[-1], np.int32)
    split = Split(name="train", sentences=[""] * len(lengths), labels=labels, input_ids=ids, offsets=offsets)
    return collate(split, np.arange(len(lengths)), 0, "packed")


def step_of(*lengths: int) -> Step:
    return Step([(np.array(lengths), 1.0)], divisor=float(sum(lengths)), loss_weight=float(len(lengths)))


def test_a_shape_is_recorded_when_it_comes_again(graphs: CudaGraphRunner, strategy: Any) -> None:
    for lengths in ([10, 20], [60, 20], [12, 20], [11, 13], [60, 9]):
        norm, tokens = graphs.run(step_of(*lengths), Passes(), strategy.optimizer_step)
        assert (float(norm), tokens % 64) == (1, 0)
    assert Passes.replayed == [64, 64, 128]
    assert graphs.captured == 2
    assert Passes.taken == [64, 128, 64, 64, 64, 128, 128]  # a recording is a step that is not done
    assert [divisor for _, divisor in Passes.divisors] == [30, 80, 32, 32, 24, 69, 69]
    assert len({place for place, _ in Passes.divisors}) == 1  # where a graph finds it
    assert strategy.counted == [(0, 1, 2)] * 5


def test_an_epochs_short_last_step_is_not_padded(graphs: CudaGraphRunner, strategy: Any) -> None:
    for _ in range(3):
        graphs.run(step_of(7), Passes(), strategy.optimizer_step)
    assert (Passes.taken, Passes.replayed) == ([7, 7, 7], [])


def test_every_step_finds_each_groups_rate_in_memory_and_leaves_the_optimizer_as_it_was(
    graphs: CudaGraphRunner, strategy: Any
) -> None:
    groups = strategy.optimizer.param_groups

    def step_at(*rates: float) -> None:
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        graphs.run(step_of(10, 20), Passes(), strategy.optimizer_step)
        assert [(group["lr"], group["capturable"]) for group in groups] == [(rate, False) for rate in rates]

    for rates in ((0.5, 0.5), (0.125, 0.375), (0.0625, 0.25)):
        step_at(*rates)
    assert Recorded.rates == [[0.125, 0.375]]
    assert all(rate.dtype == torch.float32 for rates in strategy.rates for rate in rates)
    # the second is recorded, which is no step, and replayed at once
    assert [[float(rate) for rate in rates] for rates in strategy.rates] == [
        [0.5, 0.5],
        [0.125, 0.375],
        [0.125, 0.375],
        [0.0625, 0.25],
    ]


def test_nothing_is_recorded_without_room(
    graphs: CudaGraphRunner, strategy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graphs, "has_room", lambda device: False)
    for _ in range(3):
        graphs.run(step_of(10, 20), Passes(), strategy.optimizer_step)
    assert (graphs.captured, Passes.replayed, Passes.taken) == (0, [], [64] * 3)


def test_a_device_that_refuses_is_named_with_the_way_out(graphs: CudaGraphRunner, strategy: Any) -> None:
    def refuse(micro_batches: MicroBatches, divisor: Number) -> torch.Tensor:
        if strategy.optimizer.param_groups[0]["capturable"]:
            raise RuntimeError("operation not permitted when stream is capturing\nmore lines")
        return torch.zeros(())

    graphs.run(step_of(10, 20), refuse, strategy.optimizer_step)
    with pytest.raises(UserError, match=r"\(operation not permitted when stream is capturing\): give --cuda_graphs no"):
        graphs.run(step_of(10, 20), refuse, strategy.optimizer_step)
    assert strategy.optimizer.param_groups[0]["capturable"] is False
