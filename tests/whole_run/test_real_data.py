"""Real SST-2 with a real checkpoint: what the published data looks like, and that the job learns from it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import pipeline

from sst2.data.checked_rows import read_file
from tests.support.running import Finished

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real_data,
    pytest.mark.skipif(
        not {"SST2_DATA_DIR", "SST2_MODEL_DIR"} <= set(os.environ), reason="SST2_DATA_DIR and SST2_MODEL_DIR are unset"
    ),
]


def test_published_files_are_read_whole() -> None:
    folder = Path(os.environ["SST2_DATA_DIR"])
    train, validation = (read_file(str(folder / name), labels_required=True) for name in ("train.tsv", "dev.tsv"))
    assert (len(train), sum(train["label"])) == (67_349, 37_569)
    assert (len(validation), sum(validation["label"])) == (872, 444)
    assert len(set(train["sentence"])) == 66_978
    assert not {s.strip() for s in validation["sentence"]} & {s.strip() for s in train["sentence"]}


def test_some_thousand_sentences_teach_sentiment(train: Callable[..., Finished]) -> None:
    folder = Path(os.environ["SST2_DATA_DIR"])
    run = train(
        *("--model_name_or_path", os.environ["SST2_MODEL_DIR"], "--mixed_precision", "auto"),
        *("--train_file", folder / "train.tsv", "--validation_file", folder / "dev.tsv"),
        *("--max_train_samples", 4_000, "--num_train_epochs", 1, "--learning_rate", 1e-4),
        OMP_NUM_THREADS="2",
    )
    assert run.code == 0, run.stderr
    assert run.metrics["count"] == 872
    assert run.metrics["accuracy"] > 0.75  # chance is 0.51
    classify = pipeline("text-classification", str(run.run_dir / "model"))
    reviews = ["a wonderful, moving and beautifully acted film", "a boring, stupid mess and a waste of time"]
    assert [answer["label"] for answer in classify(reviews)] == ["POSITIVE", "NEGATIVE"]
