"""Tags as TensorBoard shows them: what its landing page begins with, names of runs, columns of the HParams table."""

import json
import posixpath
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from sst2.checkpoints.training_state import TrainingState
from sst2.runs.run_folder import RunFolder
from sst2.tracking.external_trackers import ExternalTrackers
from sst2.tracking.tags import LONGEST_NAME, MOST_CURVES, Tags, names_in_tags
from sst2.tracking.tracker import Tracker
from tests.support.processes import free_port

TRAINING = {"loss": 0.5, "learning_rate": 1e-5, "epoch": 0.1, "data_share": 0.1, "waiting_share": 0.2}
TRAINING |= {"peak_memory_mib": 300.0, "step_seconds": 0.1, "sentences_per_second": 320.0}
EVALUATION = {"accuracy": 0.9, "f1": 0.8, "loss": 0.3, "ece": 0.02, "count": 70, "confusion_matrix": [[1, 2], [3, 4]]}
EVALUATION |= {"accuracy_ci95": [0.8, 0.95], "roc_auc": None}
EVALUATION |= {"accuracy_by_length": {"65+": {"accuracy": 1.0, "count": 3}}}
ODD = ["a/b", "a b", "count", "..", "très bien", "良い", "C++", "C--", "x" * 99 + "1", "x" * 99 + "2"]


def of_classes(names: list[str]) -> dict[str, Any]:
    rows = ({"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": number} for number, _ in enumerate(names))
    return {"accuracy": 0.7, "f1_macro": 0.6, "loss": 0.8, "per_class": dict(zip(names, rows, strict=True))}


def test_what_is_logged_of_a_step_and_of_an_evaluation() -> None:
    tags = Tags("holdout", ["no", "yes"])
    assert tags.scalars("train", TRAINING) == {
        "train/loss": 0.5,
        "train_optimizer/learning_rate": 1e-5,
        "train_speed/epoch": 0.1,
        "train_time/data_share": 0.1,
        "train_time/waiting_share": 0.2,
        "train_system/peak_memory_mib": 300.0,
        "train_speed/step_seconds": 0.1,
        "train_speed/sentences_per_second": 320.0,
    }
    assert tags.scalars("holdout", EVALUATION) == {
        "eval/accuracy": 0.9,
        "eval/loss": 0.3,
        "verbose_eval/f1": 0.8,
        "verbose_eval/ece": 0.02,
        "verbose_eval/accuracy_ci95/0": 0.8,
        "verbose_eval/accuracy_ci95/1": 0.95,
        "verbose_eval/accuracy_by_length/65_/accuracy": 1.0,
    }
    assert Tags("validation", ["no", "yes"]).scalars("validation", EVALUATION) == tags.scalars("holdout", EVALUATION)
    assert tags.scalars("holdout", {"best_loss": 0.2}) == {"train_best/eval_loss": 0.2}
    assert tags.scalars("validation", {"accuracy": 0.8}) == {"trained_model/validation/accuracy": 0.8}


def test_names_of_classes_are_what_every_tracker_takes_and_are_told_apart() -> None:
    names = names_in_tags([*ODD, "__", "joy", "sci.med"])
    assert names[:6] == ["a_b 0", "a_b 1", "count", "__ 3", "très_bien", "良い"]
    assert names[6:10] == ["C__", "C--", "x" * LONGEST_NAME + " 8", "x" * LONGEST_NAME + " 9"]
    assert names[10:] == ["__ 10", "joy", "sci.med"]
    scalars = Tags("validation", ODD).scalars("validation", of_classes(ODD))
    assert {f"verbose_eval/per_class/{name}/f1" for name in names_in_tags(ODD)} <= set(scalars)
    assert not any(tag.endswith("support") for tag in scalars)
    for tag in scalars:  # mlflow's rules
        assert re.fullmatch(r"[/\w.\- ]{1,250}", tag)
        assert posixpath.normpath(tag) == tag


def test_of_many_classes_those_with_the_most_sentences_have_curves() -> None:
    many = [f"class{number}" for number in range(1000)]
    scalars = Tags("validation", many).scalars("validation", of_classes(many))
    assert sum(tag.endswith("/f1") for tag in scalars) == MOST_CURVES
    assert "verbose_eval/per_class/class999/f1" in scalars


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with a hold-out and without, of two classes and of oddly named ones; one was stopped and resumed."""
    folder, accelerator = tmp_path_factory.mktemp("runs"), Accelerator(cpu=True)

    def start(name: str, split: str, label_names: list[str], step: int = 0, **settings: object) -> Tracker:
        run = RunFolder(folder / name)
        run.lock()
        state = TrainingState(step=step, evaluated_step=step)
        tracker = Tracker(accelerator, run, ExternalTrackers(), state, split, label_names)
        tracker.note_start(step, "started")
        tracker.log_hparams({"batching": "packed", "class_weights": ["none"], "seed": 1, "dropout": None, **settings})
        tracker.log("train", step + 1, TRAINING)
        return tracker

    first = start("validated", "validation", ["no", "yes"], learning_rate=1e-5)
    first.log("validation", 1, EVALUATION)
    first.log("validation", 2, EVALUATION | {"accuracy": 0.25})  # after what was saved last
    first.close()
    again = start("validated", "validation", ["no", "yes"], 1, learning_rate=1e-5)
    again.log("validation", 2, EVALUATION | {"accuracy": 0.75})
    again.close()
    held_out = start("sweep/held-out", "holdout", ["no", "yes"], learning_rate=2e-5)
    held_out.log("holdout", 1, EVALUATION)
    held_out.log("validation", 1, EVALUATION)
    held_out.log("test", 1, EVALUATION)
    held_out.close()
    classes = start("classes", "validation", ODD, learning_rate=1e-5, class_weights=["balanced"])
    classes.log("validation", 1, of_classes(ODD))
    classes.close()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return folder


Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def ask(runs: Path) -> Iterator[Ask]:
    """Ask the real TensorBoard, as its page does, until it has read all of the runs."""
    port = free_port()
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={runs}", "--host=127.0.0.1", f"--port={port}"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:

        def ask(route: str, **request: object) -> Any:
            query = "?" + urlencode({"request": json.dumps(request)}) if request else ""
            with urlopen(f"http://127.0.0.1:{port}/data/{route}{query}", timeout=30) as answer:
                return json.load(answer)

        def has_read_all() -> bool:
            try:
                return len(ask("plugin/scalars/tags")) == 3
            except OSError:  # it is not up yet
                return False

        try:
            while server.poll() is None and not has_read_all():
                time.sleep(0.1)
            yield ask
        finally:
            server.terminate()


@pytest.mark.slow
def test_the_landing_page_begins_with_accuracy_and_loss_of_runs_by_their_names(ask: Ask) -> None:
    assert sorted(ask("runs")) == ["classes", "sweep/held-out", "validated"]
    shown = ask("plugin/timeseries/tags")
    assert not shown["images"]["tagRunSampledInfo"]
    tags_of = shown["scalars"]["runTagInfo"]
    for tags in tags_of.values():  # as any one of the runs is shown alone, sorted as the page does it
        in_order = sorted(tags, key=lambda tag: tag.replace("/", "\0"))
        first_two = [tag for tag in in_order if tag.partition("/")[0] in ("eval", "train")]
        assert in_order[: len(first_two)] == first_two
        assert in_order[0] == "eval/accuracy"
        assert first_two[-2:] == ["eval/loss", "train/loss"]
        assert len(first_two) <= 4  # two rows of two charts
    assert set(tags_of["classes"]) & set(tags_of["validated"]) >= {"eval/accuracy", "eval/loss", "train/loss"}
    assert "trained_model/test/accuracy" in tags_of["sweep/held-out"]


@pytest.mark.slow
def test_the_hparams_table_has_all_runs_in_the_same_columns(ask: Ask) -> None:
    table = ask("plugin/hparams/experiment", experimentName="", includeMetrics=True)
    columns = [metric["name"]["tag"] for metric in table["metricInfos"]]
    assert columns[:4] == ["eval/accuracy", "eval/f1_macro", "eval/loss", "train/loss"]  # of the five that are shown
    assert {info["name"] for info in table["hparamInfos"] if info["differs"]} == {"class_weights", "learning_rate"}
    assert [info["name"] for info in table["hparamInfos"][:2]] == ["class_weights", "learning_rate"]
    statuses = [f"STATUS_{name}" for name in ("UNKNOWN", "SUCCESS", "FAILURE", "RUNNING")]
    query = {"experimentName": "", "allowedStatuses": statuses, "colParams": [], "startIndex": 0, "sliceSize": 9}
    rows = ask("plugin/hparams/session_groups", **query, includeMetrics=True)["sessionGroups"]
    accuracies = {
        row["name"]: metric["value"]
        for row in rows
        for metric in row["metricValues"]
        if metric["name"]["tag"] == "eval/accuracy"
    }
    assert accuracies == pytest.approx({"classes": 0.7, "sweep/held-out": 0.9, "validated": 0.75})
