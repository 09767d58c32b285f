"""The job from end to end: what a run leaves behind, and that its results are what they should be."""

import csv
import gc
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertModel,
    pipeline,
)

import train_sst2
from sst2.data.splits import Split
from sst2.distributed import precision as precision_module
from sst2.evaluation.run_results import find_run
from sst2.training.trainer import Trainer
from tests.support.running import REPOSITORY, Finished, without_times

Train = Callable[..., Finished]


def weights(run: Finished) -> dict[str, torch.Tensor]:
    return load_file(run.run_dir / "model" / "model.safetensors")


def assert_same_run(one: Finished, other: Finished) -> None:
    """The same losses, rates and weights, bit for bit; only times may differ."""
    for split in ("train", "validation"):
        assert [*map(without_times, one.logged(split))] == [*map(without_times, other.logged(split))]
    assert without_times(one.metrics) == without_times(other.metrics)
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, weights(other)[name]), name


def test_smoke_run_as_users_start_it(train: Train, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    run = train("--smoke", HOME=str(home), HF_HOME=str(tmp_path / "hf"), HF_ENDPOINT="http://127.0.0.1:9")
    assert run.code == 0, run.stderr
    # It learns: far above chance, below perfection.
    assert 0.85 < run.metrics["accuracy"] < 1.0
    assert run.metrics["count"] == 600
    assert f"accuracy {run.metrics['accuracy']:.4f}" in run.stderr
    # It says how far it is; with date and time, since nobody watches: its output is no terminal.
    said = re.findall(
        r"^\d{4}(?:-\d\d){2} \d\d(?::\d\d){2} step (\d+)/845 \((.+) %\), (.+) left: loss ", run.stderr, re.M
    )
    assert [(int(step), share) for step, share, _ in said] == [
        (step, f"{100 * step / 845:.1f}") for step in (*range(25, 845, 25), 845)
    ]
    assert re.fullmatch(r"\d:\d\d:\d\d", said[0][2])
    assert said[-1][2] == "0:00:00" != said[0][2]
    # Everything the documentation promises is in the folder, and nothing is anywhere else.
    (event_file,) = run.run_dir.glob("events.out.tfevents.*")  # here, so that TensorBoard calls the run by its folder
    assert {path.name for path in run.run_dir.iterdir()} == {
        *("config.yaml", "resolved.yaml", "environment.json", event_file.name, "metrics.jsonl", "checkpoints", "model"),
        *("metrics.json", "predictions.csv", "train.log", ".lock"),
    }
    assert [path.name for path in (run.run_dir / "checkpoints").iterdir()] == ["step-00000845"]
    assert list(home.iterdir()) == []
    assert {path.name for path in (tmp_path / "hf").iterdir()} <= {"datasets"}
    # The model works without this project.
    classify = pipeline("text-classification", str(run.run_dir / "model"))
    labels = [answer["label"] for answer in classify(["a gripping , funny film", "a dull , lifeless mess"])]
    assert labels == ["POSITIVE", "NEGATIVE"]


def test_what_a_run_leaves_behind(train_here: Train, small_job: list[Any]) -> None:
    run = train_here(*small_job, "--test_file", small_job[5])
    assert run.code == 0, run.stderr
    metrics = run.metrics
    for name in ("accuracy", "precision", "recall", "f1", "matthews", "roc_auc", "loss", "ece"):
        assert isinstance(metrics[name], float), name
    assert (metrics["count"], metrics["split"], metrics["step"], metrics["epoch"]) == (70, "validation", 20, 2.0)
    assert metrics["checkpoint"] == "checkpoints/step-00000020"
    assert metrics["seconds"] > 0
    assert metrics["test"]["accuracy"] == metrics["accuracy"]  # the same file, with labels
    steps = [line["step"] for line in run.logged("train")]
    assert steps == list(range(1, 21))
    assert [line["step"] for line in run.logged("validation")] == [10, 20]
    finite = "loss learning_rate grad_norm sentences_per_second tokens_per_second padding_share step_seconds"
    for name in (
        *finite.split(),
        "matmul_peak_share",
        "peak_memory_mib",
        "data_share",
        "forward_share",
        "backward_share",
    ):
        assert np.isfinite([line[name] for line in run.logged("train")]).all(), name
    config = yaml.safe_load((run.run_dir / "resolved.yaml").read_text())
    assert (config["global_batch_size"], config["max_train_steps"], config["num_warmup_steps"]) == (32, 20, 2)
    assert config["mixed_precision"] == "no"
    with (run.run_dir / "predictions.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "validation"]
    assert len(rows) == 70
    assert np.mean([row["label"] == row["prediction"] for row in rows]) == pytest.approx(metrics["accuracy"])
    assert all((float(row["probability_positive"]) > 0.5) == (row["prediction"] == "POSITIVE") for row in rows)
    assert "20 steps of 32 sentences" in (run.run_dir / "train.log").read_text()


def test_no_secret_is_written(train_here: Train, small_job: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_JWT", "verysecret")
    run = train_here(*small_job, "--max_train_steps", 1)
    assert json.loads((run.run_dir / "environment.json").read_text())["variables"]["SLURM_JOB_ID"] == "4711"
    for path in run.run_dir.rglob("*"):
        assert not path.is_file() or b"verysecret" not in path.read_bytes(), path


def test_the_written_settings_repeat_the_run(train_here: Train, small_job: list[Any], tmp_path: Path) -> None:
    first = train_here(*small_job)
    again = train_here("--config", first.run_dir / "config.yaml", run_dir=tmp_path / "again")
    assert_same_run(first, again)
    halved = train_here("--config", first.run_dir / "config.yaml", "--global_batch_size", 64, run_dir=tmp_path / "64")
    assert (halved.metrics["step"], halved.metrics["epoch"]) == (10, 2.0)  # what was asked for: epochs, not steps
    longer = train_here(*small_job, "--num_train_epochs", 3, "--resume_from_checkpoint", "auto")
    assert longer.code == 2
    assert "--num_train_epochs 3 makes 30 optimizer steps, but the run of" in longer.stderr
    assert f"start one with --model_name_or_path {first.run_dir / 'model'}" in longer.stderr


def test_seed_matters(train_here: Train, small_job: list[Any], tmp_path: Path) -> None:
    losses = [
        [line["loss"] for line in train_here(*small_job, "--seed", seed, run_dir=tmp_path / str(seed)).logged("train")]
        for seed in (1, 2)
    ]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("forward", [3, 4])  # one of them leaves shorter forward passes
def test_accumulation_does_not_change_the_loss(
    forward: int, train_here: Train, small_job: list[Any], tmp_path: Path
) -> None:
    flags = [*small_job, "--dropout", 0, "--global_batch_size", 8]  # which a CPU takes in one forward pass
    whole = train_here(*flags, "--per_device_train_batch_size", 8)
    parts = train_here(*flags, "--per_device_train_batch_size", forward, run_dir=tmp_path / "parts")
    assert yaml.safe_load((parts.run_dir / "resolved.yaml").read_text())["gradient_accumulation_steps"] > 1
    for one, other in zip(whole.logged("train"), parts.logged("train"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        assert one["learning_rate"] == other["learning_rate"]


@pytest.mark.parametrize(("samples", "sentences"), [(300, 32), (20, 20)])  # a full step, and a short last one
def test_a_step_has_the_mean_loss_and_gradient_of_its_sentences(
    samples: int,
    sentences: int,
    train_here: Train,
    small_job: list[Any],
    tiny_model: Path,
    tsv_files: tuple[Path, Path],
) -> None:
    flags = ["--dropout", 0, "--max_grad_norm", 0, "--max_train_samples", samples, "--log_sample_ids"]
    run = train_here(*small_job, *flags)
    # The first step, whose weights are known: the checkpoint and a head drawn from the seed.
    rows = json.loads((run.run_dir / "samples.jsonl").read_text().splitlines()[0])["rows"]
    lines = [line.rstrip("\n").split("\t") for line in tsv_files[0].read_text().splitlines()[1:]]
    assert len(rows) == sentences
    torch.manual_seed(42)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, dropout=0.0, attention_dropout=0.0)
    model.eval()
    batch = AutoTokenizer.from_pretrained(tiny_model)([lines[r][0] for r in rows], padding=True, return_tensors="pt")
    loss = model(**batch, labels=torch.tensor([int(lines[row][1]) for row in rows])).loss
    loss.backward()
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
    first = run.logged("train")[0]
    assert first["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert first["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


def test_a_run_that_was_taken_back_goes_on_from_there_when_its_job_starts_again(
    train_here: Train, small_job: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = [*small_job, "--checkpointing_steps", 5, "--checkpoints_total_limit", 4]
    run = train_here(*job)
    checkpoints = run.run_dir / "checkpoints"
    earlier, there = checkpoints / "step-00000005", sorted(checkpoints.iterdir())
    assert there[1:], run.stderr
    (run.run_dir / "metrics.json").unlink()  # it was killed before its end
    (run.run_dir / "STOP").touch()  # before another step, and so without another checkpoint
    monkeypatch.setenv("SST2_LAUNCH", "4f")  # of a job that is started again
    taken_back = [*job, "--resume_from_checkpoint", earlier]
    stopped = train_here(*taken_back)
    assert stopped.code == 75, stopped.stderr
    assert f"--resume_from_checkpoint auto goes on from {earlier}" in stopped.stderr
    assert there == sorted(checkpoints.glob("step-*"))  # the way back is still open
    again = train_here(*taken_back)
    assert again.code == 0, again.stderr
    assert f"resuming from {earlier}" in again.stderr
    assert "passing over 3 later checkpoints" in again.stderr
    assert there == sorted(checkpoints.iterdir())  # of its own now


@pytest.mark.parametrize("stop", [7, 10, 13])  # within an epoch, at its end, in the next
def test_a_resumed_run_is_the_uninterrupted_run(
    stop: int, train_here: Train, small_job: list[Any], tmp_path: Path
) -> None:
    flags = [*small_job, "--checkpointing_steps", 1, "--checkpoints_total_limit", 30, "--log_sample_ids"]
    whole = train_here(*flags)
    # What an interruption leaves behind: the folder as it was after some step, with a line or two logged beyond it.
    interrupted = tmp_path / "interrupted"
    os.rename(train_here(*flags, run_dir=tmp_path / "other").run_dir, interrupted)
    for later in sorted((interrupted / "checkpoints").iterdir())[stop:]:
        for file in later.iterdir():
            file.unlink()
        later.rmdir()
    resumed = train_here(*flags, "--resume_from_checkpoint", "auto", run_dir=interrupted)
    assert resumed.code == 0, resumed.stderr
    assert f"resuming from {interrupted / 'checkpoints'}/step-{stop:08d}" in resumed.stderr
    assert_same_run(whole, resumed)
    assert (whole.run_dir / "samples.jsonl").read_text() == (interrupted / "samples.jsonl").read_text()


def test_resuming_with_other_settings_is_refused(train_here: Train, small_job: list[Any]) -> None:
    first = train_here(*small_job)
    before = (first.run_dir / "metrics.json").read_bytes()
    refused = train_here(*small_job, "--learning_rate", 2e-3, "--resume_from_checkpoint", "auto")
    assert refused.code == 2
    assert "--learning_rate is 0.002 but" in refused.stderr
    assert "was trained with 0.001" in refused.stderr
    assert (first.run_dir / "metrics.json").read_bytes() == before


def test_resuming_with_other_sentences_is_refused(
    train_here: Train, small_job: list[Any], tsv_files: tuple[Path, Path], tmp_path: Path
) -> None:
    train_here(*small_job)
    edited = tmp_path / "train.tsv"
    edited.write_text(tsv_files[0].read_text().replace("\t1\n", "\t0\n", 1))
    refused = train_here(*small_job, "--train_file", edited, "--resume_from_checkpoint", "auto")
    assert refused.code == 2
    assert "was trained with other sentences or labels" in refused.stderr


def test_going_on_in_another_folder_makes_a_run_that_stands_on_its_own(
    train_here: Train, small_job: list[Any], tmp_path: Path
) -> None:
    flags = [*small_job, "--load_best_model_at_end", "--eval_steps", 5]
    first = train_here(*flags)
    checkpoint = first.run_dir / "checkpoints" / "step-00000020"
    second = train_here(*flags, "--resume_from_checkpoint", checkpoint, run_dir=tmp_path / "second")
    assert second.code == 0, second.stderr
    assert (second.run_dir / second.metrics["checkpoint"]).is_dir()
    assert second.metrics["step"] == first.metrics["step"]
    assert second.metrics["accuracy"] == first.metrics["accuracy"]
    shutil.rmtree(first.run_dir)
    for name in ("metrics.json", "config.yaml"):  # killed before either was written, and started again
        (second.run_dir / name).unlink()
        again = train_here(*flags, "--resume_from_checkpoint", checkpoint, run_dir=tmp_path / "second")
        assert again.code == 0, again.stderr
        assert f"resuming from {second.run_dir}/checkpoints/step-00000020" in again.stderr
        assert again.metrics == second.metrics
    elsewhere = train_here(*flags, "--resume_from_checkpoint", tmp_path, run_dir=tmp_path / "second")
    assert (elsewhere.code, "is not of the run in" in elsewhere.stderr) == (2, True)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """When each file was written, and what is in it; the lock's file has neither."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.parametrize("keep_checkpoints", [True, False])
def test_a_finished_run_is_left_as_it_is_and_as_its_user_has_made_it(
    keep_checkpoints: bool, train_here: Train, small_job: list[Any]
) -> None:
    flags = [*small_job, "--max_train_steps", 3, "--resume_from_checkpoint", "auto"]
    run_dir = train_here(*flags).run_dir
    (run_dir / "onnx").mkdir()
    for file in ("onnx/model.onnx", "model/README.md", "model/notes.txt", "predictions.csv"):
        (run_dir / file).write_text("mine")
    if not keep_checkpoints:
        shutil.rmtree(run_dir / "checkpoints")
    before = contents(run_dir)
    again = train_here(*flags)
    assert again.code == 0, again.stderr
    expected = f"the run in {run_dir} has finished already: metrics {run_dir}/metrics.json, model {run_dir}/model"
    assert again.stderr.splitlines()[-1] == f"train_sst2.py: {expected}"
    assert contents(run_dir) == before


def test_a_finished_run_is_evaluated_on_another_file_and_keeps_its_model(
    train_here: Train, small_job: list[Any], tsv_files: tuple[Path, Path]
) -> None:
    flags = [*small_job, "--max_train_steps", 3, "--resume_from_checkpoint", "auto"]
    run_dir = train_here(*flags).run_dir
    for file in ("model/README.md", "model/notes.txt"):
        (run_dir / file).write_text("mine")
    before = contents(run_dir / "model")
    again = train_here(*flags, "--test_file", tsv_files[1])
    assert again.code == 0, again.stderr
    assert again.metrics["test"]["accuracy"] == again.metrics["accuracy"]
    assert contents(run_dir / "model") == before
    shutil.rmtree(run_dir / "checkpoints")
    before = contents(run_dir)
    refused = train_here(*flags)
    assert refused.code == 2
    assert "has finished with other settings, and has no checkpoint to go on from" in refused.stderr
    assert contents(run_dir) == before


def lose_the_model(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "model")


def lose_what_was_in_memory(run_dir: Path) -> None:
    """As a host without power does with blocks that never came to its disk."""
    weights = run_dir / "model" / "model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))


def lose_the_metrics(run_dir: Path) -> None:
    (run_dir / "metrics.json").unlink()


def lose_the_tokenizer(run_dir: Path) -> None:
    (run_dir / "model" / "tokenizer.json").write_text("{}")


def keep_the_model_elsewhere(run_dir: Path) -> None:
    os.rename(run_dir / "model", run_dir.with_name("elsewhere"))
    (run_dir / "model").symlink_to(run_dir.with_name("elsewhere"))
    (run_dir / "metrics.json").unlink()


LOSSES = [lose_the_model, lose_what_was_in_memory, lose_the_metrics, lose_the_tokenizer, keep_the_model_elsewhere]


@pytest.mark.parametrize("lose", LOSSES)
def test_what_a_finished_run_has_lost_is_made_again(
    lose: Callable[[Path], None], train_here: Train, small_job: list[Any]
) -> None:
    flags = [*small_job, "--max_train_steps", 3, "--resume_from_checkpoint", "auto"]
    first = train_here(*flags)
    metrics, weights = first.metrics, (first.run_dir / "model" / "model.safetensors").read_bytes()
    lose(first.run_dir)
    again = train_here(*flags)
    assert again.code == 0, again.stderr
    assert again.metrics == metrics
    assert (first.run_dir / "model" / "model.safetensors").read_bytes() == weights
    assert {path.name for path in first.run_dir.glob(".*")} == {".lock"}


def test_a_run_counts_as_finished_when_all_that_it_exports_is_on_disk(
    train_here: Train, small_job: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a crash of the host may undo is seen by no test, so this one watches the calls."""
    run_dir, calls = tmp_path / "run", []

    def fsync(descriptor: int, fsync: Callable[[int], None] = os.fsync) -> None:
        calls.append(os.path.relpath(Path(f"/proc/self/fd/{descriptor}").readlink(), run_dir))
        fsync(descriptor)

    def watched(move: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        def moving(old: Any, new: Any) -> None:
            calls.append(f"{os.path.relpath(old, run_dir)} becomes {os.path.relpath(new, run_dir)}")
            move(old, new)

        return moving

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", watched(os.rename))
    monkeypatch.setattr(os, "replace", watched(os.replace))
    assert train_here(*small_job, "--max_train_steps", 3).code == 0
    exported = calls.index(".model.unfinished becomes model")
    files = {f".model.unfinished/{path.name}" for path in (run_dir / "model").iterdir()}
    assert files | {".model.unfinished"} <= {*calls[:exported]}
    assert calls[exported + 1] == "."
    predicted = calls.index(".predictions.csv.unfinished becomes predictions.csv")
    assert calls[predicted - 1] == ".predictions.csv.unfinished"
    assert exported < predicted < calls.index(".metrics.json.unfinished becomes metrics.json") == len(calls) - 2


def test_overwriting_replaces_the_run_and_spares_other_files(train_here: Train, small_job: list[Any]) -> None:
    first = train_here(*small_job)
    (first.run_dir / "notes.txt").write_text("mine")
    second = train_here(*small_job, "--overwrite_output_dir", "--max_train_steps", 3)
    assert second.code == 0, second.stderr
    assert [line["step"] for line in second.logged("train")] == [1, 2, 3]
    assert [path.name for path in (first.run_dir / "checkpoints").iterdir()] == ["step-00000003"]
    assert (first.run_dir / "notes.txt").read_text() == "mine"


def test_checkpoints_are_rotated_and_the_best_is_kept(train_here: Train, small_job: list[Any]) -> None:
    # A rate that ruins the model after a while, so that the best is not among the last.
    run = train_here(
        *small_job, "--eval_steps", 2, "--checkpointing_steps", 1, "--load_best_model_at_end", "--learning_rate", 0.03
    )
    evaluations = {line["step"]: (line["accuracy"], -line["loss"]) for line in run.logged("validation")}
    best = max(evaluations, key=lambda step: evaluations[step])
    kept = {path.name for path in (run.run_dir / "checkpoints").iterdir()}
    assert kept == {f"step-{step:08d}" for step in (best, 19, 20)}
    assert run.metrics["step"] == best
    assert run.metrics["accuracy"] == evaluations[best][0]
    assert "the most accurate on the validation split" in (run.run_dir / "model" / "README.md").read_text()


def test_training_stops_when_evaluations_stop_to_improve(train_here: Train, small_job: list[Any]) -> None:
    flags = [*small_job, "--eval_steps", 1, "--early_stopping_patience", 2, "--num_train_epochs", 30]
    flags += ["--lr_scheduler_type", "constant", "--learning_rate", 0.03]  # jumps about, so some steps do not improve
    run = train_here(*flags)
    evaluations = run.logged("validation")
    assert len(evaluations) < 300
    best = max(line["accuracy"] for line in evaluations[:-2])
    assert all(line["accuracy"] <= best for line in evaluations[-2:])
    assert run.metrics["step"] == evaluations[-1]["step"]
    again = train_here(*flags, "--resume_from_checkpoint", "auto")
    assert len(again.logged("validation")) == len(evaluations)  # a stopped run does not go on


def test_a_run_that_is_worse_than_the_median_of_others_ends_early(
    train_here: Train, small_job: list[Any], tmp_path: Path
) -> None:
    for number, accuracy in enumerate([0.0, 1.0, 1.0, 1.0, 0.0]):
        (tmp_path / "runs" / str(number)).mkdir(parents=True)
        points = [{"split": "validation", "step": step, "accuracy": accuracy * (step > 2)} for step in (2, 4, 6)]
        (tmp_path / "runs" / str(number) / "metrics.jsonl").write_text("\n".join(map(json.dumps, points)))
    flags = [*small_job, "--eval_steps", 2, "--stop_below_median", tmp_path / "runs"]
    run = train_here(*flags, run_dir=tmp_path / "runs" / "own")
    assert run.code == 0, run.stderr
    assert [line["step"] for line in run.logged("validation")] == [2, 4]  # at 2, it is better than most
    assert run.metrics["step"] == 4
    assert run.metrics["stopped"] == "worse than the median of other runs"
    assert "is worse than the median of other runs, 1.0000: stopping" in (run.run_dir / "train.log").read_text()
    again = train_here(*flags, "--resume_from_checkpoint", "auto", run_dir=tmp_path / "runs" / "own")
    assert len(again.logged("validation")) == 2  # a stopped run does not go on


def test_a_broken_model_ends_the_run_after_ten_steps(
    train_here: Train, small_job: list[Any], broken_model: Path
) -> None:
    run = train_here(*small_job, "--model_name_or_path", broken_model)
    assert run.code == 3
    assert "not finite in 10 steps in a row, up to step 10" in run.stderr
    assert run.stderr.count("not finite in 10 steps") == 1
    assert "Traceback" not in run.stderr
    left = find_run(run.run_dir)  # as compare sees it
    assert (left.status, left.total_steps) == ("diverged", 20)
    assert "not finite in 10 steps in a row" in left.note
    assert not (run.run_dir / "model").exists()


def test_garbage_is_collected_at_the_same_steps_on_all_ranks(
    train_here: Train, small_job: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sst2.training.trainer.STEPS_BETWEEN_COLLECTIONS", 5)
    steps = []

    def note(phase: str, info: dict[str, int]) -> None:
        frame = sys._getframe(1)
        while frame and frame.f_code.co_name != "fit":
            frame = frame.f_back  # type: ignore[assignment]
        if frame and phase == "start":
            steps.append(frame.f_locals["state"].step)

    before = gc.get_threshold(), gc.get_freeze_count()
    gc.set_threshold(50)  # or this job would be too short for the collector to have moments of its own
    gc.callbacks.append(note)
    try:
        run = train_here(*small_job)
    finally:
        gc.callbacks.remove(note)
        gc.set_threshold(*before[0])
    assert run.code == 0, run.stderr
    assert steps == [5, 10, 15, 20]
    assert gc.isenabled()
    assert gc.get_freeze_count() == before[1]


def test_the_stop_check_is_part_of_the_time_that_is_logged(train_here: Train, small_job: list[Any]) -> None:
    logged = train_here(*small_job).logged("train")
    assert logged[0]["stop_check_share"] == 0  # the first one comes after the first step
    assert all(0 < line["stop_check_share"] < 1 for line in logged[1:])


def test_learning_rate_rises_and_falls(train_here: Train, small_job: list[Any]) -> None:
    rates = [line["learning_rate"] for line in train_here(*small_job, "--num_warmup_steps", 4).logged("train")]
    assert rates[:5] == pytest.approx([0, 2.5e-4, 5e-4, 7.5e-4, 1e-3])
    falls = [before - after for before, after in pairwise(rates[4:])]
    assert falls == pytest.approx([1e-3 / 16] * 15)


def test_selection_on_a_holdout(train_here: Train, small_job: list[Any]) -> None:
    run = train_here(*small_job, "--holdout_fraction", 0.2)
    assert [line["count"] for line in run.logged("holdout")] == [60, 60]
    assert run.metrics["holdout"]["loss"] == run.logged("holdout")[-1]["loss"]  # by which the run would be chosen
    assert [line["step"] for line in run.logged("validation")] == [16]  # not looked at before the end
    assert (run.metrics["split"], run.metrics["count"]) == ("validation", 70)
    alone = [flag for flag in small_job if flag not in (small_job[4], small_job[5])]
    run = train_here(*alone, "--holdout_fraction", 0.2, "--overwrite_output_dir")
    assert (run.metrics["split"], run.metrics["count"]) == ("holdout", 60)


def test_unlabeled_test_sentences_are_predicted_and_not_scored(
    train_here: Train, small_job: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "test.tsv").write_text("sentence\tlabel\na gripping film\t-1\na dull mess\t-1\n")
    run = train_here(*small_job, "--test_file", tmp_path / "test.tsv")
    assert "test" not in run.metrics
    with (run.run_dir / "predictions.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    assert [(row["sentence"], row["label"]) for row in rows] == [("a gripping film", ""), ("a dull mess", "")]


def test_bf16_trains_with_float32_master_weights(train_here: Train, small_job: list[Any]) -> None:
    flags = [*small_job, "--dropout", 0, "--learning_rate", 1e-4]  # no step that roundings would grow in
    run = train_here(*flags, "--mixed_precision", "bf16")
    assert run.code == 0, run.stderr
    master = weights(run)
    assert {tensor.dtype for tensor in master.values()} == {torch.float32}
    assert any(bool((tensor != tensor.bfloat16()).any()) for tensor in master.values())  # finer than bf16 can say
    losses = [line["loss"] for line in run.logged("train")]
    exact = train_here(*flags, "--mixed_precision", "no", "--overwrite_output_dir")
    expected = [line["loss"] for line in exact.logged("train")]
    assert losses != expected
    assert losses == pytest.approx(expected, rel=2**-8)


@pytest.mark.slow
def test_precision_and_threads_follow_the_launcher(
    train: Train, small_job: list[Any], tiny_model: Path, tmp_path: Path
) -> None:
    wide = Path(shutil.copytree(tiny_model, tmp_path / "wide"))  # too wide to be left to one thread
    config = DistilBertConfig.from_pretrained(tiny_model, dim=256, hidden_dim=1024)
    DistilBertModel(config).save_pretrained(wide)
    accelerate = Path(sys.executable).with_name("accelerate")
    launcher = ["env", "-u", "OMP_NUM_THREADS", str(accelerate), "launch", "--mixed_precision", "bf16"]
    run = train(*small_job, "--model_name_or_path", wide, "--max_train_steps", 2, launcher=launcher)
    assert run.code == 0, run.stderr
    environment = json.loads((run.run_dir / "environment.json").read_text())
    assert (environment["mixed_precision"], environment["launcher"]) == ("bf16", "accelerate launch")
    # accelerate sets OMP_NUM_THREADS to 1, which would leave all cores but one idle
    assert environment["torch_threads"] == min(psutil.cpu_count(logical=False), len(os.sched_getaffinity(0)))
    on_cpu = [*launcher, "--config_file", str(REPOSITORY / "accelerate_configs" / "single_cpu.yaml")]
    small = train(*small_job, "--max_train_steps", 2, launcher=on_cpu, run_dir=tmp_path / "small")
    assert json.loads((small.run_dir / "environment.json").read_text())["torch_threads"] == 1


def test_the_last_evaluation_is_computed_once_and_reported_as_it_was_logged(
    train_here: Train, small_job: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[tuple[str, int]] = []

    def evaluate(trainer: Trainer, split: Split, computed: Any = train_sst2.evaluate) -> Any:
        evaluated.append((split.name, trainer.state.step))
        return computed(trainer, split)

    monkeypatch.setattr(train_sst2, "evaluate", evaluate)
    run = train_here(*small_job, "--holdout_fraction", 0.1)
    assert run.code == 0, run.stderr
    steps = run.metrics["step"]
    assert evaluated == [("holdout", steps // 2), ("holdout", steps), ("validation", steps)]
    again = train_here(*small_job, "--resume_from_checkpoint", "auto", run_dir=run.run_dir.with_name("other"))
    assert evaluated[3:] == [("validation", 10), ("validation", 20)]
    last = without_times(again.logged("validation")[-1])
    assert {name: again.metrics[name] for name in ("accuracy", "loss", "f1")} == {
        name: last[name] for name in ("accuracy", "loss", "f1")
    }


def test_auto_keeps_the_precision_of_the_run_that_goes_on(
    train_here: Train, small_job: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for gain, precision in ((9.0, "bf16"), (0.5, "no")):  # now another machine, which would choose otherwise
        monkeypatch.setattr(precision_module, "bf16_gain", lambda gain=gain: gain)
        monkeypatch.setattr(precision_module, "_cpu_has_bf16", lambda: True)
        flags = [*small_job, "--mixed_precision", "auto", "--max_train_steps", 8]
        fresh = train_here(*flags, "--overwrite_output_dir")
        assert f"mixed_precision: {precision}\n" in (fresh.run_dir / "resolved.yaml").read_text().replace("'", "")
        monkeypatch.setattr(precision_module, "bf16_gain", lambda gain=gain: 1 / gain)
        resumed = train_here(*flags, "--resume_from_checkpoint", "auto")
        assert resumed.code == 0, resumed.stderr
        assert f", {precision.replace('no', 'float32')}: the checkpoint has it" in resumed.stderr


def test_a_file_whose_name_is_no_utf_8_is_named_in_the_card(train_here: Train, small_job: list[Any]) -> None:
    file = Path(small_job[3]).with_name(os.fsdecode(b"caf\xe9.tsv"))
    shutil.copyfile(small_job[3], file)
    run = train_here(*small_job, "--train_file", file, "--max_train_steps", 1)
    assert run.code == 0, run.stderr
    assert "caf\\udce9.tsv: trained on 300 sentences" in (run.run_dir / "model" / "README.md").read_text()


def test_a_folder_whose_name_is_no_utf_8_is_refused_at_once(
    train_here: Train, small_job: list[Any], tmp_path: Path
) -> None:
    run = train_here(*small_job, run_dir=tmp_path / os.fsdecode(b"caf\xe9"))
    assert run.code == 2
    assert run.stderr.count("\n") == 1
    assert "is not UTF-8, as safetensors needs a folder to be: rename it" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_another_model_is_replaced_and_its_target_spared(
    train_here: Train, small_job: list[Any], tmp_path: Path
) -> None:
    flags = [*small_job, "--max_train_steps", 2, "--checkpointing_steps", 1]
    run = train_here(*flags)
    (run.run_dir / "metrics.json").unlink()
    os.rename(run.run_dir / "model", tmp_path / "elsewhere")
    (run.run_dir / "model").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "model.safetensors").write_bytes(b"of another model")
    again = train_here(*flags, "--resume_from_checkpoint", "auto")
    assert again.code == 0, again.stderr
    assert not (run.run_dir / "model").is_symlink()
    assert weights(again)
    assert (tmp_path / "elsewhere" / "model.safetensors").read_bytes() == b"of another model"


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&-"])
def test_a_job_without_outputs_ends_as_any_other(
    closed: str, train: Train, small_job: list[Any], tmp_path: Path
) -> None:
    run = train(*small_job, "--max_train_steps", 1, launcher=["bash", "-c", f'exec "$@" {closed}', "", sys.executable])
    assert run.code == 0, run.stderr
    assert run.metrics["step"] == 1


def test_a_disk_that_does_not_answer_is_not_waited_for_without_end(
    small_job: list[object], train_here: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    answered, fsync, writers = threading.Event(), os.fsync, []

    def hang(descriptor: int) -> None:
        if threading.current_thread().name == "checkpoint writer":
            writers.append(threading.current_thread())
            answered.wait(60)
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", hang)
    monkeypatch.setattr("sst2.training.trainer.SHORTEST_PATIENCE", 1.0)
    done = train_here(*small_job, "--step_timeout", 0.1)
    was_given_up = not answered.is_set() and writers[0].is_alive()
    answered.set()
    writers[0].join()
    assert (done.code, was_given_up) == (2, True)
    place = done.run_dir / "checkpoints" / "step-00000020"
    said = f"error: checkpoint {place} is not on disk after 1 s: see to that disk; there is no earlier one"
    assert done.stderr.splitlines()[-1] == f"train_sst2.py: {said}"


@pytest.mark.parametrize(
    ("metric", "best", "words"),
    [("loss", min, "the one of the lowest loss"), ("f1_macro", max, "the one of the highest macro F1")],
)
def test_the_model_is_chosen_by_the_metric_that_is_named(
    metric: str, best: Callable[..., float], words: str, train_here: Train, small_job: list[Any]
) -> None:
    flags = ["--eval_steps", 2, "--load_best_model_at_end", "--metric_for_best_model", metric]
    run = train_here(*small_job, *flags, "--num_train_epochs", 3, "--learning_rate", 2e-3)
    assert run.code == 0, run.stderr
    evaluations = {line["step"]: line[metric] for line in run.logged("validation")}
    assert len(set(evaluations.values())) > 3
    assert run.metrics[metric] == evaluations[run.metrics["step"]] == best(evaluations.values())
    so_far = [line[f"best_{metric}"] for line in run.logged("validation")]
    assert so_far == [best([*evaluations.values()][: number + 1]) for number in range(len(evaluations))]
    assert run.metrics["selected"].startswith(f"{words} on the validation split of all that were evaluated")


def test_patience_goes_by_the_same_metric(train_here: Train, small_job: list[Any]) -> None:
    flags = ["--learning_rate", 1e-2, "--eval_steps", 2, "--num_train_epochs", 20, "--early_stopping_patience", 3]
    run = train_here(*small_job, *flags, "--metric_for_best_model", "loss")
    losses = [line["loss"] for line in run.logged("validation")]
    assert run.metrics["step"] == 2 * len(losses) < 200
    assert min(losses[:-3]) == min(losses)
    assert min(losses[:-3]) == losses[-4]


def test_a_batch_job_without_checkpoints_is_told_what_a_lost_node_costs(
    train_here: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--smoke", "--max_train_steps", 1, "--max_eval_samples", 4]
    assert "begins at step 0 again" not in train_here(*flags).stderr
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    flags.append("--overwrite_output_dir")
    assert "no --checkpointing_steps: after a lost node" in train_here(*flags).stderr
    assert "begins at step 0 again" not in train_here(*flags, "--checkpointing_steps", 1).stderr
