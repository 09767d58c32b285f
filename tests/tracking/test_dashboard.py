"""What TensorBoard reads back of an evaluation: pictures, curves and texts."""

import html
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.util.tensor_util import make_ndarray
from torch.utils.tensorboard import SummaryWriter

from sst2.config.flag_groups import LABEL_NAMES
from sst2.data.splits import Split
from sst2.tracking.dashboard import Dashboard
from sst2.tracking.plots import draw_evaluation, names_in_pictures
from sst2.tracking.tags import Tags
from tests.support.running import Finished

SENTENCES = ["fine", "a|b <i>bad</i> *film* ``so`` \\ [x](y) __z__ # &amp; ~", "so so", "dull"]
TAGS = Tags("validation", LABEL_NAMES)
LABELS = np.array([1, 0, 1, 0])


def split(labels: np.ndarray = LABELS) -> Split:
    return Split("validation", SENTENCES, labels, np.zeros(4, np.int32), np.arange(5))


def logits(*positive: float) -> np.ndarray:
    """Those that give these probabilities."""
    return np.stack([np.log1p(-np.array(positive)), np.log(positive)], axis=1).astype(np.float32)


def read(folder: Path) -> dict[str, dict[int, Summary.Value]]:
    found: dict[str, dict[int, Summary.Value]] = defaultdict(dict)
    for file in folder.glob("events.*"):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                assert event.step not in found[value.tag]  # each evaluation is shown once
                found[value.tag][event.step] = value
    return found


def text(value: Summary.Value) -> str:
    shown: str = value.tensor.string_val[0].decode()
    return shown


@pytest.fixture
def writer(tmp_path: Path) -> SummaryWriter:
    return SummaryWriter(str(tmp_path / "board"))


def shown(writer: SummaryWriter) -> dict[str, dict[int, Summary.Value]]:
    writer.close()
    return read(Path(writer.log_dir))


@pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated")  # which TensorBoard has in itself
def test_an_evaluation_is_seen_from_all_sides(writer: SummaryWriter) -> None:
    from tensorboard.plugin_util import markdown_to_safe_html

    dashboard = Dashboard(writer, TAGS)
    dashboard.show(split(), 4, logits(0.9, 0.97, 0.4, 0.2), run_seconds=1e6)
    dashboard.show(split(), 8, logits(0.9, 0.1, 0.45, 0.8), run_seconds=1e6)
    dashboard.show(split(), 8, logits(0.9, 0.1, 0.45, 0.8))  # as at the end of a run
    found = shown(writer)
    for name in (
        "probability_positive",
        "precision_recall",
        "confusion_matrix",
        "reliability",
        "roc",
        "most_confident_mistakes/text_summary",
    ):
        assert sorted(found[f"verbose_eval/{name}"]) == [4, 8]
    picture = found["verbose_eval/confusion_matrix"][4].tensor
    assert [int(size) for size in picture.string_val[:2]] == [440, 400]
    mistakes = text(found["verbose_eval/most_confident_mistakes/text_summary"][4])
    assert mistakes.startswith("**2 of 4 sentences are classified wrongly.**")
    rows = mistakes.splitlines()[4:]
    assert [row.split(" | ")[:2] for row in rows] == [["| NEGATIVE", "0.970"], ["| POSITIVE", "0.400"]]
    page = markdown_to_safe_html(mistakes)  # as TensorBoard shows it
    assert f"<td>{html.escape(SENTENCES[1])}</td>" in page  # it neither breaks its row nor takes part in Markdown


def test_sentences_that_change_sides_are_told_apart(writer: SummaryWriter) -> None:
    dashboard = Dashboard(writer, TAGS)
    dashboard.show(split(), 4, logits(0.9, 0.97, 0.4, 0.2), 0.0)
    dashboard.show(split(), 8, logits(0.9, 0.1, 0.45, 0.8), 0.0)
    dashboard.show(split(), 12, logits(0.8, 0.2, 0.3, 0.9), 0.0)
    found = shown(writer)["verbose_eval/changed_sides/text_summary"]
    assert sorted(found) == [8, 12]
    lines = text(found[8]).splitlines()
    assert lines[0] == "**1 sentences became right, 1 became wrong.**"
    assert [line.split(" | ")[:3] for line in lines[4:]] == [
        ["| NEGATIVE", "0.970", "0.100"],
        ["| NEGATIVE", "0.200", "0.800"],
    ]
    assert text(found[12]).strip() == "**0 sentences became right, 0 became wrong.**"


def test_pictures_are_drawn_where_the_run_can_afford_it_and_at_its_end(writer: SummaryWriter) -> None:
    dashboard = Dashboard(writer, TAGS)
    for step, run_seconds in ((1, 2.0), (2, 1e6), (3, 2.0), (4, None)):
        dashboard.show(split(), step, logits(0.9, 0.97, 0.4, 0.2), run_seconds)
    found = shown(writer)
    assert sorted(found["verbose_eval/confusion_matrix"]) == [2, 4]
    assert sorted(found["verbose_eval/precision_recall"]) == [1, 2, 3, 4]


def test_an_earlier_model_shown_last_is_not_compared_with_a_later_one(writer: SummaryWriter) -> None:
    dashboard = Dashboard(writer, TAGS)
    for step in (8, 4):  # as where the best model is loaded at the end of a run that was resumed after it
        dashboard.show(split(), step, logits(0.9, 0.97, 0.4, 0.2 + step / 10), 0.0)
    assert "verbose_eval/changed_sides/text_summary" not in shown(writer)


def test_class_names_are_no_formulas_and_pictures_cost_no_run(
    writer: SummaryWriter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("<$10", "$10_$50")
    dashboard = Dashboard(writer, Tags("validation", names))
    dashboard.show(replace(split(), label_names=names), 4, logits(0.9, 0.97, 0.4, 0.2))
    monkeypatch.setattr("sst2.tracking.plots._picture", None)  # broken, however that may come
    dashboard.show(split(), 8, logits(0.9, 0.97, 0.4, 0.2))
    assert "pictures of validation cannot be drawn: TypeError" in caplog.text
    found = shown(writer)
    assert sorted(found["verbose_eval/confusion_matrix"]) == [4]
    assert sorted(found["verbose_eval/precision_recall"]) == [4, 8]


@pytest.mark.filterwarnings("error")
def test_names_of_classes_that_cannot_be_drawn_are_numbers() -> None:
    long = "x" * 99
    assert names_in_pictures(["joy", "良い", "joie é", f"{long}1", f"{long}2", "class 1"]) == [
        *("joy", "class 1 1", "joie é", f"{'x' * 19}… 3", f"{'x' * 19}… 4", "class 1 5"),
    ]
    for names in (["悪い", "良い"], [f"{long}1", f"{long}2"], ["悪い", "良い", "__", "a/b"]):
        labels = np.arange(12) % len(names)
        pictures = draw_evaluation(labels, np.eye(len(names))[labels], names)  # without a warning of its font
        assert set(pictures) == {"confusion_matrix", "reliability", "roc"}


def test_several_classes_are_each_against_the_rest(writer: SummaryWriter) -> None:
    names = [f"class {number} of many" for number in range(20)]
    labels = np.arange(60) % 19  # the last does not occur
    several = Split("validation", ["a film"] * 60, labels, np.zeros(60, np.int32), np.arange(61), names)
    first = np.random.default_rng(0).normal(size=(60, 20)) + 2 * np.eye(20)[labels]
    first[0] = 3 * np.eye(20)[0]
    second = first.copy()
    second[0] = 3 * np.eye(20)[7]
    dashboard = Dashboard(writer, Tags("validation", names))
    dashboard.show(several, 4, first)
    dashboard.show(several, 8, second)
    found = shown(writer)
    for name in ("probability_predicted", "confusion_matrix", "reliability", "roc"):
        assert sorted(found[f"verbose_eval/{name}"]) == [4, 8]
    for number in range(20):
        assert sorted(found[f"verbose_eval/precision_recall/class_{number}_of_many"]) == [4, 8]
        curve = make_ndarray(found[f"verbose_eval/precision_recall/class_{number}_of_many"][4].tensor)
        assert curve[0, 0] == (labels == number).sum()  # true positives where all are taken for the class
        assert curve[1, 0] == (labels != number).sum()
    width, height = (int(size) for size in found["verbose_eval/confusion_matrix"][4].tensor.string_val[:2])
    assert min(width, height) >= 1000  # room for twenty names
    wrong = text(found["verbose_eval/most_confident_mistakes/text_summary"][4]).splitlines()
    assert wrong[2] == "| label | prediction, probability | sentence |"
    rows = text(found["verbose_eval/changed_sides/text_summary"][8]).splitlines()
    before, now = rows[4].split(" | ")[1:3]
    assert (len(rows), rows[4].startswith("| class 0 of many | ")) == (5, True)
    assert before.startswith("class 0 of many, 0.")
    assert now.startswith("class 7 of many, 0.")


@pytest.mark.parametrize("labels", [np.array([1, 1, 1, 1]), np.array([-1, -1, -1, -1])], ids=["one class", "none"])
def test_labels_may_be_of_one_class_or_missing(labels: np.ndarray, writer: SummaryWriter) -> None:
    Dashboard(writer, TAGS).show(split(labels), 4, logits(0.9, 0.97, 0.4, 0.2))
    found = shown(writer)
    assert "verbose_eval/probability_positive" in found
    for name in ("confusion_matrix", "reliability"):
        assert (f"verbose_eval/{name}" in found) == bool((labels >= 0).all())
    assert "verbose_eval/roc" not in found


def test_the_chart_of_the_interval_has_its_curves_and_a_run_says_how_it_went(
    train_here: Callable[..., Finished], small_job: list[object]
) -> None:
    run = train_here(*small_job, "--logging_steps", 1, "--eval_steps", 2, "--max_train_steps", 4)
    assert run.code == 0
    found = read(run.run_dir)
    layout = layout_pb2.Layout.FromString(found["custom_scalars__config__"][0].tensor.string_val[0])
    (chart,) = (chart for category in layout.category for chart in category.chart)
    (series,) = chart.margin.series  # more would have the same color
    assert series.value == "eval/accuracy"
    for tag in (series.value, series.lower, series.upper):
        assert sorted(found[tag]) == [2, 4]
    assert text(found["run/starts/text_summary"][0]).startswith("started on 1 x cpu")
    assert text(found["run/ends/text_summary"][4]).startswith("finished: accuracy")
