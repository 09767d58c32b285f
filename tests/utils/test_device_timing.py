"""The time of a step is shared out over its phases, and nothing is lost between them."""

import time

import pytest
import torch
from accelerate import Accelerator
from transformers import DistilBertConfig

from sst2.checkpoints.training_state import TrainingState
from sst2.training.flops import flop_per_token, matrix_peak
from sst2.training.step_metrics import StepMetrics
from sst2.utils.device_timing import PHASES, Phases, Waiting

CPU = torch.device("cpu")


def test_each_phase_has_its_time_and_all_of_them_the_step_s() -> None:
    phases = Phases(CPU)
    started = time.perf_counter()
    for phase, seconds in (("data", 0.01), ("forward", 0.05), ("data", 0.02), ("forward", 0.0), ("optimizer", 0.1)):
        phases.begin(phase)
        time.sleep(seconds)
    phases.end()
    whole = time.perf_counter() - started
    time.sleep(0.05)  # between two steps: nobody's time
    taken = dict(zip(PHASES, phases.take(), strict=True))
    assert taken["data"] >= 0.03
    assert taken["forward"] >= 0.05
    assert taken["backward"] == 0
    assert taken["optimizer"] >= 0.1
    assert sum(taken.values()) == pytest.approx(whole, abs=0.01)
    assert phases.take() == [0] * len(PHASES)


def test_a_meter_reads_them_once() -> None:
    meter, state = StepMetrics(Accelerator(cpu=True), Waiting(CPU)), TrainingState()
    meter.phases.begin("forward")
    time.sleep(0.02)
    meter.phases.end()
    for _ in range(2):
        meter.add(torch.tensor(1.0), torch.tensor(1.0), 4)
        meter.count(40, 0.02)
        meter.read(state)
    assert 0.02 <= state.logged_times["forward"] < 0.2
    assert state.logged_times["backward"] == state.logged_times["waiting"] == 0


def test_the_arithmetic_of_a_token_is_that_of_its_linear_layers() -> None:
    config = DistilBertConfig(n_layers=2, dim=8, hidden_dim=32, n_heads=2)
    layer = 4 * 8 * 8 + 2 * 8 * 32
    assert flop_per_token(config) == 2 * layer * 2 * 3
    assert flop_per_token(DistilBertConfig()) == pytest.approx(3 * 2 * 42.5e6, rel=1e-3)


def test_the_peak_is_measured_and_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    assert 1e8 < matrix_peak(CPU, torch.float32, 0.0, size=128) < 1e14
    assert torch.equal(torch.get_rng_state(), before)
