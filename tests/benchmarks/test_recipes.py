"""The benchmark of recipes: what it changes in the job, what it makes of the runs, and that it goes on."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from transformers import DistilBertForSequenceClassification

import train_sst2
from benchmarks import recipes
from benchmarks.recipe_figures import holm, paired, summarize
from benchmarks.recipe_worker import ALTERATIONS, Averaged, ExponentialAverage, LastAverage, slower_below, train
from benchmarks.recipes import RECIPES, Recipe, training_sentences
from sst2.config.arguments import parse_arguments
from sst2.config.settings import Settings
from sst2.data.sample import sample_config
from sst2.training import optimizer
from sst2.training.optimizer import build_optimizer
from sst2.utils.errors import UserError
from tests.support.datasets import dataset_of
from tests.support.running import REPOSITORY


def descend(average: Averaged, total: int) -> tuple[list[float], nn.Parameter]:
    """Training of one weight by steps of 1 from 0. Returns the weight after each, and the weight as it is evaluated."""
    weight = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    state = SimpleNamespace(step=0)
    strategy, plan = SimpleNamespace(optimizer=optimizer), SimpleNamespace(total_steps=total)
    job: Any = SimpleNamespace(strategy=strategy, state=state, plan=plan)
    average.before_fit(job)
    values = []
    for _ in range(total):
        weight.grad = torch.tensor(-float(state.step + 1))  # 1, 3, 6, ...: nothing that a plain mean would hide
        optimizer.step()
        state.step += 1
        values.append(float(weight.detach()))
    average.after_fit(job)
    return values, weight


def test_the_exponential_average_reaches_back_over_a_tenth_of_the_run() -> None:
    values, weight = descend(ExponentialAverage(), total=40)
    expected = values[0]
    for value in values[1:]:
        expected = 0.75 * expected + 0.25 * value
    assert float(weight.detach()) == pytest.approx(expected)


def test_the_last_average_is_the_mean_over_the_last_fifth() -> None:
    values, weight = descend(LastAverage(), total=60)
    taken = [values[step - 1] for step in (50, 52, 54, 56, 58, 60)]
    assert float(weight.detach()) == pytest.approx(sum(taken) / 6)
    values, weight = descend(LastAverage(), total=3)
    assert float(weight.detach()) == values[-1]


def test_each_layer_learns_at_its_own_rate_and_decays_as_before() -> None:
    model = DistilBertForSequenceClassification(sample_config(50))
    settings = Settings(output_dir="unused", learning_rate=0.1, weight_decay=0.5)
    plain, altered = build_optimizer(model, settings), slower_below(build_optimizer, model, settings, decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def options(optimizer: torch.optim.Optimizer, option: str) -> dict[str, float]:
        return {names[id(p)]: group[option] for group in optimizer.param_groups for p in group["params"]}

    rates = options(altered, "lr")
    assert rates.keys() == set(names.values())
    assert sum(len(group["params"]) for group in altered.param_groups) == len(names)  # each once
    for start, rate in {
        "classifier.": 0.1,
        "pre_classifier.": 0.1,
        "distilbert.transformer.layer.1.": 0.05,
        "distilbert.transformer.layer.0.": 0.025,
        "distilbert.embeddings.": 0.0125,
    }.items():
        found = [value for name, value in rates.items() if name.startswith(start)]
        assert found
        assert found == pytest.approx([rate] * len(found))
    assert altered.param_groups[0]["lr"] == 0.1
    assert options(altered, "weight_decay") == options(plain, "weight_decay")


def test_what_may_not_be_trained_on_gives_its_place_to_another() -> None:
    train = dataset_of(["a", "b", "a ", "c", "d", "d", "e", "f"], [0, 1, 0, 0, 0, 1, 1, 1])
    copies, left_out = training_sentences(train, 6, RECIPES["without_copies"])
    assert (copies["sentence"][:], left_out) == (["a", "b", "e", "c", "d", "f"], 2)
    conflicts, left_out = training_sentences(train, 6, RECIPES["without_conflicts"])
    assert (conflicts["sentence"][:], left_out) == (["a", "b", "a ", "c", "e", "f"], 2)
    everything, left_out = training_sentences(train, 8, RECIPES["without_copies"])
    assert (everything["sentence"][:], left_out) == (["a", "b", "c", "d", "e", "f"], 2)  # there are no others
    half, left_out = training_sentences(train, 8, Recipe(passes=2))
    assert (half["sentence"][:], left_out) == (["a", "b", "a ", "c"], 0)


def test_differences_are_paired_by_seed() -> None:
    found = paired([(0.92, 0.90), (0.85, 0.82), (0.89, 0.85)])  # gains 0.02, 0.03, 0.04
    assert found["mean"] == pytest.approx(0.03)
    assert found["standard_error"] == pytest.approx(0.01 / 3**0.5)
    assert found["p"] == pytest.approx(0.0351, abs=1e-4)  # t = 5.196 with 2 degrees of freedom
    assert found["is_within_one_standard_error"] is False
    assert paired([(0.9, 0.9), (0.8, 0.8)])["p"] == 1.0
    assert paired([(0.9, 0.8)])["p"] is None
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx({"b": 0.03, "c": 0.06, "a": 0.06})


def test_a_recipe_is_compared_on_the_seeds_that_both_have() -> None:
    def run(accuracy: float) -> dict[str, float]:
        figures = {"holdout_accuracy": accuracy, "validation_accuracy": 0.5, "holdout_loss": 0.4, "seconds": 2.0}
        return figures | {"sentences_per_second": 10.0}

    found: dict[str, Any] = {
        "baseline": {"runs": {"1": run(0.80), "2": run(0.84)}},
        "ema": {"runs": {"2": run(0.85), "1": run(0.82), "3": run(0.10)}},
        "padded": {"runs": {}},
    }
    summarize(found)
    difference = found["ema"]["summary"]["difference_in_holdout_accuracy"]
    assert (difference["mean"], difference["seeds"]) == (pytest.approx(0.015), 2)
    assert found["baseline"]["summary"]["holdout_accuracy_per_second"]["mean"] == pytest.approx(0.41)
    assert "summary" not in found["padded"]


@pytest.mark.slow
def test_runs_are_kept_and_not_repeated(
    tiny_model: Path,
    tsv_files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "figures.json"
    words = ["--model_name_or_path", tiny_model, "--data_dir", tsv_files[0].parent, "--seeds", 1, "--output", output]
    words += ["--sentences", 96, "--epochs", 10, "--only", "ema"]
    argv = [*map(str, words)]
    recipes.main(argv)
    text = output.read_text()
    figures = json.loads(text)
    assert set(figures["recipes"]) == {"baseline", "ema"}
    for entry in figures["recipes"].values():
        run = entry["runs"]["1"]
        assert (run["steps"], run["sentences"], run["left_out"]) == (30, 960, 0)
        assert (run["holdout_count"], run["validation_count"]) == (30, 70)
        assert entry["summary"]["holdout_accuracy"] == {"mean": run["holdout_accuracy"], "std": None}
    baseline, ema = (figures["recipes"][name]["runs"]["1"] for name in ("baseline", "ema"))
    assert ema["holdout_loss"] != baseline["holdout_loss"]
    assert "| ema " in capsys.readouterr().out
    for folder in (tiny_model.parent, tsv_files[0].parent, tmp_path, REPOSITORY):
        assert str(folder) not in text
    assert figures["command"].endswith("--seeds 1 --only ema --sentences 96 --epochs 10 --output figures.json")

    monkeypatch.setattr(recipes, "run", lambda *_: pytest.fail("this run is there already"))
    recipes.main(argv)
    assert json.loads(output.read_text()) == figures
    with pytest.raises(UserError, match="measured with other sentences: name another file"):
        recipes.main([*argv, "--sentences", "64"])

    monkeypatch.setitem(RECIPES, "ema", Recipe({"learning_rate": 1e-3}, alteration="ema"))
    monkeypatch.setattr(recipes, "run", lambda *_: {**baseline, "holdout_accuracy": 1.0})
    recipes.main(argv)  # another recipe by that name: its run counts no more
    changed = json.loads(output.read_text())["recipes"]
    assert changed["ema"]["runs"]["1"]["holdout_accuracy"] == 1.0
    assert changed["baseline"] == figures["recipes"]["baseline"]


def test_a_run_that_fails_does_not_keep_the_others_from_running(
    tiny_model: Path,
    tsv_files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    figures = {"holdout_accuracy": 0.9, "validation_accuracy": 0.9, "holdout_loss": 0.3, "seconds": 2.0}

    def run(folder: Path, recipe: Recipe, *_: Any) -> dict[str, float]:
        if recipe.alteration == "ema":
            raise RuntimeError("it broke down")
        return figures | {"sentences_per_second": 10.0}

    monkeypatch.setattr(recipes, "run", run)
    output = tmp_path / "figures.json"
    words = ["--model_name_or_path", tiny_model, "--data_dir", tsv_files[0].parent, "--seeds", 1, 2]
    with pytest.raises(SystemExit, match="not finished: ema with seed 1, ema with seed 2"):
        recipes.main([*map(str, words), "--only", "ema", "padded", "--output", str(output)])
    assert "ema, seed 1: it broke down" in capsys.readouterr().err
    padded = json.loads(output.read_text())["recipes"]["padded"]
    assert list(padded["runs"]) == ["1", "2"]
    assert padded["summary"]["difference_in_holdout_accuracy"]["is_within_one_standard_error"]


def test_every_alteration_changes_the_model_that_a_run_ends_with(
    tiny_model: Path, tsv_files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {}
    for kind, alteration in ALTERATIONS.items():
        flags: list[object] = ["--model_name_or_path", tiny_model, "--train_file", tsv_files[0]]
        flags += ["--validation_file", tsv_files[1], "--test_file", tsv_files[1], "--output_dir", tmp_path / kind]
        flags += ["--learning_rate", 1e-3, "--max_train_steps", 20, "--batching", "packed"]
        try:
            with monkeypatch.context() as patch:
                for owner, name in ((train_sst2, "save_checkpoint"), (optimizer, "build_optimizer")):
                    patch.setattr(owner, name, getattr(owner, name))  # to be put back
                figures = train(parse_arguments([*map(str, flags)]), alteration())
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
        assert figures["holdout_loss"] == figures["validation_loss"]  # here of the same file
        losses[kind] = figures["holdout_loss"]
    assert len(set(losses.values())) == len(ALTERATIONS), losses


def test_every_recipe_is_one_that_the_job_takes(tiny_model: Path, tsv_files: tuple[Path, Path], tmp_path: Path) -> None:
    for recipe in RECIPES.values():
        assert recipe.alteration in ALTERATIONS
        flags = {"output_dir": tmp_path, "model_name_or_path": tiny_model, **recipes.BASELINE, **recipe.flags}
        settings = parse_arguments([str(word) for name, value in flags.items() for word in (f"--{name}", value)])
        assert all(getattr(settings, name) == value for name, value in recipe.flags.items())
