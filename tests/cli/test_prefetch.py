"""`sst2 prefetch`: what it fetches is what the run then finds."""

import subprocess
import sys
from pathlib import Path

import pytest

from sst2.cli.prefetch import main
from sst2.config.arguments import read_settings


def test_it_takes_the_flags_of_a_run_and_leaves_token_ids(
    small_job: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    run = tmp_path / "run"
    run.mkdir()
    (run / "something").write_text("a run may be there already: nothing is written to it")
    settings = read_settings([*map(str, small_job), "--output_dir", str(run)], "sst2 prefetch", "")
    for _ in range(2):
        main(settings)
    said = capsys.readouterr().out
    assert said.count("train: 300 sentences, ") == 2
    assert "validation: 70 sentences, " in said
    assert len([*(tmp_path / "cache" / "sst2-tokenized").glob("*.tokens")]) == 2
    assert [path.name for path in run.iterdir()] == ["something"]


def test_a_mistake_is_one_line_under_its_own_name() -> None:
    command = [sys.executable, "-m", "sst2.prefetch", "--model_name", "x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("sst2 prefetch: error: --model_name is not a flag, here it is --model_name_or_path;")
