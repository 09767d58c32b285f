"""The script for a machine with a GPU runs to its end, in small, where there is none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.running import REPOSITORY

PARTS = ["card", "tests", "batch_32", "split_steps", "batch_1024", "host_time", "profile", "whole_job", "repeatability"]


@pytest.mark.slow
@pytest.mark.timeout(1300)  # two minutes on two idle cores
def test_every_part_of_the_script_runs_and_leaves_its_figures(tmp_path: Path) -> None:
    expected = [*PARTS, *(["accuracy"] if {"SST2_DATA_DIR", "SST2_MODEL_DIR"} <= set(os.environ) else [])]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [REPOSITORY / "benchmarks" / "on_a_gpu.sh", tmp_path / "out"],
        env=os.environ | {"PATH": path, "SMALL": "1", "SECONDS_IN_ALL": "1200"},
        capture_output=True,
        text=True,
        check=False,
    )
    log = (tmp_path / "out" / "log.txt").read_text()
    assert done.returncode == 0, log + done.stderr
    lines = [line.split() for line in (tmp_path / "out" / "summary.txt").read_text().splitlines()]
    assert [line[:2] for line in lines if len(line) == 3 and line[1].isdigit()] == [[name, "0"] for name in expected]
    files = [*(tmp_path / "out").iterdir()]
    assert len(files) <= 8
    figures = {file.stem: json.loads(file.read_text()) for file in files if file.suffix == ".json"}
    for name in ("batch32", "batch1024"):
        assert figures[name]["rounds"] == 2
        assert figures[name]["strongest_baseline_bf16"] in figures[name]
        assert "failed" not in figures[name]
    assert figures["repeatability"]["eager"]["resumed"]["same_hash"]
    assert figures["split_steps"]["split_over_two"]["relative_difference_of_losses"]["largest"] < 0.01
    seconds = figures["whole_job"]
    assert sum(seconds["seconds_by_part"].values()) == pytest.approx(seconds["seconds"])
    assert seconds["seconds_by_part"]["steps"] > 0
