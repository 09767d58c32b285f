"""A run of every architecture: packed as padded, on one process as on two and under ZeRO-2, stopped, and exported."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import pipeline

from sst2.data.sample import sample_sentences
from sst2.inference.onnx_export.figures import TOLERANCE as ONNX_TOLERANCE
from sst2.inference.onnx_export.figures import probe_batches, require_same_logits
from sst2.inference.onnx_export.onnx_model import onnx_classifier, torch_classifier, write_onnx
from sst2.inference.predict.classifier import Classifier
from sst2.inference.predict.explain import TOLERANCE, Explainer
from sst2.models.export import stock_classifier
from sst2.models.loading import load_classifier
from tests.support.architectures import PACKED, PADDED, write_encoder
from tests.support.ranks import train_ranks
from tests.support.running import Finished

pytestmark = pytest.mark.slow

SENTENCES = sample_sentences("validation")[0][:20]
Train = Callable[..., Finished]


@pytest.fixture
def flags(request: pytest.FixtureRequest, tmp_path: Path, tsv_files: tuple[Path, Path]) -> list[object]:
    """Of a run of 30 steps from a tiny checkpoint of the architecture `name`."""
    model = write_encoder(request.getfixturevalue("name"), tmp_path / "encoder")
    return [
        *("--model_name_or_path", model, "--train_file", tsv_files[0], "--validation_file", tsv_files[1]),
        *("--max_train_steps", 30, "--dropout", 0, "--learning_rate", 3e-4, "--max_length", 64, "--logging_steps", 1),
        *("--global_batch_size", 32, "--checkpointing_steps", 20),
    ]


def assert_same_losses(run: Finished, expected: Finished) -> None:
    assert run.code == 0, run.stderr
    losses, expected_losses = ([line["loss"] for line in one.logged("train")] for one in (run, expected))
    assert len(losses) == 30
    assert losses == pytest.approx(expected_losses, rel=1e-5)


def assert_resumes(run: Finished, flags: list[object], train_here: Train) -> None:
    """Killed after step 20, it comes to the same weights bit for bit."""
    killed = Path(shutil.copytree(run.run_dir, run.run_dir.with_name("killed")))
    shutil.rmtree(killed / "checkpoints" / "step-00000030")
    shutil.rmtree(killed / "model")
    (killed / "metrics.json").unlink()
    resumed = train_here(*flags, "--resume_from_checkpoint", "auto", run_dir=killed)
    assert resumed.code == 0, resumed.stderr
    assert len(resumed.logged("train")) == 30
    weights = [(one / "model" / "model.safetensors").read_bytes() for one in (run.run_dir, killed)]
    assert weights[0] == weights[1]


def assert_used_as_pipeline_does(run: Finished) -> None:
    """By `predict`, by its explanations, and as ONNX."""
    folder = run.run_dir / "model"
    answers: Any = pipeline("text-classification", str(folder), top_k=None)(SENTENCES)
    expected = [next(a["score"] for a in answer if a["label"] == "POSITIVE") for answer in answers]
    classifier = Classifier(*load_classifier("MODEL", str(folder)), torch.device("cpu"))
    logits = torch.from_numpy(classifier.logits(SENTENCES))
    assert logits.softmax(1)[:, 1].tolist() == pytest.approx(expected, abs=1e-5)
    explanation = Explainer(classifier).explain(SENTENCES[0], 1)
    assert explanation.logit == pytest.approx(float(logits[0, 1]), abs=1e-4)
    assert abs(explanation.error) <= 2 * TOLERANCE * max(1.0, abs(explanation.logit - explanation.baseline_logit))
    model = stock_classifier(classifier.model.config, classifier.model.state_dict()).eval()
    write_onnx(model, run.run_dir / "model.onnx")
    both = torch_classifier(model), onnx_classifier(run.run_dir / "model.onnx", 1)
    require_same_logits(*both, probe_batches(classifier.tokenizer), ONNX_TOLERANCE)


@pytest.mark.parametrize("name", PACKED)
def test_it_trains_alike_in_all_ways_and_is_used(
    name: str, flags: list[object], train_here: Train, tmp_path: Path
) -> None:
    packed = train_here(*flags, run_dir=tmp_path / "packed")
    assert packed.code == 0, packed.stderr
    assert "cannot be packed" not in packed.stderr
    assert_same_losses(train_here(*flags, "--batching", "padded", run_dir=tmp_path / "padded"), packed)
    assert_same_losses(train_ranks(flags, tmp_path / "two", processes=2), packed)
    assert_same_losses(train_ranks(flags, tmp_path / "zero", "deepspeed_zero2", 2), packed)
    assert_resumes(packed, flags, train_here)
    assert_used_as_pipeline_does(packed)


@pytest.mark.parametrize("name", PADDED)
def test_what_cannot_be_packed_trains_padded_to_the_end(
    name: str, flags: list[object], train_here: Train, tmp_path: Path
) -> None:
    run = train_here(*flags, run_dir=tmp_path / "run")
    assert run.code == 0, run.stderr
    assert run.stderr.count("models cannot be packed") == 1
    assert "batching: padded" in (run.run_dir / "resolved.yaml").read_text()
    assert_same_losses(train_ranks(flags, tmp_path / "two", processes=2), run)
    assert_resumes(run, flags, train_here)
    assert_used_as_pipeline_does(run)


@pytest.mark.parametrize("name", ["bert", "modernbert", "eurobert"])  # tests/models/test_architectures.py has all
def test_gradient_checkpointing_changes_no_loss(
    name: str, flags: list[object], train_here: Train, tmp_path: Path
) -> None:
    flags = [*flags, "--dropout", 0.1]  # whose draws are repeated as well
    plain = train_here(*flags, run_dir=tmp_path / "plain")
    assert_same_losses(train_here(*flags, "--gradient_checkpointing", run_dir=tmp_path / "checkpointed"), plain)


@pytest.mark.parametrize("name", ["albert"])
def test_gradient_checkpointing_is_refused_where_the_library_lacks_it(
    name: str, flags: list[object], train_here: Train
) -> None:
    run = train_here(*flags, "--gradient_checkpointing")
    assert (run.code, run.run_dir.exists()) == (2, False)
    assert run.stderr.endswith("--gradient_checkpointing does not work with Albert models: leave it out\n")
