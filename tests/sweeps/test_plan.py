"""Plans of sweeps: what space.yaml may say, what comes of it, and one line for a mistake before anything is begun."""

import math
import re
from pathlib import Path
from typing import Any

import pytest

from sst2.cli.sweep import PROGRAM, main
from sst2.config.run_flags import FlagParser
from sst2.sweeps.folder import begin
from sst2.sweeps.plan import Plan, Range, read_plan
from sst2.sweeps.starts import TRIALS, start
from sst2.sweeps.trials import check_runs, settings_of_trials
from sst2.utils.errors import exit_codes
from tests.support.running import REPOSITORY

PARSER = FlagParser("train_sst2.py", "")
GRID = "fixed: {smoke: true}\nspace:\n  learning_rate: [1e-3, 2e-3]\n"


def plan_of(text: str, folder: Path) -> Plan:
    (folder / "space.yaml").write_text(text)
    return read_plan(folder / "space.yaml", PARSER)


def test_a_grid_has_every_combination_with_the_types_of_the_flags(tmp_path: Path) -> None:
    plan = plan_of(
        "fixed: {smoke: on, report_to: [none], num_train_epochs: 1}\n"
        "space:\n"
        "  learning_rate: [1e-5, 3e-5]\n"
        "  dropout: [null, 0.2]\n"
        "  max_train_steps: {min: 10, max: 35, step: 10}\n"
        "  class_weights: [[none], [1, 2.5]]\n",
        tmp_path,
    )
    trials = settings_of_trials(plan)
    assert len(trials) == 2 * 2 * 3 * 2
    first, last = trials[0], trials[-1]
    assert first == {"learning_rate": 1e-5, "dropout": None, "max_train_steps": 10, "class_weights": ["none"]}
    assert last == {"learning_rate": 3e-5, "dropout": 0.2, "max_train_steps": 30, "class_weights": ["1", "2.5"]}
    flags = plan.flags_of(first)
    assert "dropout" not in flags  # left open
    assert flags["smoke"] is True
    assert isinstance(flags["max_train_steps"], int)


def test_a_setting_takes_the_place_of_a_fixed_one_that_contradicts_it(tmp_path: Path) -> None:
    plan = plan_of("fixed: {max_train_steps: 9, seed: 3}\nspace:\n  num_train_epochs: [1, 2]\n", tmp_path)
    assert plan.flags_of({"num_train_epochs": 2.0}) == {"seed": 3, "num_train_epochs": 2.0}


def test_the_baseline_leaves_open_what_trials_have_fixed(tmp_path: Path) -> None:
    text = "fixed: {dropout: 0.3, max_train_steps: 9}\nbaseline: {dropout: null, num_train_epochs: null}\n"
    plan = plan_of(f"{text}space: {{learning_rate: [1e-5, 3e-5]}}\n", tmp_path)
    assert plan.flags_of(plan.baseline) == {"max_train_steps": 9}  # open epochs contradict no number of steps
    assert plan.flags_of({"learning_rate": 1e-5})["dropout"] == 0.3


def test_random_trials_of_more_combinations_than_can_be_numbered(tmp_path: Path) -> None:
    names = "learning_rate dropout warmup_ratio weight_decay"
    ranges = "".join(f"  {name}: {{min: 0.1, max: 0.5, step: 5e-6}}\n" for name in names.split())
    trials = settings_of_trials(plan_of(f"method: random\ntrials: 3\nspace:\n{ranges}", tmp_path))
    assert len({trial["dropout"] for trial in trials}) == 3
    assert all(value == round(value, 6) for trial in trials for value in trial.values())


@pytest.mark.parametrize("other", ["dropout: {min: 0, max: 0.5}", "dropout: [0, 0.1]"])
def test_only_the_values_of_a_long_range_that_are_drawn_are_worked_out(
    other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked_out, value = [], Range.value

    def watched(one: Range, number: int) -> Any:
        worked_out.append(number)
        return value(one, number)

    monkeypatch.setattr(Range, "value", watched)
    text = f"method: random\ntrials: 20\nspace: {{learning_rate: {{min: 1e-6, max: 1e-3, step: 1.2e-8}}, {other}}}\n"
    (tmp_path / "space.yaml").write_text(text)
    sweep = begin(tmp_path / "space.yaml", tmp_path / "sweep", PARSER)  # of 83,251 values
    assert sweep.planned
    assert len({*worked_out}) == 20
    worked_out.clear()
    assert start(sweep, TRIALS, 3)  # under the lock, all is known
    assert not worked_out


def test_random_trials_lie_in_their_ranges_and_are_the_same_at_every_start(tmp_path: Path) -> None:
    text = (
        "method: random\ntrials: 400\nseed: 5\nspace:\n"
        "  learning_rate: {min: 1e-5, max: 1e-3, log: true}\n"
        "  weight_decay: {min: 0, max: 0.1}\n"
        "  max_train_steps: {min: 1, max: 3}\n"
        "  warmup_ratio: {min: 0, max: 0.2, step: 0.1}\n"
        "  batching: [packed, padded]\n"
    )
    trials = settings_of_trials(plan_of(text, tmp_path))
    assert trials == settings_of_trials(plan_of(text, tmp_path))
    assert trials != settings_of_trials(plan_of(text.replace("seed: 5", "seed: 6"), tmp_path))
    assert trials[:100] == settings_of_trials(plan_of(text.replace("400", "100"), tmp_path))
    rates = [trial["learning_rate"] for trial in trials]
    assert all(1e-5 <= rate <= 1e-3 for rate in rates)
    assert 150 < sum(rate < 1e-4 for rate in rates) < 250  # half of them below the middle of the logarithms
    assert all(0 <= trial["weight_decay"] <= 0.1 for trial in trials)
    for name, values in (("max_train_steps", {1, 2, 3}), ("warmup_ratio", {0, 0.1, 0.2})):
        drawn = [trial[name] for trial in trials]
        assert set(drawn) == values
        assert all(100 < drawn.count(value) < 170 for value in values)
    assert {trial["batching"] for trial in trials} == {"packed", "padded"}


def test_random_trials_of_a_space_that_can_be_counted_are_all_different(tmp_path: Path) -> None:
    text = "method: random\ntrials: 6\nspace: {dropout: [0, 0.1, 0.2], batching: [packed, padded]}\n"
    trials = settings_of_trials(plan_of(text, tmp_path))
    assert len({str(trial) for trial in trials}) == 6


def test_the_ends_of_a_range_of_logarithms_are_kept() -> None:
    assert Range(1e-5, 1e-3, log=True).at(0.0) == pytest.approx(1e-5)
    assert Range(1e-5, 1e-3, log=True).at(math.nextafter(1, 0)) <= 1e-3
    assert {Range(1, 8, log=True, is_whole=True).at(share / 1000) for share in range(1000)} == {*range(1, 9)}


def test_the_plans_of_the_documentation_can_be_run(tmp_path: Path) -> None:
    texts = [(REPOSITORY / "docs" / name).read_text(encoding="utf-8") for name in ("sweep.md", "clusters.md")]
    plans = re.findall(r"^```yaml\n(.*?)^```$", texts[0], re.MULTILINE | re.DOTALL)
    plans += re.findall(r"^cat > space.yaml << END\n(.*?)^END$", texts[1], re.MULTILINE | re.DOTALL)
    plans.append((REPOSITORY / "examples" / "space.yaml").read_text(encoding="utf-8"))
    assert len(plans) == 3
    for text in plans:
        plan = plan_of(text, tmp_path)
        check_runs(plan, PARSER, tmp_path / "space.yaml")
        assert len(settings_of_trials(plan)) in (20, 6, 3)


MISTAKES = {
    "no file": (None, "space.yaml: No such file or directory"),
    "no YAML": ("space: [", "space.yaml is not YAML"),
    "a list": ("- 1", "it must hold lines of the form"),
    "nothing": ("", "it must hold lines of the form"),
    "no space": ("fixed: {smoke: true}", "space is missing"),
    "an unknown part": (f"{GRID}metod: grid", "metod is no part of a sweep, did you mean method?"),
    "a flag at the top": (f"{GRID}dropout: 0.1", "dropout is no part of a sweep: flags stand under fixed or space"),
    "an unknown flag": ("space: {lerning_rate: [1]}", "lerning_rate is not a setting, did you mean --learning_rate?"),
    "a value of another type": ("space: {learning_rate: [fast]}", "invalid float value: 'fast'"),
    "a value that cannot work": (
        f"{GRID}  dropout: [0.1, 7]",
        "trial 1: learning_rate 0.001, dropout 7: --dropout 7.0",
    ),
    "one value": ("space: {learning_rate: 3e-5}", "learning_rate has one value: give a list"),
    "a value twice": ("space: {learning_rate: [1e-5, 0.00001]}", "learning_rate has 0.00001 twice"),
    "a range without an end": ("space: {dropout: {min: 0}}", "dropout lacks max"),
    "a range of words": ("space: {batching: {min: 0, max: 1}}", "batching is no number"),
    "a range upside down": (
        "space: {dropout: {min: 0.2, max: 0.1}}",
        "dropout has min 0.2, which is not below max 0.1",
    ),
    "a logarithm of 0": (
        "space: {dropout: {min: 0, max: 0.1, log: true}}",
        "dropout has min 0, which has no logarithm",
    ),
    "a range of more": ("space: {dropout: {min: 0, max: 0.1, by: 3}}", "dropout has by, but a range has min and max"),
    "a step too long": ("space: {dropout: {min: 0, max: 0.1, step: 1}}", "dropout has step 1: give more than 0"),
    "a step too short": ("space: {dropout: {min: 0, max: 0.1, step: 1e-9}}", "dropout has step 1e-9, too short"),
    "a range without bounds": ("space: {dropout: {min: 0, max: inf}}", "dropout has max inf: give a finite number"),
    "no number at all": ("space: {dropout: {min: nan, max: 1}}", "dropout has min nan: give a finite number"),
    "a number too large": (
        f"space: {{max_train_steps: {{min: 1, max: 1{'0' * 400}, step: 1}}}}",
        "give a finite number",
    ),
    "an endless step": ("space: {dropout: {min: 0, max: 1, step: inf}}", "dropout has step inf: give a finite number"),
    "an endless grid": ("space: {dropout: {min: 0, max: 0.1}}", "dropout has no end of values"),
    "trials of a grid": (f"{GRID}trials: 3", "trials: a grid has all combinations, 2 here"),
    "no number of trials": (f"method: random\n{GRID}", "trials is missing"),
    "too many random trials": (f"method: random\ntrials: 3\n{GRID}", "trials 3 are more than the 2 combinations"),
    "too many trials": ("space: {seed: {min: 1, max: 2000, step: 1}}", "2000 trials are more than the 1000"),
    "an unknown method": (f"method: bayes\n{GRID}", "method is bayes: give one of grid, random, optuna"),
    "no number": (f"finalists: 0\n{GRID}", "finalists is 0: give a whole number, 1 at least"),
    "one seed": (f"final_seeds: 1\n{GRID}", "final_seeds 1 cannot be tested"),
    "a flag of the sweep": (f"{GRID}  output_dir: [a, b]", "space: output_dir is set by the sweep"),
    "other sentences": (
        f"{GRID}  holdout_fraction: [0.1, 0.2]",
        "runs that differ in holdout_fraction cannot be compar",
    ),
    "both": ("fixed: {dropout: 0}\nspace: {dropout: [0, 0.1]}", "space: dropout stands under fixed as well"),
    "a baseline that cannot work": (f"{GRID}baseline: {{dropout: 7}}", "baseline: --dropout 7.0 cannot work"),
    "a seed of the baseline": (f"{GRID}baseline: {{seed: 7}}", "baseline: seed is set by the sweep"),
    "random seeds": ("method: random\ntrials: 2\nspace: {seed: [1, 2]}", "seed is no setting to search for"),
    "a sampler without Optuna": (f"sampler: TPESampler\n{GRID}", "sampler is of method optuna, and this is grid"),
    "an unknown sampler": (
        "method: optuna\ntrials: 2\nsampler: Tea\nspace: {dropout: [0, 0.1]}",
        "Tea is none of Optuna's",
    ),
    "a sampler for one process": (
        "method: optuna\ntrials: 2\nsampler: BruteForceSampler\nspace: {dropout: [0, 0.1]}",
        "BruteForceSampler tries all combinations: give method grid",
    ),
    "Optuna's corners": (
        "method: optuna\ntrials: 2\nspace: {dropout: {min: 0, max: 3}}",
        "space: dropout 3: --dropout 3.0 cannot work",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("options", [(), ("--slurm",)])
def test_mistakes_are_one_line_before_anything_is_begun(
    mistake: str, options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, message = MISTAKES[mistake]
    if text is not None:
        (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(SystemExit) as stop, exit_codes(PROGRAM):
        main([str(tmp_path / "space.yaml"), "--output_dir", str(tmp_path / "sweep"), *options])
    said = capsys.readouterr()
    assert (stop.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith(f"{PROGRAM}: error: ")
    assert message in said.err
    assert str(tmp_path / "space.yaml") in said.err
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--multi_gpuu"], "after --: --multi_gpuu is not a flag, did you mean --multi_gpu?"),
        (["--num_processes", "two"], "after --: argument --num_processes/--num-processes: invalid int value: 'two'"),
        (["--config_file", "no.yaml"], "after --: --config_file no.yaml does not exist"),
        (["--cpu", "train_sst2.py"], "after --: train_sst2.py is no flag of the launcher"),
    ],
)
def test_flags_that_the_launcher_does_not_know_are_refused_before_anything_is_begun(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "space.yaml").write_text(GRID)
    with pytest.raises(SystemExit) as stop, exit_codes(PROGRAM):
        main([str(tmp_path / "space.yaml"), "--output_dir", str(tmp_path / "sweep"), "--", *options])
    said = capsys.readouterr()
    assert (stop.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith(f"{PROGRAM}: error: {message}")
    assert not (tmp_path / "sweep").exists()


def test_a_folder_of_something_else_or_of_another_plan_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "space.yaml").write_text(GRID)
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "precious").touch()
    command = [str(tmp_path / "space.yaml"), "--output_dir", str(tmp_path / "sweep"), "--slurm"]
    with pytest.raises(SystemExit), exit_codes(PROGRAM):
        main(command)
    assert "sweep holds no sweep, but something else" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["precious"]

    other = tmp_path / "other"
    other.mkdir()
    (other / "sweep.yaml").write_text(f"# A sweep of train_sst2.py\n{GRID.replace('2e-3', '3e-3')}")
    with pytest.raises(SystemExit), exit_codes(PROGRAM):
        main([command[0], "--output_dir", str(other), "--slurm"])
    assert "other holds a sweep of another plan than" in capsys.readouterr().err
