"""The folder of a sweep: what is left to do is read from it, whoever has written it, and so is what has come of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_ind, ttest_rel

from sst2.cli.sweep import PROGRAM, main
from sst2.config.run_flags import FlagParser
from sst2.runs.run_folder import RunFolder
from sst2.sweeps.folder import SweepFolder, SweepRun, begin
from sst2.sweeps.starts import FINALS, TRIALS, RunInUseError, runs_left, start
from sst2.utils.errors import UserError, exit_codes

PARSER = FlagParser("train_sst2.py", "")
PLAN = """
finalists: 2
final_seeds: 3
fixed: {smoke: true, seed: 2}
baseline: {learning_rate: 2e-3}
space: {learning_rate: [1e-3, 2e-3, 3e-3, 4e-3, 5e-3]}
"""
Sweep = Callable[..., SweepFolder]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    def make(text: str = PLAN) -> SweepFolder:
        (tmp_path / "space.yaml").write_text(text)
        return begin(tmp_path / "space.yaml", tmp_path / "sweep", PARSER)

    return make


def finish(run: SweepRun, accuracy: float, loss: float = 0.5, **more: Any) -> None:
    """As a run leaves its folder that has finished."""
    run.folder.mkdir(parents=True, exist_ok=True)
    metrics = {"accuracy": accuracy, "loss": loss, "split": "validation", "step": 40} | more
    (run.folder / "metrics.json").write_text(json.dumps(metrics))


def start_all(sweep: SweepFolder, stage: str = TRIALS) -> list[SweepRun]:
    started = [start(sweep, stage, number) for number in runs_left(sweep, stage)]
    return [found[0] for found in started if found]


def words_of(sweep: SweepFolder, stage: str, number: int) -> list[str]:
    found = start(sweep, stage, number)
    assert found
    return found[1]


def test_a_trial_has_its_flags_from_its_first_start_on(sweep: Sweep) -> None:
    first = sweep()
    words = words_of(first, TRIALS, 3)
    place = first.path / "trials" / "003"
    assert words == ["--config", f"{place}.yaml", "--output_dir", str(place), "--resume_from_checkpoint", "auto"]
    settings = PARSER.given(words)
    assert settings["output_dir"] == str(place)
    assert first.flags(first.trials[3]) == {"smoke": True, "seed": 2, "learning_rate": 4e-3}
    assert words_of(sweep(), TRIALS, 3) == words  # of another process
    assert [number for number, run in enumerate(first.trials) if run.flags_file.exists()] == [3]


def test_what_is_done_is_left_alone_and_what_was_lost_goes_on(sweep: Sweep) -> None:
    made = sweep()
    runs = start_all(made)
    finish(runs[0], 0.8)
    runs[1].exit_file.write_text("3\n")  # diverged: it would again
    runs[2].exit_file.write_text("137\n")  # killed
    runs[3].folder.mkdir()  # lost
    assert [run.status for run in runs] == [
        "finished",
        "diverged",
        "failed with exit code 137",
        *["not finished"],
        "not begun",
    ]
    assert runs_left(made, TRIALS) == [2, 3, 4]
    assert start(made, TRIALS, 0) is None
    assert words_of(made, TRIALS, 2)
    assert runs[2].status == "not begun"  # its exit code was that of another start


def test_a_run_in_use_is_running_and_is_not_started_again(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = sweep()
    run = made.trials[0]
    run.exit_file.write_text("2\n")  # of an earlier start
    with RunFolder(run.folder) as folder:
        folder.lock()
        assert run.status == "running"
        with pytest.raises(RunInUseError, match="000 is in use by another process"):
            start(made, TRIALS, 0)
        assert run.exit_file.exists()  # nothing was begun
        # A task of SLURM waits for the end of what works in this folder, and then asks again.
        with pytest.raises(SystemExit) as stop, exit_codes(PROGRAM):
            main([str(made.path / TRIALS), "--start", "0"])
        assert stop.value.code == 75
        said = capsys.readouterr()
        assert said.out == f"{run.folder}\n"
        assert "to be started again when that has ended" in said.err
    assert start(made, TRIALS, 0)


def test_one_driver_at_a_time(sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = sweep()
    with made.driven(), pytest.raises(UserError, match=r"sweep is being run by another process already"):
        main([str(tmp_path / "space.yaml"), "--output_dir", str(made.path)])
    assert not any(run.flags_file.exists() for run in made.trials)
    main([str(made.path), "--tables"])  # which needs no turn
    assert "0 of 5 trials have finished." in capsys.readouterr().out


def test_a_start_that_fails_says_by_its_exit_code_whether_to_try_again(sweep: Sweep, tmp_path: Path) -> None:
    made = sweep()

    def code_of(stage: str) -> int:
        with pytest.raises(SystemExit) as stop, exit_codes(PROGRAM):
            main([str(made.path / stage), "--start", "0"])
        return int(stop.value.code or 0)

    assert code_of(TRIALS) == 0
    assert code_of(FINALS) == 2  # its trials have not ended
    plan = made.path / "sweep.yaml"
    plan.rename(tmp_path / "elsewhere")  # as on a node that has not mounted the disk
    assert code_of(TRIALS) == 1
    plan.write_text("space: [")
    assert code_of(TRIALS) == 2


def test_the_median_rule_is_a_flag_of_trials_alone(sweep: Sweep) -> None:
    made = sweep(f"{PLAN}prune: median\n")
    words = words_of(made, TRIALS, 0)
    assert words[-2:] == ["--stop_below_median", str(made.path / "trials")]
    for run in start_all(made):
        finish(run, 0.8)
    assert "--stop_below_median" not in words_of(made, FINALS, 0)


def test_the_best_trials_meet_the_baseline_on_seeds_that_no_trial_had(sweep: Sweep) -> None:
    made = sweep()
    trials = start_all(made)
    # The best has the baseline's settings; one was stopped; of two that are level, the lower loss is better.
    for run, accuracy, loss in zip(trials[:4], (0.8, 0.95, 0.9, 0.9), (0.5, 0.5, 0.4, 0.3), strict=True):
        finish(run, accuracy, loss)
    finish(trials[4], 0.94, stopped="worse than the median of other runs")
    finals = start_all(made, FINALS)
    names = [run.folder.name for run in finals]
    assert names == [f"{arm}-seed{seed}" for arm in ("baseline", "trial003", "trial002") for seed in (1, 3, 4)]
    flags = [made.flags(run) for run in finals]
    assert flags[0] == {"smoke": True, "learning_rate": 2e-3, "seed": 1}
    assert flags[-1] == {"smoke": True, "learning_rate": 3e-3, "seed": 4}
    # The choice stays what it was, and no trial begins any more.
    finish(trials[0], 0.99)
    shutil.rmtree(trials[2].folder)
    assert start_all(made, FINALS) == finals
    assert (runs_left(made, TRIALS), start(made, TRIALS, 2)) == ([], None)


def test_trials_are_chosen_by_the_hold_out_where_there_is_one(sweep: Sweep) -> None:
    made = sweep(PLAN.replace("finalists: 2", "finalists: 1"))
    for number, run in enumerate(start_all(made)):
        finish(run, accuracy=number / 10, holdout={"accuracy": 0.9 - number / 10, "loss": 0.5})
    assert start_all(made, FINALS)[-1].folder.name == "trial000-seed4"


def test_the_same_settings_drawn_twice_are_repeats(sweep: Sweep) -> None:
    made = sweep()
    trials = start_all(made)
    made.write_flags(trials[4], made.flags(trials[0]) or {})  # as Optuna may choose
    for run, accuracy in zip(trials[:4], (0.9, 0.7, 0.6, 0.5), strict=True):
        finish(run, accuracy)
    trials[4].exit_file.write_text("1\n")
    start(made, FINALS, 0)
    assert json.loads(made.choice.read_text())["trials"] == ["000", "002"]  # 001 is the baseline


def test_seeds_in_the_space_are_averaged(sweep: Sweep) -> None:
    plan = "final_seeds: 2\nfixed: {smoke: true, metric_for_best_model: loss}\n"
    made = sweep(f"{plan}space: {{dropout: [0.1, 0.2, 0.3], seed: [1, 3]}}\n")
    trials = start_all(made)
    for run, loss in zip(trials[:5], (0.5, 0.1, 0.29, 0.29, 0.01), strict=True):  # the last one has half of its seeds
        finish(run, 0.5, loss)
    with pytest.raises(UserError, match=r"1 of 6 trials of .*sweep have not ended, 005 for one"):
        start(made, FINALS, 0)
    assert not made.choice.exists()
    trials[5].exit_file.write_text("137\n")
    finals = start_all(made, FINALS)
    assert [run.folder.name for run in finals[2:]] == ["trial002-seed2", "trial002-seed4"]
    assert made.flags(finals[2]) == {"smoke": True, "metric_for_best_model": "loss", "dropout": 0.2, "seed": 2}


def test_a_trial_that_has_failed_and_is_gone_on_with_has_not_ended(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    made = sweep()
    trials = start_all(made)
    for run in trials[1:]:
        finish(run, 0.8)
    trials[0].exit_file.write_text("2\n")
    with RunFolder(trials[0].folder) as folder:  # by train_sst2.py itself, which leaves the exit code there
        folder.lock()
        with pytest.raises(UserError, match=r"1 of 5 trials of .*sweep have not ended, 000 for one"):
            start(made, FINALS, 0)
        assert not made.choice.exists()
    finish(trials[0], 0.9)
    assert "trial000-seed1" in [run.folder.name for run in start_all(made, FINALS)]


def test_without_a_result_there_are_no_finals(sweep: Sweep) -> None:
    made = sweep()
    for run in start_all(made):
        run.exit_file.write_text("3\n")
    with pytest.raises(UserError, match=r"no trial of .*sweep has finished"):
        start(made, FINALS, 0)


@pytest.mark.filterwarnings("error")
def test_the_tables_say_what_is_significant(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    made = sweep()
    for number, run in enumerate(start_all(made)):
        finish(run, 0.7 + number / 100)
    figures = {"baseline": (0.80, 0.81, 0.82), "trial004": (0.86, 0.87, 0.88), "trial003": (0.82, 0.83, 0.84)}
    finals = start_all(made, FINALS)
    for run in finals[:-1]:
        arm, seed = run.folder.name.split("-seed")
        finish(run, figures[arm][["1", "3", "4"].index(seed)])
    main([str(made.path), "--tables"])
    said = capsys.readouterr().out
    assert "There is no result of 1 of the 9 runs of the finals." in said
    assert "not tested: not all runs have finished" in said
    doubled = f"{2 * ttest_ind(figures['trial004'], figures['baseline'], equal_var=False).pvalue:.3g}"
    assert f"| {doubled} " in said  # Holm's correction is for both finalists, also while one is not tested
    assert "The settings that came out best" not in said
    finish(finals[-1], 0.84)
    main([str(made.path), "--tables"])
    said = capsys.readouterr().out
    assert said.strip() == (made.path / "results.md").read_text().strip()
    rows = [line.split(",") for line in (made.path / "finals.csv").read_text().splitlines()]
    best, second = (ttest_ind(figures[arm], figures["baseline"], equal_var=False) for arm in ("trial004", "trial003"))
    assert rows[1][:4] == ["baseline: learning_rate 0.002", "3 of 3", "0.8100 ± 0.0100", ""]
    assert rows[2][2:4] == ["0.8700 ± 0.0100", "+0.0600"]
    interval = best.confidence_interval()
    assert rows[2][4].lstrip("'") == f"{interval.low:+.4f} to {interval.high:+.4f}"
    assert rows[2][5:] == [f"{best.pvalue:.3g}", f"{2 * best.pvalue:.3g}", "better"]  # Holm: the smaller of two
    assert rows[3][5:] == [f"{second.pvalue:.3g}", f"{second.pvalue:.3g}", "not significant"]
    assert "flattered" in said
    assert "With holdout_fraction under fixed" in said
    assert f"--config {made.path}/trials/004.yaml" in said
    for run in finals[3:6]:  # the finals turn the order of the trials round
        finish(run, 0.81)
    main([str(made.path), "--tables"])
    assert f"--config {made.path}/trials/003.yaml" in capsys.readouterr().out
    for run in finals[3:]:
        finish(run, 0.7)
    main([str(made.path), "--tables"])
    assert "No finalist is better than the baseline." in capsys.readouterr().out
    trials = (made.path / "trials.csv").read_text().splitlines()
    assert trials[0] == "trial,learning_rate,accuracy,loss,split,step,status"
    assert trials[1] == "000,0.001,0.7000,0.5000,validation,40,finished"
    assert len(trials) == 6


def test_finals_on_hold_outs_of_their_seeds_are_pairs(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    made = sweep(PLAN.replace("seed: 2}", "seed: 2, holdout_fraction: 0.1}"))
    for number, run in enumerate(start_all(made)):
        finish(run, 0.7 + number / 100, split="holdout")
    # Seeds differ by much more than settings do, whose difference is 0.01, 0.02 and 0.03.
    figures = {"baseline": (0.80, 0.90, 0.70), "trial004": (0.81, 0.92, 0.73), "trial003": (0.80, 0.90, 0.70)}
    for run in start_all(made, FINALS):
        arm, seed = run.folder.name.split("-seed")
        finish(run, figures[arm][["1", "3", "4"].index(seed)], split="holdout")
    main([str(made.path), "--tables"])
    said = capsys.readouterr().out
    header, _, best, second = (line.split(",") for line in (made.path / "finals.csv").read_text().splitlines())
    assert header[5] == "p (paired t)"
    assert best[5] == f"{ttest_rel(figures['trial004'], figures['baseline']).pvalue:.3g}"
    assert [cell.lstrip("'") for cell in second[3:6]] == [
        "+0.0000",
        "+0.0000 to +0.0000",
        "1",
    ]  # no difference in any pair
    assert "those of the paired t-test" in said
    assert "holds out sentences of its own" in said
    assert "With holdout_fraction under fixed" not in said


def test_the_tables_can_be_had_at_any_time(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    made = sweep()
    main([str(made.path / "sweep.yaml"), "--tables"])
    said = capsys.readouterr().out
    assert "0 of 5 trials have finished." in said
    assert "The finals have not begun." in said
    finish(start_all(made)[2], 0.9)
    main([str(made.path), "--tables"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 00")]
    assert lines[0].startswith("| 002")  # the best first
    assert len(lines) == 5
