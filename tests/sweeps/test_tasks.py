"""Tasks of a sweep whose run is in use or cannot be known, start after start: by programs in place of SLURM's."""

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.running import REPOSITORY

pytestmark = pytest.mark.slow

SCONTROL = """#!/usr/bin/env bash
case "$*" in
    *" job "*) echo "JobId=7 ArrayJobId=5 ArrayTaskId=3 Restarts=$RESTARTS JobState=RUNNING StdOut=$PWD/out" ;;
    *" hostnames "*) echo n1 ;;
    *" node "*) echo "NodeName=n1 NodeAddr=127.0.0.1" ;;
    requeue*) echo "requeued $2" ;;
esac
"""
SRUN = "#!/bin/sh\necho trained\nexit $TRAINED\n"
# Pauses are over at once, and are counted; unless they are to be real, that before the script is ended is.
SLEEP = '#!/bin/sh\necho "$1" >> pauses\n[ "$1" != "$REAL" ] || exec /bin/sleep "$1"\n'
# `answers` has an exit code for each call; with 0, the folder of the run and a flag are the answer.
PYTHON = """#!/usr/bin/env bash
code=$(head -n 1 answers)
sed -i 1d answers
echo "$*" >> asked
case $code in 0) printf '%s\\n' "$PWD/run" --smoke ;; 75) echo "$PWD/run" ;; esac
exit "$code"
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of the batch script of a task; the working folder is `tmp_path`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"scontrol": SCONTROL, "srun": SRUN, "sleep": SLEEP, "my-python": PYTHON}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (tmp_path / "run").mkdir()
    variables = {"PATH": f"{folder}:{os.environ['PATH']}", "SST2_PYTHON": str(folder / "my-python")}
    variables |= {"SST2_PROJECT": str(REPOSITORY), "SST2_SWEEP": "sweep/trials", "TRAINED": "0", "REAL": "no"}
    return os.environ | variables | {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_NNODES": "1"}


@contextmanager
def task(
    environment: dict[str, str], tmp_path: Path, answers: list[int], restarts: int = 0
) -> Iterator[subprocess.Popen[bytes]]:
    """A start of the task, which appends to `out`, and to `errors` as with `sbatch --error`."""
    (tmp_path / "answers").write_text("".join(f"{code}\n" for code in answers))
    for name in ("asked", "pauses"):
        (tmp_path / name).write_text("")
    with (tmp_path / "out").open("a") as out, (tmp_path / "errors").open("a") as errors:
        script = ["bash", str(REPOSITORY / "slurm" / "train.sh")]
        variables = environment | {"RESTARTS": str(restarts), "SLURM_JOB_NAME": "sweep-trials-1"}
        process = subprocess.Popen(script, stdout=out, stderr=errors, env=variables, cwd=tmp_path)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def ended(environment: dict[str, str], tmp_path: Path, answers: list[int], restarts: int = 0) -> tuple[int, list[str]]:
    """Start the task, and wait for the end. Returns its exit code, and what this start has said on stdout."""
    (tmp_path / "out").touch()
    before = len((tmp_path / "out").read_text())
    with task(environment, tmp_path, answers, restarts) as process:
        code = process.wait(60)
    return code, (tmp_path / "out").read_text()[before:].splitlines()


@contextmanager
def in_use(tmp_path: Path) -> Iterator[None]:
    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_a_run_in_use_is_waited_for_within_the_start(environment: dict[str, str], tmp_path: Path) -> None:
    code, said = ended(environment, tmp_path, [75, 75, 0])
    assert code == 0
    waiting = f"{tmp_path}/run is in use by another process: waiting 15 minutes at most for its end"
    assert said[1] == f"slurm/train.sh: {waiting}"
    assert said[-1] == "trained"
    assert not any("requeue" in line for line in said)
    assert (tmp_path / "pauses").read_text().split() == ["10", "10"]
    assert (tmp_path / "asked").read_text() == "-m sst2.sweep sweep/trials --start 3\n" * 3


def test_a_run_that_stays_in_use_is_looked_at_again_by_the_next_start(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with in_use(tmp_path):
        code, said = ended(environment, tmp_path, [75])
        assert (code, said[2:]) == (
            75,
            [f"slurm/train.sh: {tmp_path}/run is in use by another process: requeueing", "requeued 5_3"],
        )
        assert (tmp_path / "pauses").read_text().split() == ["10"] * 90 + ["60"]  # the last one while SLURM ends it
        assert len((tmp_path / "asked").read_text().splitlines()) == 1  # the lock alone is looked at
        code, _ = ended(environment | {"SST2_REQUEUES": "4"}, tmp_path, [75], restarts=4)
    assert code == 1
    assert (tmp_path / "errors").read_text().splitlines()[-1] == (
        f"slurm/train.sh: error: requeued 4 times (SST2_REQUEUES), and now {tmp_path}/run is in use by another "
        "process: stopping for good; when that has ended, the command of the sweep goes on"
    )
    assert not (tmp_path / "run.exit").exists()  # it has not failed


def test_a_signal_ends_the_waiting_for_a_run_in_use(environment: dict[str, str], tmp_path: Path) -> None:
    with in_use(tmp_path), task(environment | {"REAL": "10"}, tmp_path, [75]) as process:
        deadline = time.monotonic() + 60
        while (tmp_path / "pauses").read_text() != "10\n":
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(60) == 75
    assert (tmp_path / "pauses").read_text().split() == ["10", "60"]
    assert (tmp_path / "out").read_text().splitlines()[-2:] == [
        "slurm/train.sh: stopped on request: requeueing",
        "requeued 5_3",
    ]


def test_a_run_that_was_begun_by_another_process_meanwhile_has_not_failed(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with in_use(tmp_path):
        code, said = ended(environment | {"TRAINED": "2"}, tmp_path, [0])
    assert (code, said[-2:]) == (
        75,
        [f"slurm/train.sh: {tmp_path}/run is in use by another process: requeueing", "requeued 5_3"],
    )
    assert not (tmp_path / "run.exit").exists()
    assert ended(environment | {"TRAINED": "2"}, tmp_path, [0])[0] == 2
    assert (tmp_path / "run.exit").read_text() == "2\n"
    (tmp_path / "run" / ".lock").unlink()
    assert ended(environment | {"TRAINED": "2"}, tmp_path, [0])[0] == 2
    assert not (tmp_path / "run" / ".lock").exists()


def test_five_starts_in_a_row_that_do_not_know_their_run_are_enough(
    environment: dict[str, str], tmp_path: Path
) -> None:
    def codes_of(*answers: int) -> list[int]:
        return [ended(environment, tmp_path, [code], restarts=number)[0] for number, code in enumerate(answers)]

    assert codes_of(127, 127, 127, 0, 127, 127) == [75, 75, 75, 0, 75, 75]  # the one that trained was preempted, say
    with in_use(tmp_path):
        assert codes_of(75) == [75]
    assert codes_of(127, 127, 127, 127, 127) == [75, 75, 75, 75, 127]
    said = (tmp_path / "out").read_text()
    assert said.count("slurm/train.sh: sst2 sweep did not say which run task 3 is: exit code 127") == 10
    assert said.count("slurm/train.sh: not started: requeueing\nrequeued 5_3") == 9
    assert ended(environment, tmp_path, [2])[0] == 2  # a mistake, at once
