"""What tests share: running the real script, and small data and models to run it on."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parent.parent
SCRIPT = REPOSITORY / "train_sst2.py"

# A launcher of the test session, or a cache setting of the developer, must not leak into the jobs under test.
FOREIGN = ("ACCELERATE_", "HF_", "SLURM_", "TRANSFORMERS_", "OMP_")


@dataclass
class Finished:
    """A job that has ended."""

    code: int
    stdout: str
    stderr: str
    run_dir: Path

    @property
    def metrics(self) -> dict[str, Any]:
        return json.loads((self.run_dir / "metrics.json").read_text())

    def logged(self, split: str) -> list[dict[str, Any]]:
        lines = (self.run_dir / "metrics.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["split"] == split]


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home for the Hugging Face caches of the whole session."""
    return tmp_path_factory.mktemp("hf_home")


@pytest.fixture
def environment(caches: Path) -> dict[str, str]:
    """The variables that a job starts with: no network, caches of the session."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return kept | {"HF_HOME": str(caches), "HF_HUB_OFFLINE": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0"}


@pytest.fixture
def train(tmp_path: Path, environment: dict[str, str]) -> Callable[..., Finished]:
    """Run `train_sst2.py` with the given flags in a folder of its own; `launcher` goes before the script's name."""

    def run(
        *flags: object, run_dir: Path | None = None, launcher: Sequence[str] = (sys.executable,), **variables: str
    ) -> Finished:
        run_dir = run_dir or tmp_path / "run"
        command = [*launcher, str(SCRIPT), *map(str, flags), "--output_dir", str(run_dir)]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment | variables, capture_output=True, text=True, check=False
        )
        return Finished(done.returncode, done.stdout, done.stderr, run_dir)

    return run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DistilBERT encoder with random weights, and its tokenizer, as `save_pretrained` leaves them."""
    import torch
    from sst2.sample import sample_config, sample_tokenizer
    from transformers import DistilBertModel

    folder = tmp_path_factory.mktemp("model") / "tiny-distilbert"
    tokenizer = sample_tokenizer()
    torch.manual_seed(0)
    DistilBertModel(sample_config(len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tsv_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A few hundred sentences of the sample as GLUE writes them: train.tsv and dev.tsv."""
    from sst2.sample import sample_sentences

    folder = tmp_path_factory.mktemp("data")
    for split, name, size in (("train", "train.tsv", 300), ("validation", "dev.tsv", 70)):
        sentences, labels = sample_sentences(split)
        rows = [f"{s}\t{label}\n" for s, label in zip(sentences[:size], labels[:size], strict=True)]
        (folder / name).write_text("sentence\tlabel\n" + "".join(rows))
    return folder / "train.tsv", folder / "dev.tsv"
