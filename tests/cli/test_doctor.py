"""The doctor's table says what is there, alone and on several processes, and ends in failure where a run would."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sst2.distributed.doctor.machine import Check, verdict
from sst2.utils.console import table
from tests.support.jobs import TWO_PROCESSES

pytestmark = pytest.mark.slow


def examine(
    *flags: object, launcher: tuple[str, ...] = (sys.executable,), **variables: str
) -> subprocess.CompletedProcess[str]:
    command = [*launcher, "-m", "sst2.doctor", *map(str, flags)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"} | variables
    )


def test_alone(tmp_path: Path) -> None:
    done = examine("--folder", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    lines = {line[6:].split("  ")[0]: line for line in done.stdout.splitlines()}
    for what in (
        "python",
        "torch",
        "deepspeed",
        "processes",
        "device",
        "--mixed_precision auto",
        "threads",
        "fsync of folders",
        "mode bits",
        "locks",
    ):
        assert lines[what].startswith(("ok", "note")), done.stdout
    assert "1 on 1 host (no)" in lines["processes"]
    assert "HF_HUB_OFFLINE is set; model not cached, data not cached" in lines["hub"]
    assert "load once where there is a network" in lines["hub"]
    assert "ms for 8 MiB" in lines["rename and fsync"]
    assert done.stdout.splitlines()[-1].startswith("verdict: a run will work here")
    assert list(tmp_path.iterdir()) == []  # it cleans up, and makes no folder


def test_on_two_processes(tmp_path: Path) -> None:
    done = examine("--folder", tmp_path, launcher=TWO_PROCESSES)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("processes  ") == 1
    assert "2 on 1 host (multi_cpu)" in done.stdout
    assert "GB/s; " in done.stdout


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root mounts file systems")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)], check=True)
    try:
        done = examine("--folder", disk / "runs")
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=False)
    assert done.returncode == 2
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("BAD")]
    assert "free space" in line
    assert "a run of DistilBERT-base needs about 3.0 GiB" in line


@pytest.mark.parametrize(
    ("flags", "variables", "line"),
    [
        ([], {"RANK": "foo", "WORLD_SIZE": "2"}, "RANK is foo, which is no number: unset it"),
        (["--connect_timeout", "-1"], {}, "--connect_timeout -1.0 cannot work: give seconds above 0"),
        (["--connect_timeout", "soon"], {}, "argument --connect_timeout: invalid float value: 'soon'"),
    ],
)
def test_a_mistake_is_one_line(flags: list[str], variables: dict[str, str], line: str) -> None:
    done = examine(*flags, launcher=(sys.executable,), **variables)
    assert done.returncode == 2
    assert done.stderr.startswith(f"sst2 doctor: error: {line}")
    assert done.stderr.count("\n") == 1


def test_the_verdict_says_what_to_do() -> None:
    fast = Check("--mixed_precision auto", "bf16", gain="the CPU is 2.5 times as fast in bf16: --mixed_precision auto")
    note = Check("hub", "does not answer", "load once")
    assert verdict([fast, note]) == (
        "verdict: a run will work here; the CPU is 2.5 times as fast in bf16: --mixed_precision auto; look at the "
        "advice on hub"
    )
    bad = Check("free space", "1 GiB", "needs 3 GiB", is_fatal=True)
    assert verdict([fast, bad]).startswith("verdict: a run would fail here: fix free space first")


def test_columns_are_aligned() -> None:
    rows = [["", "what", "found", "advice"], ["ok", "a", "b", ""], ["BAD", "long name", "[x]", "do this"]]
    assert table(rows).splitlines() == [
        "     what       found  advice",
        "ok   a          b",
        "BAD  long name  [x]    do this",
    ]
