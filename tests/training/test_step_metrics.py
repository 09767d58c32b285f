"""Sums over steps: what is left out, what is in a row, and when the host has to look."""

import time
from collections.abc import Iterator
from math import inf, nan

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from sst2.checkpoints.training_state import TrainingState
from sst2.training.step_metrics import StepMetrics
from sst2.utils.device_timing import Waiting


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def count(meter: StepMetrics, loss_sum: float, grad_norm: float, sentences: int = 4) -> None:
    meter.add(torch.tensor(loss_sum), torch.tensor(grad_norm), sentences)
    meter.count(padded_tokens=50, seconds=0.5)


def test_steps_that_were_skipped_are_counted_and_their_loss_is_not(accelerator: Accelerator) -> None:
    meter, state = StepMetrics(accelerator, Waiting(accelerator.device)), TrainingState()
    count(meter, 8.0, 1.0)
    count(meter, nan, nan)
    count(meter, 3.0, inf)
    count(meter, 1.0, 2.0, sentences=2)
    assert meter.read(state) == 2
    assert [state.logged[name] for name in ("loss", "loss_weight", "padded_tokens")] == [9.0, 6, 200]
    assert (state.skipped_steps, state.skipped_in_a_row) == (2, 0)
    assert state.seconds == pytest.approx(2.0, abs=0.1)
    assert meter.read(state) == 0  # nothing is counted twice
    assert (state.logged["loss"], state.skipped_steps) == (9.0, 2)


def test_a_row_goes_on_over_reads_and_starts_of_the_run(accelerator: Accelerator) -> None:
    state = TrainingState()
    meter = StepMetrics(accelerator, Waiting(accelerator.device))
    for length in (1, 2):
        count(meter, nan, nan)
        assert meter.read(state) == length
    resumed = StepMetrics(accelerator, Waiting(accelerator.device), state.skipped_in_a_row)
    count(resumed, nan, nan)
    assert resumed.read(state) == 3
    count(resumed, 1.0, 1.0)
    assert resumed.read(state) == 3  # the row that ended with this step
    assert state.skipped_in_a_row == 0
    count(resumed, nan, nan)
    assert resumed.read(state) == 1


def test_what_ranks_do_between_steps_counts_as_a_phase_of_the_next(accelerator: Accelerator) -> None:
    meter, state = StepMetrics(accelerator, Waiting(accelerator.device)), TrainingState()
    with meter.between_steps("stop_check"):
        time.sleep(0.05)
    assert meter.read(state) == 0
    assert state.logged_times == {}  # no step yet that it could be a part of
    count(meter, 1.0, 1.0)
    meter.read(state)
    assert 0.05 <= state.logged_times["stop_check"] <= state.logged["seconds"] - 0.5
    assert state.seconds == state.logged["seconds"]


def test_a_cpu_is_read_after_every_step(accelerator: Accelerator) -> None:
    meter = StepMetrics(accelerator, Waiting(accelerator.device))
    assert not meter.is_due
    count(meter, 1.0, 1.0)
    assert meter.is_due


def test_the_sum_of_many_losses_does_not_depend_on_when_it_is_read(accelerator: Accelerator) -> None:
    losses = torch.rand(1000).tolist()
    sums = []
    for every in (1, 7, 1000):
        meter, state = StepMetrics(accelerator, Waiting(accelerator.device)), TrainingState()
        for number, loss in enumerate(losses, start=1):
            count(meter, loss, 1.0)
            if number % every == 0:
                meter.read(state)
        meter.read(state)
        sums.append(state.logged["loss"])
    assert sums[0] == sums[1] == sums[2]
