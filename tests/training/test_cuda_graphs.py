"""Which steps are recorded, and what is left as it was. Recording needs a GPU: tests/gpu/test_cuda_graphs_on_gpu.py."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sst2.config.arguments import parse_arguments
from sst2.data.collation import Batch, MicroBatches, collate
from sst2.data.splits import Split
from sst2.training import cuda_graphs
from sst2.training.cuda_graphs import CudaGraphRunner, StepFunction, StepResult, StepRunner
from sst2.utils.errors import UserError


class Recorded:
    """In place of a CUDA graph: takes the step anew each time, and notes what it was recorded with."""

    rates: list[Any] = []  # noqa: RUF012  emptied by the fixture

    def __init__(self, take: StepFunction, batch: Batch, weight: float, pool: object) -> None:
        self._take, self.pool = take, "the pool"
        assert pool == (None if not self.rates else "the pool")
        take([(batch, weight)])

    def replay(self, batch: Batch) -> StepResult:
        Steps.replayed.append(batch.size)
        return self._take([(batch, 1.0)])


class Steps:
    """A step that notes its sizes, and what the optimizer says of itself."""

    taken: list[int] = []  # noqa: RUF012
    replayed: list[int] = []  # noqa: RUF012

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.groups = optimizer.param_groups

    def __call__(self, passes: MicroBatches) -> StepResult:
        ((batch, _),) = passes
        self.taken.append(batch.size)
        if self.groups[0]["capturable"]:
            Recorded.rates.append([float(group["lr"]) for group in self.groups])
        return torch.zeros(()), torch.ones(())


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> CudaGraphRunner:
    for noted in (Recorded.rates, Steps.taken, Steps.replayed):
        noted.clear()
    monkeypatch.setattr(cuda_graphs, "Graph", Recorded)
    monkeypatch.setattr(CudaGraphRunner, "_has_room", lambda self: True)
    groups = [{"params": torch.nn.Parameter(torch.zeros(3)), "lr": rate} for rate in (0.25, 0.75)]
    optimizer = torch.optim.AdamW(groups)
    return CudaGraphRunner(optimizer, torch.device("cpu"), 2, np.array([10, 20]), start_phase=lambda phase: None)


def batch_of(*lengths: int) -> MicroBatches:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    labels, ids = np.zeros(len(lengths), np.int64), np.ones(offsets[-1], np.int32)
    split = Split(name="train", sentences=[""] * len(lengths), labels=labels, input_ids=ids, offsets=offsets)
    return [(collate(split, np.arange(len(lengths)), 0, "packed"), 1.0)]


def test_a_shape_is_recorded_when_it_comes_again(graphs: CudaGraphRunner) -> None:
    take = Steps(graphs._optimizer)
    for lengths in ([10, 20], [60, 20], [12, 20], [11, 13], [60, 9]):
        loss, norm, tokens = graphs.run(batch_of(*lengths), take)
        assert (float(loss), float(norm), tokens % 64) == (0, 1, 0)
    assert Steps.replayed == [64, 64, 128]
    assert graphs.captured == 2
    assert Steps.taken == [64, 128, 64, 64, 64, 128, 128]  # a recording is a step that is not done


def test_a_recording_finds_each_groups_rate_in_memory_and_leaves_the_optimizer_as_it_was(
    graphs: CudaGraphRunner,
) -> None:
    groups = graphs._optimizer.param_groups
    take = Steps(graphs._optimizer)

    def set_rates(*rates: float) -> None:
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate

    for rates in ((0.5, 0.5), (0.125, 0.375)):
        set_rates(*rates)
        graphs.run(batch_of(10, 20), take)
    assert Recorded.rates == [[0.125, 0.375]]
    assert [(group["lr"], group["capturable"]) for group in groups] == [(0.125, False), (0.375, False)]
    set_rates(0.0625, 0.25)
    graphs.run(batch_of(10, 20), take)
    assert [float(rate) for rate in graphs._rates] == [0.0625, 0.25]


def test_nothing_is_recorded_without_room(graphs: CudaGraphRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaGraphRunner, "_has_room", lambda self: False)
    for _ in range(3):
        graphs.run(batch_of(10, 20), Steps(graphs._optimizer))
    assert (graphs.captured, Steps.replayed, Steps.taken) == (0, [], [64] * 3)


def test_a_device_that_refuses_is_named_with_the_way_out(graphs: CudaGraphRunner) -> None:
    def refuse(passes: MicroBatches) -> StepResult:
        if graphs._optimizer.param_groups[0]["capturable"]:
            raise RuntimeError("operation not permitted when stream is capturing\nmore lines")
        return torch.zeros(()), torch.ones(())

    graphs.run(batch_of(10, 20), refuse)
    with pytest.raises(UserError, match=r"\(operation not permitted when stream is capturing\): give --cuda_graphs no"):
        graphs.run(batch_of(10, 20), refuse)
    assert graphs._optimizer.param_groups[0]["capturable"] is False


@pytest.mark.parametrize(
    ("flags", "fits", "expected"),
    [
        (["--mixed_precision", "bf16"], True, True),
        (["--mixed_precision", "bf16"], False, False),
        (["--mixed_precision", "fp16"], True, False),
        (["--mixed_precision", "bf16", "--batching", "padded"], True, False),
        (["--mixed_precision", "bf16", "--cuda_graphs", "no"], True, False),
        (["--mixed_precision", "bf16", "--gradient_accumulation_steps", "2"], True, False),
        (["--mixed_precision", "bf16", "--gradient_checkpointing"], True, False),
    ],
)
def test_which_jobs_have_their_steps_recorded(
    flags: list[str], fits: bool, expected: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Strategy:
        fits_a_graph, device = fits, torch.device("cpu")
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))])

    monkeypatch.setattr(cuda_graphs, "_runs_in_grids", lambda strategy: False)
    settings = parse_arguments(["--smoke", "--output_dir", str(tmp_path / "run"), *flags])
    settings = replace(
        settings, gradient_accumulation_steps=settings.gradient_accumulation_steps or 1, global_batch_size=32
    )
    strategy: Any = Strategy()
    found = cuda_graphs.step_runner(strategy, settings, np.array([3, 4]), lambda phase: None)
    assert type(found) is (CudaGraphRunner if expected else StepRunner)
