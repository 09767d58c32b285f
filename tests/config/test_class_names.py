"""Names decide which class of a checkpoint, a file or a run is which: in training, export and comparison."""

import json
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import DistilBertForSequenceClassification

from sst2.config.class_names import order_of_classes, positive_class
from sst2.config.settings import Settings
from sst2.data.sample import sample_tokenizer
from sst2.evaluation.run_results import Run, same_sentences
from sst2.inference.onnx_export import figures
from sst2.inference.onnx_export.command import read_validation
from sst2.inference.onnx_export.figures import REFERENCE, Variant
from sst2.models.loading import load_model, load_tokenizer
from sst2.utils.errors import UserError
from tests.support.datasets import dataset_of
from tests.support.running import Finished

CHECK = "--num_train_epochs 1 --max_train_steps 1 --learning_rate 1e-12 --global_batch_size 32".split()


def renamed(classifier: Path, folder: Path, first: str, second: str) -> Path:
    """The classifier with its rows exchanged, and these names for them."""
    names: dict[str, Any] = {"id2label": {0: first, 1: second}, "label2id": {first: 0, second: 1}}
    model = DistilBertForSequenceClassification.from_pretrained(classifier, **names)
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.copy_(parameter.flip(0).clone())
    model.save_pretrained(folder)
    sample_tokenizer().save_pretrained(folder)
    return folder


def load(model: Path, **flags: Any) -> Any:
    settings = Settings(output_dir="/nonexistent", model_name_or_path=str(model), **flags)
    return load_model(settings, load_tokenizer(settings))


@pytest.mark.parametrize("names", [("POSITIVE", "NEGATIVE"), ("positive", "Negative"), ("pos", "neg")])
def test_a_kept_head_is_put_in_the_order_of_the_runs_classes(
    names: tuple[str, str], tiny_classifier: Path, tmp_path: Path
) -> None:
    model = load(renamed(tiny_classifier, tmp_path / "model", *names))
    for name, tensor in load_file(tiny_classifier / "model.safetensors").items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert model.config.id2label == {0: "NEGATIVE", 1: "POSITIVE"}


def test_a_run_from_it_is_as_accurate_and_its_model_says_the_same(
    tiny_classifier: Path, tsv_files: tuple[Path, Path], train_here: Callable[..., Finished], tmp_path: Path
) -> None:
    data = ["--train_file", tsv_files[0], "--validation_file", tsv_files[1], *CHECK]
    expected = train_here("--model_name_or_path", tiny_classifier, *data, run_dir=tmp_path / "one")
    swapped = renamed(tiny_classifier, tmp_path / "model", "POSITIVE", "NEGATIVE")
    run = train_here("--model_name_or_path", swapped, *data, run_dir=tmp_path / "two")
    assert (expected.code, run.code) == (0, 0), run.stderr
    assert run.metrics["accuracy"] == expected.metrics["accuracy"] != 0.5
    assert json.loads((run.run_dir / "model" / "config.json").read_text())["id2label"] == {
        "0": "NEGATIVE",
        "1": "POSITIVE",
    }


def test_a_head_of_classes_with_other_names_is_asked_about(tiny_classifier: Path, tmp_path: Path) -> None:
    other = renamed(tiny_classifier, tmp_path / "model", "toxic", "harmless")
    with pytest.raises(UserError, match="head for toxic and harmless, where the run's classes are NEGATIVE and POSIT"):
        load(other)
    kept = load(other, label_names=["Toxic", "harmless"])
    assert torch.equal(kept.classifier.bias, load_file(other / "model.safetensors")["classifier.bias"])
    turned = load(other, label_names=["harmless", "toxic"])
    assert torch.equal(turned.classifier.bias, kept.classifier.bias.flip(0))


def test_rows_without_names_go_by_number_and_that_is_said(
    tiny_classifier: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = renamed(tiny_classifier, tmp_path / "model", "LABEL_0", "LABEL_1")
    model = load(folder)
    assert torch.equal(model.classifier.bias, load_file(folder / "model.safetensors")["classifier.bias"])
    assert f"{folder}: its classes have no names (LABEL_0 and LABEL_1): they are taken for NEGATIVE" in caplog.text


@pytest.mark.parametrize(
    ("classes", "flag", "content", "expected"),
    [
        (["POSITIVE", "NEGATIVE"], None, "good,positive\nbad,negative\n", [0, 1]),
        (["POSITIVE", "NEGATIVE"], None, "good,1\nbad,0\n", [0, 1]),  # numbers of SST-2
        (["POSITIVE", "NEGATIVE"], ["negative", "positive"], "good,1\nbad,0\n", [0, 1]),
        (["NEGATIVE", "POSITIVE"], ["positive", "negative"], "good,0\nbad,1\n", [1, 0]),
        (["LABEL_0", "LABEL_1"], None, "good,positive\nbad,0\n", [1, 0]),
        (["spam", "ham"], None, "buy,spam\nhello,1\n", [0, 1]),
        (["spam", "ham"], ["ham", "spam"], "buy,spam\nhello,0\n", [0, 1]),
        (["NEGATIVE", "POSITIVE"], ["bad", "good"], "fine,good\nawful,0\n", [1, 0]),
    ],
)
def test_a_file_to_measure_an_export_on_goes_by_names(
    classes: list[str],
    flag: list[str] | None,
    content: str,
    expected: list[int],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "dev.csv").write_text(f"sentence,label\n{content}")
    arguments: Any = SimpleNamespace(
        validation_file=str(tmp_path / "dev.csv"), sentence_column="sentence", label_column="label", label_names=flag
    )
    with caplog.at_level(logging.WARNING):
        read = read_validation(arguments, classes)
    assert read is not None
    assert read[1]["label"][:] == expected
    is_told = order_of_classes(classes, flag or ["NEGATIVE", "POSITIVE"]) is None and "spam" not in classes
    assert ("their names do not tell" in caplog.text) == is_told


def test_f1_of_an_export_is_of_the_class_named_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "CALLS", {})  # latency is not asked for
    labels = np.array([1, 1, 1, 0, 0, 0, 0, 0])
    logits = np.eye(2, dtype=np.float32)[[1, 1, 0, 0, 0, 0, 0, 1]]
    found = []
    for order in ([0, 1], [1, 0]):
        rows = iter(logits[:, order])
        variant = Variant(partial(next_logits, rows), 1)
        data = dataset_of([f"film {row}" for row in range(8)], np.array(order)[labels].tolist())
        names = np.array(["NEGATIVE", "POSITIVE"])[order].tolist()
        told = figures.figures_of({REFERENCE: variant}, sample_tokenizer(), data, 1, positive_class(names))
        found.append(told[REFERENCE]["f1"])
    assert found[0] == found[1] == pytest.approx(2 / 3)


def next_logits(rows: Iterator[np.ndarray], inputs: dict[str, np.ndarray]) -> np.ndarray:
    return np.stack([next(rows) for _ in inputs["input_ids"]])


def test_runs_that_number_the_same_names_otherwise_are_compared_by_name() -> None:
    one = Run("one", {}, {}, ("ham", "spam"), (("buy", "1"), ("hello", "0")))
    assert same_sentences(one, Run("two", {}, {}, ("SPAM", "ham"), (("buy", "0"), ("hello", "1"))))
    assert not same_sentences(one, Run("two", {}, {}, ("spam", "ham"), (("buy", "1"), ("hello", "0"))))
    assert same_sentences(one, Run("two", {}, {}, ("good", "bad"), (("buy", "1"), ("hello", "0"))))
