"""Optuna's study: each process asks it anew, and tells it first what it finds in the folders."""

import json
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from sst2.config.run_flags import FlagParser
from sst2.sweeps.folder import SweepFolder, begin
from sst2.sweeps.starts import TRIALS, start
from sst2.sweeps.study import ask

PARSER = FlagParser("train_sst2.py", "")
PLAN = """
method: optuna
trials: 8
fixed: {smoke: true}
space:
  learning_rate: {min: 1e-5, max: 1e-1, log: true}
  max_train_steps: {min: 10, max: 50, step: 20}
  dropout: [null, 0.1]
"""


@pytest.fixture
def sweep(tmp_path: Path) -> SweepFolder:
    (tmp_path / "space.yaml").write_text(PLAN)
    return begin(tmp_path / "space.yaml", tmp_path / "sweep", PARSER)


def again(sweep: SweepFolder) -> SweepFolder:
    """As another process sees it."""
    return SweepFolder(sweep.path, PARSER)


def trials_of(sweep: SweepFolder) -> list[optuna.trial.FrozenTrial]:
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(sweep.journal)))
    trials: list[optuna.trial.FrozenTrial] = optuna.load_study(study_name="sweep", storage=storage).get_trials()
    return trials


def test_trials_differ_and_keep_their_settings(sweep: SweepFolder) -> None:
    flags = []
    for number in range(4):
        assert start(again(sweep), TRIALS, number)
        flags.append(sweep.flags(sweep.trials[number]) or {})
    assert len({own["learning_rate"] for own in flags}) == 4
    assert all(1e-5 <= own["learning_rate"] <= 1e-1 and own["max_train_steps"] in (10, 30, 50) for own in flags)
    assert all(own.get("dropout") in (None, 0.1) for own in flags)
    assert start(again(sweep), TRIALS, 2)  # requeued
    assert sweep.flags(sweep.trials[2]) == flags[2]
    assert len(trials_of(sweep)) == 4


def test_a_trial_that_was_killed_before_it_wrote_its_settings_down_gets_them_again(sweep: SweepFolder) -> None:
    assert ask(again(sweep), 3) == ask(again(sweep), 3)
    assert len(trials_of(sweep)) == 1


def test_what_has_come_of_others_is_told(sweep: SweepFolder) -> None:
    results: list[dict[str, Any] | None] = [
        {"accuracy": 0.7, "loss": 0.5},
        {"accuracy": 0.9, "loss": 0.5, "holdout": {"accuracy": 0.6, "loss": 0.5}},
        {"accuracy": 0.5, "loss": 0.5, "stopped": "worse than the median of other runs"},
        None,
    ]
    for number, metrics in enumerate(results):
        found = start(again(sweep), TRIALS, number)
        assert found
        if metrics:
            found[0].folder.mkdir()
            (found[0].folder / "metrics.json").write_text(json.dumps(metrics))
    sweep.trials[3].exit_file.write_text("3\n")
    for number in (4, 5):  # of which the first still runs
        assert start(again(sweep), TRIALS, number)
    states = optuna.trial.TrialState
    told = [(trial.state, trial.value) for trial in trials_of(sweep)]
    assert told == [
        (states.COMPLETE, 0.7),
        (states.COMPLETE, 0.6),
        (states.PRUNED, None),
        (states.FAIL, None),
        *[(states.RUNNING, None)] * 2,
    ]


def test_a_trial_that_has_failed_and_finishes_at_another_start_is_told(sweep: SweepFolder) -> None:
    found = start(sweep, TRIALS, 0)
    assert found
    found[0].exit_file.write_text("1\n")
    assert start(sweep, TRIALS, 1)
    assert start(sweep, TRIALS, 0)  # by the same command again
    found[0].folder.mkdir()
    (found[0].folder / "metrics.json").write_text(json.dumps({"accuracy": 0.7, "loss": 0.5}))
    assert start(sweep, TRIALS, 2)
    told, *_ = trials_of(sweep)
    assert (told.state, told.value) == (optuna.trial.TrialState.COMPLETE, 0.7)


def test_a_stepped_value_is_the_number_that_a_grid_has(tmp_path: Path) -> None:
    plan = "method: optuna\ntrials: 12\nfixed: {smoke: true}\nspace: {dropout: {min: 0, max: 0.47, step: 0.05}}\n"
    (tmp_path / "space.yaml").write_text(plan)
    sweep = begin(tmp_path / "space.yaml", tmp_path / "sweep", PARSER)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Optuna's, of a step that does not lead to the end
        for number in range(12):
            assert start(sweep, TRIALS, number)
    values = {(sweep.flags(run) or {})["dropout"] for run in sweep.trials}
    assert len(values) > 4
    assert values <= {number * 5 / 100 for number in range(10)}


def test_the_sampler_learns_from_what_it_is_told(tmp_path: Path) -> None:
    # The score is best at a rate of 1e-3: of twenty trials after twenty, most lie nearer to it than by chance.
    (tmp_path / "space.yaml").write_text(PLAN.replace("trials: 8", "trials: 40"))
    sweep = begin(tmp_path / "space.yaml", tmp_path / "sweep", PARSER)
    distances = []
    for number in range(40):
        found = start(sweep, TRIALS, number)
        assert found
        rate = (sweep.flags(found[0]) or {})["learning_rate"]
        distances.append(max(rate / 1e-3, 1e-3 / rate))
        found[0].folder.mkdir()
        (found[0].folder / "metrics.json").write_text(json.dumps({"accuracy": 1 / distances[-1], "loss": 0.5}))
    assert sum(distance < 5 for distance in distances[20:]) > 12  # by chance 7
    lost = sweep.trials[30]  # which would be given others by now
    flags = sweep.flags(lost)
    (lost.folder / "metrics.json").unlink()
    assert start(sweep, TRIALS, 30)
    assert sweep.flags(lost) == flags
