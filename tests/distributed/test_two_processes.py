"""Two real processes over gloo do the work of one: the same sentences, rates and losses, all counted once."""

import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.ranks import train_ranks
from tests.support.running import Finished

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
LAUNCHERS = {
    "torchrun": [BIN / "torchrun", "--standalone", "--nproc_per_node", "2"],
    "accelerate": [BIN / "accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_train_like_one(
    launcher: str, train: Callable[..., Finished], small_job: list[Any], tmp_path: Path
) -> None:
    # 71 sentences a step, which two processes cannot share evenly, and a last step of 16 in every epoch.
    flags = [*small_job, "--dropout", 0, "--global_batch_size", 71, "--per_device_train_batch_size", 20]
    flags += ["--log_sample_ids", "--per_device_eval_batch_size", 16]
    one = train_ranks(flags, tmp_path / "one")
    two = train(*flags, run_dir=tmp_path / "two", launcher=list(map(str, LAUNCHERS[launcher])))
    assert two.code == 0, two.stderr
    assert json.loads((two.run_dir / "environment.json").read_text())["world_size"] == 2
    assert (one.run_dir / "samples.jsonl").read_text() == (two.run_dir / "samples.jsonl").read_text()
    for mine, theirs in zip(one.logged("train"), two.logged("train"), strict=True):
        assert mine["learning_rate"] == theirs["learning_rate"]
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
    assert two.metrics["count"] == 70
    assert two.metrics["loss"] == pytest.approx(one.metrics["loss"], rel=1e-3)


def test_both_stop_where_one_sees_that_others_were_better(small_job: list[Any], tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / "runs" / str(number)).mkdir(parents=True)
        line = {"split": "validation", "step": 4, "accuracy": 1.0}
        (tmp_path / "runs" / str(number) / "metrics.jsonl").write_text(json.dumps(line))
    flags = [*small_job, "--eval_steps", 4, "--stop_below_median", tmp_path / "runs"]
    run = train_ranks(flags, tmp_path / "runs" / "own", processes=2)
    assert run.code == 0, run.stderr
    assert (run.metrics["step"], run.metrics["stopped"]) == (4, "worse than the median of other runs")


def test_one_line_for_a_mistake_that_all_processes_see(
    train: Callable[..., Finished], small_job: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "bad.tsv").write_text("sentence\tlabel\ngood\tmaybe\n")
    launcher = list(map(str, LAUNCHERS["torchrun"]))
    finished = train(*small_job, "--train_file", tmp_path / "bad.tsv", launcher=launcher)
    assert finished.code != 0
    assert finished.stderr.count("train_sst2.py: error: ") == 1
    assert not finished.run_dir.exists()


ANOTHER_CACHE = """
import os

if os.environ.get("RANK") == "1":
    import sst2.utils.errors

    sst2.utils.errors.SECONDS_FOR_OTHERS = 1.0
    os.environ["HF_DATASETS_CACHE"] = "/dev/null/cache"
"""


def test_a_mistake_that_one_process_sees_it_says_itself(
    train: Callable[..., Finished], small_job: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(ANOTHER_CACHE)
    launcher = [sys.executable, "-m", "sst2.launch", *map(str, LAUNCHERS["accelerate"][2:])]
    finished = train(*small_job, launcher=launcher, PYTHONPATH=str(tmp_path))
    assert finished.code == 2, finished.stderr
    said = f"train_sst2.py: error: rank 1 on {socket.gethostname()}: token ids cannot be written to /dev/null/cache"
    assert finished.stderr.count(said) == 1, finished.stderr
    assert not finished.run_dir.exists()
