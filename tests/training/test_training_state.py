"""The sums behind the logged means, and which evaluation counts as the best."""

import json
from dataclasses import asdict
from math import isnan

import pytest

from sst2.checkpoints.training_state import TrainingState
from sst2.training.step_metrics import pop_averages


def test_means_are_per_sentence_since_the_last_point_and_leave_broken_steps_out_of_the_loss() -> None:
    state = TrainingState()
    for sentences, tokens, busiest_tokens in ((4, 40, 44), (4, 60, 60), (2, 20, 40)):
        state.count_step(sentences, tokens, busiest_tokens)
    times = {"waiting": 0.4, "data": 0.0, "forward": 0.5}
    state.add_measured(loss_sum=8.0, loss_weight=4, padded_tokens=110, times=times, seconds=2.0)
    times = {"waiting": 0.0, "data": 0.2, "forward": 0.3}
    state.add_measured(loss_sum=1.0, loss_weight=2, padded_tokens=40, times=times, seconds=2.0)
    expected = {
        "loss": 9 / 6,
        "sentences_per_second": 10 / 4,
        "tokens_per_second": 30.0,
        "padding_share": 1 - 120 / 150,
        "token_imbalance": 144 / 120 - 1,
        "step_seconds": 4 / 3,
        "waiting_share": 0.4 / 4,
        "data_share": 0.2 / 4,
        "forward_share": 0.8 / 4,
    }
    assert pop_averages(state) == pytest.approx(expected)
    state.count_step(3, 9, 9)
    state.add_measured(3.0, 3, 9, {"waiting": 0.0}, 0.5)
    expected = {"loss": 1.0, "sentences_per_second": 6.0, "tokens_per_second": 18.0, "padding_share": 0.0}
    expected |= {"token_imbalance": 0.0, "waiting_share": 0.0, "step_seconds": 0.5}
    assert pop_averages(state) == pytest.approx(expected)
    # The totals go on.
    assert (state.step, state.sentences, state.seconds) == (4, 13, 4.5)


def test_a_window_of_broken_steps_has_no_loss() -> None:
    state = TrainingState()
    state.count_step(4, 40, 40)
    state.add_measured(0.0, 0, 50, {}, 1.0)
    assert isnan(pop_averages(state)["loss"])


def test_accuracy_decides_and_the_loss_between_equals() -> None:
    state = TrainingState()
    # accuracy, loss, best so far?, evaluations since the best
    evaluations = [
        (0.80, 0.50, True, 0),
        (0.80, 0.50, False, 1),  # no better than before
        (0.70, 0.10, False, 2),
        (0.80, 0.40, True, 3),  # the better of two, but patience waits for accuracy
        (0.90, 0.90, True, 0),
        (0.90, 0.0, True, 1),
        (0.90, 0.01, False, 2),  # a loss of zero is a loss
    ]
    for step, (accuracy, loss, is_best, since) in enumerate(evaluations, start=1):
        state.step = step
        assert state.count_evaluation(accuracy, loss) is is_best
        assert state.evaluations_without_improvement == since
    assert (state.best_step, state.best_score, state.best_loss) == (6, 0.90, 0.0)


def test_a_state_goes_on_from_json_in_the_middle_of_a_window() -> None:
    state = TrainingState()
    state.count_step(3, 31, 31)
    state.add_measured(1 / 3, 3, 37, {"waiting": 0.01}, 0.1)
    state.count_evaluation(2 / 3, 0.7)
    resumed = TrainingState(**json.loads(json.dumps(asdict(state))))
    assert resumed == state
    for one in (state, resumed):
        one.count_step(3, 30, 31)
        one.add_measured(0.1, 3, 40, {"waiting": 0.01}, 0.2)
    assert pop_averages(resumed) == pop_averages(state)
