"""A sweep on one machine, as its user sees it: Ctrl-C stops it with a checkpoint, and the same command goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.jobs import SLOW_STEPS

pytestmark = pytest.mark.slow

PLAN = """
final_seeds: 2
fixed: {smoke: true, max_train_steps: 8, logging_steps: 1, global_batch_size: 32, per_device_eval_batch_size: 64}
baseline: {learning_rate: 1e-4}
space: {learning_rate: [2e-3, 3e-3]}
"""


def sweep(folder: Path, *words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "sst2.sweep", "space.yaml", "--output_dir", "sweep", *words]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # as a terminal has it, whose Ctrl-C goes to all of them
    )


def logged(run: Path) -> list[int]:
    if not (run / "metrics.jsonl").exists():
        return []
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if line["split"] == "train"]


def test_ctrl_c_and_the_same_command_again(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(PLAN)
    brake = tmp_path / "brake"
    (tmp_path / "sitecustomize.py").write_text(SLOW_STEPS.format(file=str(brake), quick=0))
    trials = tmp_path / "sweep" / "trials"
    process = sweep(tmp_path)
    deadline = time.monotonic() + 300
    while not (trials / "001" / "metrics.jsonl").exists():
        if (trials / "000" / "metrics.json").exists():
            brake.touch()
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert errors.splitlines()[-1] == "sst2 sweep: stopped by SIGINT: the same command goes on"
    assert "Traceback" not in errors
    assert "trials 2 of 2, sweep/trials/001: learning_rate 0.003" in said
    assert not (trials / "001" / "metrics.json").exists()
    assert [*(trials / "001" / "checkpoints").glob("step-*")]
    assert not [*(tmp_path / "sweep" / "finals").iterdir()]
    first = (trials / "000" / "metrics.json").stat().st_mtime_ns

    brake.unlink(missing_ok=True)
    said, errors = sweep(tmp_path).communicate(timeout=400)
    assert "trials 1 of 2" not in said
    assert (trials / "000" / "metrics.json").stat().st_mtime_ns == first
    assert "resuming from" in (trials / "001" / "train.log").read_text()
    assert logged(trials / "001") == [*range(1, 9)]  # each step once
    results = (tmp_path / "sweep" / "results.md").read_text()
    assert said.endswith(results + "\n") or said.endswith(results)
    assert "2 of 2 trials have finished." in results
    finals = (tmp_path / "sweep" / "finals.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in finals] == ["runs", "2 of 2", "2 of 2"]

    again = sweep(tmp_path)  # nothing is left to do
    said, errors = again.communicate(timeout=120)
    assert (again.returncode, errors) == (0, "")
    assert said.strip() == results.strip()


def test_a_second_driver_is_refused_and_what_a_killed_one_leaves_behind_is_waited_for(tmp_path: Path) -> None:
    plan = "final_seeds: 0\nfixed: {smoke: true, max_train_steps: 90, logging_steps: 1, global_batch_size: 32}\n"
    (tmp_path / "space.yaml").write_text(f"{plan}space: {{learning_rate: [2e-3]}}\n")
    brake, trial = tmp_path / "brake", tmp_path / "sweep" / "trials" / "000"
    brake.touch()
    (tmp_path / "sitecustomize.py").write_text(SLOW_STEPS.format(file=str(brake), quick=0))
    first = sweep(tmp_path)
    deadline = time.monotonic() + 120
    while not logged(trial):
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = sweep(tmp_path)
    said, errors = second.communicate(timeout=60)
    assert (second.returncode, said, errors.count("\n")) == (2, "", 1)
    assert "error: sweep is being run by another process already: wait for that" in errors
    first.kill()  # alone: its trial goes on
    first.wait()
    third = sweep(tmp_path)
    assert third.stdout is not None
    assert third.stdout.readline() == (
        "sst2 sweep: sweep/trials/000 is in use by another process: waiting for its end\n"
    )
    brake.unlink()
    said, errors = third.communicate(timeout=120)
    assert (third.returncode, errors) == (0, "")
    assert "1 of 1 trials have finished." in said
    assert "trials 1 of 1" not in said  # it was not started again
    assert logged(trial) == [*range(1, 91)]
    assert not trial.with_name("000.exit").exists()


def test_a_trial_that_fails_is_told_and_does_not_end_the_sweep(tmp_path: Path, tiny_model: Path) -> None:
    for name, label in (("bad", "maybe"), ("good", "0")):
        rows = ["sentence,label", *(f"film {number},{number % 2}" for number in range(40)), f"another,{label}"]
        (tmp_path / f"{name}.csv").write_text("\n".join(rows))
    fixed = f"model_name_or_path: {tiny_model}, label_names: ['0', '1'], validation_file: good.csv, max_train_steps: 1"
    plan = f"final_seeds: 0\nfixed: {{{fixed}}}\nspace: {{train_file: [bad.csv, good.csv]}}\n"
    (tmp_path / "space.yaml").write_text(plan)
    process = sweep(tmp_path, "--", "--cpu")
    said, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert errors.count("train_sst2.py: error: bad.csv") == 1
    assert "sst2 sweep: sweep/trials/000 has failed with exit code 2, as its last line says: going on" in said
    rows = (tmp_path / "sweep" / "trials.csv").read_text().splitlines()
    assert [row.split(",")[-1] for row in rows] == ["status", "failed with exit code 2", "finished"]
    launched = json.loads((tmp_path / "sweep" / "trials" / "001" / "environment.json").read_text())
    assert "accelerate" in str(launched)
