"""Sentences that are too long: cut in use as in training, counted, and said wherever it happens."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from sst2.inference.onnx_export.command import main as export
from sst2.inference.predict.command import load
from sst2.inference.predict.command import main as predict
from sst2.utils.errors import UserError
from tests.support.running import Finished

LONG = "a gripping , funny film that nobody should miss , and then a dull , lifeless one"
ONE_STEP = "--num_train_epochs 1 --max_train_steps 1 --global_batch_size 4 --max_length 8".split()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data.csv").write_text(f'sentence,label\n"{LONG}",1\nbad,0\ngood,1\n"{LONG} indeed",0\n')
    return tmp_path / "data.csv"


def test_a_run_counts_what_it_cuts_and_its_model_is_used_with_that_length(
    tiny_model: Path, data: Path, train_here: Callable[..., Finished], capfd: pytest.CaptureFixture[str]
) -> None:
    files = ["--train_file", data, "--validation_file", data]
    run = train_here("--model_name_or_path", tiny_model, *files, *ONE_STEP)
    assert run.code == 0, run.stderr
    assert "train: 2 of 4 sentences have more than --max_length 8 tokens: their ends are cut off" in run.stderr
    assert "validation: 2 of 4 sentences have more" in run.stderr
    again = train_here("--model_name_or_path", tiny_model, *files, *ONE_STEP, "--overwrite_output_dir")
    assert "train: 2 of 4 sentences have more than --max_length 8 tokens" in again.stderr  # tokenized earlier
    assert AutoTokenizer.from_pretrained(run.run_dir / "model").model_max_length == 8

    capfd.readouterr()
    predict([str(run.run_dir), "--file", str(data), "--format", "jsonl"])
    out, said = capfd.readouterr()
    assert said.endswith("2 sentences have more than 8 tokens, the rest is cut off: --max_length takes up to 512\n")
    predict([str(run.run_dir), "--file", str(data), "--format", "jsonl", "--max_length", "100"])
    whole, said = capfd.readouterr()
    assert "cut off" not in said
    first, entire = (json.loads(lines.splitlines()[0])["probability_positive"] for lines in (out, whole))
    assert first != entire
    predict([str(run.run_dir), LONG, "--format", "jsonl"])
    assert json.loads(capfd.readouterr().out)["probability_positive"] == first
    with pytest.raises(UserError, match="--max_length 513 cannot work: give 3 to 512"):
        load(str(run.run_dir / "model"), 513, "no")


@pytest.mark.slow
def test_an_export_cuts_as_its_model_was_trained_unless_told_otherwise(
    tiny_classifier: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(tiny_classifier, tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.model_max_length = 8
    tokenizer.save_pretrained(model)
    for flags, length in ([], 8), (["--max_length", "100", "--overwrite_output_dir"], 100):
        export([str(model), "--validation_file", str(data), *flags])
        said = capfd.readouterr().err
        assert ("data.csv: 2 of 4 sentences have more than 8 tokens" in said) == (length == 8)
        assert json.loads((tmp_path / "model-onnx" / "export.json").read_text())["max_length"] == length
        assert f"enable_truncation({length})" in (tmp_path / "model-onnx" / "README.md").read_text()
    with pytest.raises(UserError, match="--max_length 2 cannot work"):
        export([str(model), "--max_length", "2", "--output_dir", str(tmp_path / "other")])
