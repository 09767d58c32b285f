"""What a run has before it is counted from its plan: the same steps, sentences and tokens that it then takes."""

import numpy as np
import pytest

from sst2.data.batch_plan import BatchPlan
from sst2.data.splits import Split
from sst2.training.dry_run import workload
from sst2.training.dry_run.workload import OneStep, PlannedStep, Workload, multiples, shortened, tokens_of_steps


def split_of(lengths: np.ndarray) -> Split:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids, labels = np.arange(offsets[-1], dtype=np.int32), np.arange(len(lengths), dtype=np.int16)
    return Split("validation", [f"text {row}" for row in range(len(lengths))], labels, ids, offsets)


def planned(number: int, busiest: int, attention: int = 0) -> PlannedStep:
    return PlannedStep(number, sentences=4, tokens=busiest, padded=busiest, busiest=busiest, attention=attention)


def workload_of(*steps: PlannedStep, left: int) -> Workload:
    return Workload(0, left, sentences=0, tokens=0, steps=[*steps], shapes=0, evaluated=[], saved=[])


@pytest.mark.parametrize("first", [0, 3, 20])
def test_tokens_of_steps_are_those_of_their_sentences(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "SENTENCES_AT_ONCE", 50)  # two steps of 16 and more at once
    train = split_of(np.random.default_rng(0).integers(3, 60, 100))
    plan = BatchPlan(len(train), 16, seed=1, total_steps=20)  # 7 an epoch, the last one of 4 sentences
    expected = [int(train.lengths(plan.indices(step)).sum()) for step in range(first, 20)]
    assert tokens_of_steps(plan, train, first).tolist() == expected


def test_a_plan_of_one_step_has_its_sentences_whatever_the_step() -> None:
    plan = BatchPlan(100, 16, seed=1, total_steps=20)
    one = OneStep(**vars(plan), chosen=9)
    assert all(np.array_equal(one.indices(step), plan.indices(9)) for step in (0, 9, 500))
    assert (one.total_steps, one.steps_per_epoch) == (20, 7)


def test_time_between_measured_steps_lies_on_the_line_between_them() -> None:
    steps = [planned(number, busiest) for number, busiest in enumerate((100, 200, 300, 400))]
    measured = [(400, 5.0), (100, 1.0), (200, 1.5), (200, 2.5)]  # of 300 tokens: between 2 and 5
    assert workload_of(*steps, left=4).seconds(measured) == pytest.approx(1 + 2 + 3.5 + 5)
    assert workload_of(*steps, left=400).seconds(measured) == pytest.approx(100 * 11.5)  # some stand for all
    assert workload_of(left=0).seconds([]) == 0.0


def test_what_is_measured_has_the_largest_step_first_and_the_one_of_most_attention() -> None:
    steps = [planned(0, 100), planned(1, 300, attention=9), planned(2, 400, attention=5), planned(3, 200)]
    chosen = workload_of(*steps, planned(4, 200), left=5).to_measure(each_shape=False)
    assert [step.number for step in chosen] == [2, 1, 3, 4, 0]
    many = [planned(number, 1000 - number, attention=number == 30) for number in range(101)]
    chosen = workload_of(*many, left=101).to_measure(each_shape=False)
    assert [step.number for step in chosen] == [0, 25, 30, 50, 75, 100]  # and quartiles
    each = workload_of(*steps, planned(4, 200), left=5).to_measure(each_shape=True)
    assert [step.busiest for step in each] == [400, 300, 200, 100]
    assert workload_of(left=0).to_measure(each_shape=True) == []


@pytest.mark.parametrize(
    ("every", "first", "total", "steps"),
    [(5, 0, 12, [5, 10]), (5, 5, 15, [10, 15]), (5, 6, 9, []), (1, 2, 4, [3, 4])],
)
def test_what_comes_every_so_many_steps(every: int, first: int, total: int, steps: list[int]) -> None:
    assert [*multiples(every, first, total)] == steps


def test_a_shortened_split_keeps_whole_batches_and_the_longest_sentences() -> None:
    split = split_of(np.random.default_rng(0).integers(3, 60, 95))
    assert shortened(split, batch_size=10, most_batches=10) is split
    short = shortened(split, batch_size=10, most_batches=4)
    order = np.argsort(-split.lengths(), kind="stable")
    rows = np.concatenate([order[0:10], order[30:40], order[60:70], order[90:95]])
    assert short.lengths().tolist() == split.lengths(rows).tolist()
    assert short.labels.tolist() == rows.tolist()
    assert [*short.sentences] == [f"text {row}" for row in rows]
    for place, row in enumerate(rows):
        own = short.input_ids[short.offsets[place] : short.offsets[place + 1]]
        assert np.array_equal(own, split.input_ids[split.offsets[row] : split.offsets[row + 1]])
