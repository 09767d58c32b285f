"""A run does not import before its first step what it needs after it; the benchmark of that time finds every part."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.startup import PARTS, by_part, covered, run_python
from tests.support.running import REPOSITORY

NOT_BEFORE_THE_FIRST_STEP = {"evaluate", "matplotlib", "scipy.stats", "sklearn", "transformers.pipelines"}


def test_the_script_imports_nothing_that_the_first_step_does_not_need() -> None:
    code = "import json, sys, train_sst2; print(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    imported = set(json.loads(done.stdout.splitlines()[-1]))
    assert "torch" in imported
    assert imported & NOT_BEFORE_THE_FIRST_STEP == set()


def test_seconds_that_two_parts_share_count_once_in_the_sum() -> None:
    assert covered([(1.0, 3.0), (2.0, 4.0), (2.5, 3.5), (6.0, 7.0)]) == 4.0
    assert covered([]) == 0.0
    spans = [("init distributed", 2.0, 3.0), ("model", 3.0, 7.0), ("token ids", 4.0, 8.0), ("run folder", 20.0, 21.0)]
    seconds = by_part(spans, started=0.0, began=0.5, imported=2.0, stepped=9.0, first=11.0, second=12.0)
    assert (seconds["model"], seconds["token ids"], seconds["overlap"]) == (4.0, 4.0, 3.0)
    assert seconds["rest of setup"] == 1.0
    assert seconds["run folder"] == 0.0  # it wrote after the first step had begun
    assert (seconds["first step"], seconds["second step"]) == (2.0, 1.0)
    assert (seconds["to first step"], seconds["to second step"]) == (11.0, 12.0)


def test_every_part_of_a_start_is_found(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    started = time.monotonic()
    run_python("import startup; startup.work()", started, report, "--smoke", "--output_dir", tmp_path / "run")
    seconds = json.loads(report.read_text())
    assert {part for part in PARTS if seconds[part] == 0} == set()
    totals = {name: seconds.pop(name) for name in ("to first step", "to second step", "overlap")}
    assert sum(seconds.values()) - totals["overlap"] == pytest.approx(totals["to second step"])
    assert 0 < totals["to first step"] < totals["to second step"] < time.monotonic() - started
