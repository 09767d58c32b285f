"""A run has one curve, however often it was restarted: in metrics.jsonl, and as TensorBoard reads it back."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.summary.writer import event_file_writer

from sst2.checkpoints.checkpointer import SavedTimes
from sst2.checkpoints.training_state import TrainingState
from sst2.runs.run_folder import RunFolder
from sst2.tracking.external_trackers import ExternalTrackers
from sst2.tracking.tracker import Tracker, drop_later_lines
from sst2.utils.logs import start_logging

SETTINGS: dict[str, Any] = {"learning_rate": 2e-5, "seed": 42, "load_best_model_at_end": True, "batching": "packed"}
SETTINGS |= {"max_train_steps": None, "step_timeout": 300.0}


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.lock()
    return folder


def tracker_from(step: int, accelerator: Accelerator, run: RunFolder, evaluated_step: int | None = None) -> Tracker:
    state = TrainingState(step=step, evaluated_step=step if evaluated_step is None else evaluated_step)
    return Tracker(accelerator, run, ExternalTrackers(), state, selection_split="validation")


def lines(file: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in file.read_text().splitlines()]


def curve(run: RunFolder, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard draws."""
    board = EventAccumulator(str(run.path), size_guidance={"scalars": 0}).Reload()
    return [(event.step, event.value) for event in board.Scalars(tag)]


def log_steps(tracker: Tracker, steps: range, value: float) -> None:
    for step in steps:
        tracker.log("train", step, {"loss": value, "skipped_steps": 0})
        tracker.log_samples(step, [step + 2, step])
        if step % 3 == 0:
            tracker.log("validation", step, {"accuracy": value, "loss": value})


@pytest.mark.parametrize("resumed_at", [0, 6, 7])
@pytest.mark.parametrize("killed", [True, False])
def test_a_restart_drops_what_came_after_its_checkpoint(
    resumed_at: int, killed: bool, accelerator: Accelerator, run: RunFolder
) -> None:
    first = tracker_from(0, accelerator, run)
    log_steps(first, range(1, 11), value=0.5)
    first.flush()
    if not killed:
        first.close()
    second = tracker_from(resumed_at, accelerator, run)
    log_steps(second, range(resumed_at + 1, 13), value=0.25)
    second.close()

    expected = [(step, 0.5 if step <= resumed_at else 0.25) for step in range(1, 13)]
    assert curve(run, "train/loss") == expected  # every step once, in order
    assert curve(run, "eval/accuracy") == expected[2::3]
    logged = lines(run.metrics_log)
    assert [(line["step"], line["loss"]) for line in logged if line["split"] == "train"] == expected
    assert [(line["step"], line["loss"]) for line in logged if line["split"] == "validation"] == expected[2::3]
    assert lines(run.samples) == [{"step": step, "rows": [step, step + 2]} for step in range(1, 13)]


def test_an_interrupted_evaluation_is_logged_again_and_not_twice(accelerator: Accelerator, run: RunFolder) -> None:
    first = tracker_from(0, accelerator, run)
    log_steps(first, range(1, 7), value=0.5)
    first.log("test", 6, {"accuracy": 0.5})  # as at the end of a run, which its next start reaches once more
    first.close()
    second = tracker_from(6, accelerator, run, evaluated_step=3)
    for split in ("validation", "test"):
        second.log(split, 6, {"accuracy": 0.25})
    second.close()
    logged = [(line["split"], line["step"]) for line in lines(run.metrics_log)]
    assert [step for split, step in logged if split == "train"] == list(range(1, 7))
    assert [pair for pair in logged if pair[0] != "train"] == [("validation", 3), ("validation", 6), ("test", 6)]
    assert [line["accuracy"] for line in lines(run.metrics_log)[-2:]] == [0.25, 0.25]


def test_a_checkpoint_costs_time_which_is_in_tensorboard_alone(accelerator: Accelerator, run: RunFolder) -> None:
    tracker = tracker_from(0, accelerator, run)
    tracker.log_checkpoint(SavedTimes(step=7, pause=0.25, total=1.5))
    tracker.close()
    assert curve(run, "train_system/checkpoint_pause_seconds") == [(7, 0.25)]
    assert curve(run, "train_system/checkpoint_total_seconds") == [(7, 1.5)]
    assert not run.metrics_log.exists()


def test_the_times_of_many_ranks_are_no_curves(accelerator: Accelerator, run: RunFolder) -> None:
    tracker = tracker_from(0, accelerator, run)
    tracker.log("train", 1, {"loss": 0.5, "rank_compute_seconds": [0.25] * 17})
    tracker.log("train", 2, {"loss": 0.5, "rank_compute_seconds": [0.25] * 16})
    tracker.note_slow_ranks(2, "slow over 100 steps: rank 1 on n2")
    tracker.close()
    assert [len(line["rank_compute_seconds"]) for line in lines(run.metrics_log)] == [17, 16]
    board = EventAccumulator(str(run.path)).Reload()
    assert {tag for tag in board.Tags()["scalars"] if "rank" in tag} == {
        f"train_time/rank_compute_seconds/{rank}" for rank in range(16)
    }
    assert curve(run, "train_time/rank_compute_seconds/15") == [(2, 0.25)]
    assert [text.step for text in board.Tensors("run/slow_ranks/text_summary")] == [2]


@pytest.mark.parametrize("seconds_ahead", [0, 3, 86400])
def test_the_curve_is_whole_after_starts_in_the_same_second_or_by_a_clock_put_back(
    seconds_ahead: int, accelerator: Accelerator, run: RunFolder
) -> None:
    for start in range(4):
        tracker = tracker_from(2 * start, accelerator, run)
        log_steps(tracker, range(2 * start + 1, 2 * start + 5), value=start)  # two steps more than are saved
        tracker.close()
        newest = max(run.event_files(), key=lambda file: file.stat().st_mtime_ns)
        *head, stamp, rest = newest.name.split(".", 4)
        newest.rename(newest.with_name(".".join([*head, str(int(stamp) + (4 - start) * seconds_ahead), rest])))
    expected = [(step, min((step - 1) // 2, 3)) for step in range(1, 11)]
    assert curve(run, "train/loss") == expected


def test_numbers_have_tags_in_tensorboard_and_their_own_names_in_the_log(
    accelerator: Accelerator, run: RunFolder
) -> None:
    values = {"accuracy": 0.5, "accuracy_ci95": [0.25, 0.75], "roc_auc": None, "confusion_matrix": [[1, 2], [3, 4]]}
    tracker = tracker_from(0, accelerator, run)
    tracker.log("validation", 5, values)
    tracker.close()
    assert lines(run.metrics_log) == [{"split": "validation", "step": 5, **values}]
    board = EventAccumulator(str(run.path)).Reload()
    assert sorted(board.Tags()["scalars"]) == [
        "eval/accuracy",
        "verbose_eval/accuracy_ci95/0",
        "verbose_eval/accuracy_ci95/1",
    ]


def test_a_number_that_is_none_is_null_in_the_log(accelerator: Accelerator, run: RunFolder) -> None:
    tracker = tracker_from(0, accelerator, run)
    tracker.log("train", 1, {"loss": float("nan"), "grad_norm": float("inf"), "epoch": 0.5})
    tracker.close()
    assert lines(run.metrics_log) == [{"split": "train", "step": 1, "loss": None, "grad_norm": None, "epoch": 0.5}]
    assert [str(value) for _, value in curve(run, "train/loss")] == ["nan"]


def test_a_line_that_a_kill_cut_off_is_dropped(accelerator: Accelerator, run: RunFolder) -> None:
    whole = [{"split": "train", "step": step, "loss": 1.0} for step in (1, 2)]
    last = json.dumps({"split": "train", "step": 3, "loss": 1.0})
    for length in range(len(last)):
        run.metrics_log.write_text("".join(json.dumps(line) + "\n" for line in whole) + last[:length])
        drop_later_lines(run.metrics_log, {"train": 10})
        assert lines(run.metrics_log) == whole
    tracker = tracker_from(2, accelerator, run)
    tracker.log("train", 3, {"loss": 0.5})
    tracker.close()
    assert lines(run.metrics_log) == [*whole, {"split": "train", "step": 3, "loss": 0.5}]
    assert not run.samples.exists()  # a log that was not asked for does not come into being


@pytest.mark.parametrize(
    "garbage", [b"\xff\n", b'{"split": "train", "step": 2, "lo\xffss": 1}\n', bytes(4096), b"[" * 9999]
)
def test_garbage_that_a_power_cut_has_left_is_dropped(garbage: bytes, accelerator: Accelerator, run: RunFolder) -> None:
    first, last = ({"split": "train", "step": step, "loss": 1.0} for step in (1, 2))
    for log in (run.metrics_log, run.samples):
        log.write_bytes(json.dumps(first).encode() + b"\n" + garbage + b"\n" + json.dumps(last).encode() + b"\n")
    tracker_from(2, accelerator, run).close()
    assert lines(run.metrics_log) == lines(run.samples) == [first, last]


def test_the_run_has_one_line_in_the_hparams_table(accelerator: Accelerator, run: RunFolder) -> None:
    tracker = tracker_from(0, accelerator, run)
    tracker.log("train", 1, {"loss": 0.5})
    tracker.log_hparams(SETTINGS)
    tracker.close()
    # SummaryWriter.add_hparams would make a folder, and with it a run, of its own.
    assert all(path.is_file() for path in run.path.iterdir())
    starts = []
    for file in run.event_files():
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.tag == "_hparams_/session_start_info":
                    content = value.metadata.plugin_data.content
                    starts.append(plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams)
    assert len(starts) == 1
    assert (starts[0]["learning_rate"].number_value, starts[0]["seed"].number_value) == (2e-5, 42)
    assert starts[0]["load_best_model_at_end"].string_value == "True"
    assert starts[0]["batching"].string_value == "packed"
    assert set(starts[0]) == {"learning_rate", "seed", "load_best_model_at_end", "batching"}  # what decides, and is set


def break_file(file: Path) -> None:
    """Whoever writes to it finds the disk full; who opens it for reading finds nothing."""
    file.unlink(missing_ok=True)
    file.symlink_to("/dev/full")


def break_board(run: RunFolder) -> None:
    (file,) = run.event_files()
    break_file(file)


def test_a_log_that_cannot_be_written_is_left_out_with_one_warning(
    accelerator: Accelerator, run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = tracker_from(0, accelerator, run)
    tracker.log("train", 1, {"loss": 0.5})
    break_file(run.metrics_log)
    for step in range(2, 5):
        tracker.log("train", step, {"loss": 0.5})
        tracker.log_samples(step, [step])
        tracker.flush()
    tracker.close()
    assert caplog.messages == [f"{run.metrics_log} cannot be written (No space left on device): going on without it"]
    assert curve(run, "train/loss") == [(step, 0.5) for step in range(1, 5)]
    assert [line["step"] for line in lines(run.samples)] == [2, 3, 4]


def test_tensorboard_that_cannot_be_written_is_left_out_with_one_warning(
    accelerator: Accelerator, run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    start_logging(is_main=True)
    logging.getLogger("sst2").addHandler(caplog.handler)
    tracker = tracker_from(0, accelerator, run)
    tracker.log("train", 1, {"loss": 0.5})
    tracker.flush()
    break_board(run)
    for step in range(2, 40):
        tracker.log("train", step, {"loss": 0.5})
        tracker.log_checkpoint(SavedTimes(step=step, pause=0.25, total=1.5))
    tracker.flush()
    tracker.log_hparams(SETTINGS)
    tracker.note_end(40, "finished")
    tracker.close()
    assert caplog.messages == ["TensorBoard's file cannot be written (No space left on device): going on without it"]
    assert [line["step"] for line in lines(run.metrics_log)] == list(range(1, 40))


def test_a_run_begins_without_the_logs_that_cannot_be_made(
    accelerator: Accelerator, run: RunFolder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_logging(is_main=True)
    logging.getLogger("sst2").addHandler(caplog.handler)
    monkeypatch.setattr(event_file_writer.socket, "gethostname", lambda: "no/such/folder")  # a part of the file's name
    run.metrics_log.mkdir()
    tracker = tracker_from(0, accelerator, run)
    log_steps(tracker, range(1, 4), value=0.5)
    tracker.close()
    assert [message.partition(" (")[0] for message in caplog.messages] == [
        f"{run.metrics_log} cannot be written",
        "TensorBoard's file cannot be written",
    ]
    assert len(lines(run.samples)) == 3


def test_names_that_are_no_utf_8_are_shown_all_the_same(accelerator: Accelerator, run: RunFolder) -> None:
    settings = SETTINGS | {"train_file": os.fsdecode(b"/data/caf\xe9.tsv")}
    tracker = tracker_from(0, accelerator, run)
    tracker.log_hparams(settings)
    tracker.log("train", 1, {"loss": 0.5})
    tracker.close()
    assert curve(run, "train/loss") == [(1, 0.5)]
