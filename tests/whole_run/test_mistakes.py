"""Every kind of mistake ends with exit code 2 and one line that names the flag or file; nothing is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.support.running import Finished

Mistake = Callable[[Path, list[Any]], list[Any]]


def with_flags(*flags: object) -> Mistake:
    return lambda folder, job: [*job, *flags]


def with_file(name: str, content: bytes) -> Mistake:
    def make(folder: Path, job: list[Any]) -> list[Any]:
        (folder / name).write_bytes(content)
        return [*job, "--train_file", folder / name]

    return make


def with_model(change: Callable[[Path], object]) -> Mistake:
    def make(folder: Path, job: list[Any]) -> list[Any]:
        shutil.copytree(job[job.index("--model_name_or_path") + 1], folder / "model")
        change(folder / "model")
        return [*job, "--model_name_or_path", folder / "model"]

    return make


def as_bert(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))


def as_run(model: Path) -> None:
    shutil.copytree(model, model / "model")
    (model / "config.json").unlink()


def without_vocabulary(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink()


def saved_without_validation(folder: Path, job: list[Any]) -> list[Any]:
    train = datasets.Dataset.from_dict({"sentence": ["good", "bad"], "label": [1, 0]})
    datasets.DatasetDict({"train": train}).save_to_disk(folder / "saved")
    return ["--dataset_name", folder / "saved"]


def folder_that_is_a_file(folder: Path, job: list[Any]) -> list[Any]:
    (folder / "run").write_text("precious")
    return job


def folder_with_something_in_it(folder: Path, job: list[Any]) -> list[Any]:
    (folder / "run").mkdir()
    (folder / "run" / "thesis.txt").write_text("precious")
    return job


def folder_that_is_no_run(folder: Path, job: list[Any]) -> list[Any]:
    return [*folder_with_something_in_it(folder, job), "--overwrite_output_dir"]


MISTAKES: dict[str, tuple[Mistake, str]] = {
    "unknown flag": (with_flags("--learning_rte", "1"), "did you mean --learning_rate?"),
    "not a number": (with_flags("--learning_rate", "fast"), "--learning_rate"),
    "not a choice": (with_flags("--lr_scheduler_type", "zigzag"), "--lr_scheduler_type"),
    "rate too high": (with_flags("--learning_rate", "5"), "--learning_rate 5.0 cannot work"),
    "rate is no number": (with_flags("--learning_rate", "nan"), "--learning_rate nan cannot work"),
    "batch of zero": (with_flags("--per_device_train_batch_size", "0"), "--per_device_train_batch_size 0 cannot work"),
    "too few checkpoints": (with_flags("--checkpoints_total_limit", "1"), "keep at least 2"),
    "no config file": (with_flags("--config", "none.yaml"), "--config none.yaml"),
    "no such file": (with_flags("--train_file", "none.tsv"), "--train_file none.tsv does not exist"),
    "file of no known kind": (with_flags("--train_file", __file__), "must end in one of"),
    "no validation data": (lambda f, job: ["--train_file", job[3]], "--validation_file"),
    "no training data": (lambda f, job: ["--test_file", job[3]], "--train_file"),
    "no such model folder": (with_flags("--model_name_or_path", "./none"), "--model_name_or_path ./none"),
    "no such checkpoint": (with_flags("--resume_from_checkpoint", "none"), "--resume_from_checkpoint none"),
    "overwrite and resume": (with_flags("--overwrite_output_dir", "--resume_from_checkpoint", "auto"), "contradict"),
    "unknown tracker": (with_flags("--report_to", "paper"), "--report_to paper is unknown"),
    "tracker not installed": (with_flags("--report_to", "wandb"), "pip install wandb"),
    "name without upload": (with_flags("--hub_model_id", "me/model"), "needs --push_to_hub"),
    "upload without token": (with_flags("--push_to_hub"), "needs a token"),
    "JSON of no dry run": (with_flags("--json"), "--json needs --dry_run beside it"),
    "price of no dry run": (with_flags("--price_per_hour", "2"), "--price_per_hour needs --dry_run beside it"),
    "price below nothing": (with_flags("--dry_run", "--price_per_hour", "-1"), "--price_per_hour -1.0 cannot work"),
    "data named twice": (with_flags("--dataset_name", "nyu-mll/glue"), "--dataset_name and --train_file both name"),
    "smoke with data": (with_flags("--smoke"), "drop --"),
    "output folder is a file": (folder_that_is_a_file, "is a file"),
    "output folder is not empty": (folder_with_something_in_it, "--resume_from_checkpoint auto goes on with it"),
    "overwriting no run": (folder_that_is_no_run, "holds no run"),
    "resuming no run": (
        lambda f, job: [*folder_with_something_in_it(f, job), "--resume_from_checkpoint", "auto"],
        "holds no run",
    ),
    "empty value": (with_flags("--model_name_or_path", ""), "--model_name_or_path is empty"),
    "column twice": (with_file("a.csv", b"sentence,label,label\ngood,1,0\n"), "has 2 columns 'label'"),
    "fp16 on a CPU": (with_flags("--mixed_precision", "fp16"), "needs a GPU"),
    "sentences too long": (with_flags("--max_length", "1000"), "more than the 512 positions"),
    "nothing held out": (with_flags("--holdout_fraction", "0.0001"), "leaves a part empty"),
    "contradicting batches": (
        with_flags("--global_batch_size", "32", "--gradient_accumulation_steps", "3"),
        "drop one of the two",
    ),
    "one class": (with_flags("--label_names", "spam"), "--label_names spam cannot work: give two different names"),
    "classes the other way round": (
        with_flags("--label_names", "positive", "negative"),
        "name the negative class first",
    ),
    "classes in short the other way round": (
        with_flags("--label_names", "pos", "neg"),
        "--label_names pos neg cannot work: name the negative class first",
    ),
    "classes alike": (with_flags("--label_names", "Spam", "spam"), "--label_names Spam spam cannot work"),
    "classes alike but for their length": (with_flags("--label_names", "neg", "Negative"), "give two different names"),
    "weights of too few classes": (
        with_flags("--class_weights", "2"),
        "--class_weights 2 cannot work: give 2 numbers, one for each class in the order NEGATIVE, POSITIVE",
    ),
    "weights of classes by name": (
        with_flags("--class_weights", "heavy"),
        "give none, balanced, or a number from 0",
    ),
    "a class without weight": (with_flags("--class_weights", "1", "0"), "--class_weights 1 0 cannot work"),
    "no label at all": (with_flags("--label_smoothing", "1"), "--label_smoothing 1.0 cannot work: give a share from 0"),
    "unknown metric": (with_flags("--metric_for_best_model", "eval_loss"), "--metric_for_best_model"),
    "steps to profile that are none": (
        with_flags("--profile_steps", "x"),
        "--profile_steps x cannot work: give the first and the last step, such as 100:105",
    ),
    "steps to profile from last to first": (with_flags("--profile_steps", "5:3"), "--profile_steps 5:3 cannot work"),
    "a step before the first to profile": (with_flags("--profile_steps", "0:3"), "--profile_steps 0:3 cannot work"),
    "too many steps to profile": (with_flags("--profile_steps", "1:21"), "20 steps at most"),
    "steps to profile beyond the last": (
        with_flags("--profile_steps", "20:21"),
        "--profile_steps 20:21 cannot work: the run has 20 steps",
    ),
    "one column": (with_flags("--label_column", "sentence"), "--sentence_column and --label_column are both sentence"),
    "other column": (with_flags("--sentence_column", "text"), "has no column 'text', only 'sentence', 'label'"),
    "other classes": (with_flags("--label_names", "1", "2"), "is unknown: give 1 or 2, or fix --label_names"),
    "missing column": (with_file("a.csv", b"text,label\ngood,1\n"), "a.csv has no column 'sentence'"),
    "unknown label": (with_file("a.csv", b"sentence,label\ngood,1\nbad,2\n"), "a.csv line 3: label '2' is unknown"),
    "empty sentence": (with_file("a.tsv", b"sentence\tlabel\n\t1\n"), "a.tsv line 2: the sentence is empty"),
    "not UTF-8": (with_file("a.csv", b"sentence,label\ncaf\xe9,1\n"), "a.csv line 2: the sentence is not UTF-8"),
    "empty file": (with_file("a.csv", b"sentence,label\n"), "a.csv holds no sentences"),
    "no validation split": (saved_without_validation, "has no split named validation"),
    "another architecture": (with_model(as_bert), "weights of a BERT"),
    "no model config": (with_model(lambda model: (model / "config.json").unlink()), "has no config.json"),
    "a run for a model": (with_model(as_run), "is a run: give "),
    "no vocabulary": (with_model(without_vocabulary), "holds no vocabulary"),
    "no weights": (with_model(lambda model: (model / "model.safetensors").unlink()), "model.safetensors"),
    "damaged weights": (
        with_model(lambda model: (model / "model.safetensors").write_bytes(b"\xff" * 100)),
        "safetensors file is damaged",
    ),
    "not in the cache": (lambda folder, job: [*job, "--model_name_or_path", "some/model"], "not in the cache"),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_one_line(finished: Finished, expected: str) -> None:
    assert finished.code == 2
    errors = [line for line in finished.stderr.splitlines() if line.startswith("train_sst2.py: error: ")]
    assert len(errors) == 1, finished.stderr
    assert expected in errors[0]
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name: str, tmp_path: Path, small_job: list[Any], train_here: Callable[..., Finished]) -> None:
    make, expected = MISTAKES[name]
    flags = make(tmp_path, small_job)
    before = contents(tmp_path)
    assert_one_line(train_here(*flags), expected)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["rate too high", "unknown label"])  # before and after the heavy imports
def test_mistake_in_a_process_of_its_own(
    name: str, tmp_path: Path, small_job: list[Any], train: Callable[..., Finished]
) -> None:
    make, expected = MISTAKES[name]
    finished = train(*make(tmp_path, small_job))
    assert_one_line(finished, expected)
    assert not finished.run_dir.exists()
