"""From what was measured to the whole run: each part counts as often as the run has it; what does not fit is said."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from sst2.config.settings import Settings
from sst2.training.dry_run import memory
from sst2.training.dry_run.estimate import Estimate, seconds_by_part
from sst2.training.dry_run.memory import RankMemory, cgroup_limit_mib, peaks_of_nodes
from sst2.training.dry_run.rehearsal import Measured
from sst2.training.dry_run.workload import PlannedStep, Workload

GIB = 1024
STEPS = [PlannedStep(number, 32, 400, 400, 448, 9) for number in range(100)]
WORKLOAD = Workload(
    first=0,
    total=100,
    sentences=3200,
    tokens=40_000,
    steps=STEPS,
    shapes=4,
    evaluated=[50, 100],
    saved=[25, 50, 75, 100],
)
MEASURED = Measured(
    start_up=10,
    steps=[(448, 0.5)],
    first_step=2,
    new_shape=0.1,
    log=0.01,
    first_evaluation=5,
    evaluation=4,
    evaluated_share=0.5,
    left_out_at_end=0.25,
    first_pause=1,
    pause=0.2,
    beside_checkpoint=0.1,
    write=3,
    end=20,
    checkpoint_bytes=1000,
    model_bytes=300,
    ranks=[
        RankMemory(rank, rank // 2, "host", 2 * GIB, (1 - rank % 2) * GIB / 2, 60 * GIB, 70 * GIB, 80 * GIB)
        for rank in range(4)
    ],
)


def settings(*, step_timeout: float = 300.0) -> Settings:
    return Settings(output_dir="/nonexistent/run", logging_steps=30, global_batch_size=32, step_timeout=step_timeout)


def estimate_of(measured: Measured, **others: object) -> Estimate:
    values: dict[str, object] = {"processes": 4, "nodes": 2, "on_gpu": True, "host_mib": 3 * GIB}
    values |= {"free_bytes": 10_000, "there_bytes": 0, "run_bytes": 4300} | others
    seconds = seconds_by_part(settings(), WORKLOAD, measured)
    return Estimate(workload=WORKLOAD, measured=measured, seconds=seconds, **values)  # type: ignore[arg-type]


def test_each_part_counts_as_often_as_the_run_has_it() -> None:
    assert seconds_by_part(settings(), WORKLOAD, MEASURED) == {
        "start_up": 10,
        "steps": pytest.approx(100 * 0.5 + 2 + 3 * 0.1),
        "logging": pytest.approx(4 * 0.01),  # after 30, 60, 90 and 100 steps
        "evaluations": 2 * 8 + 1,  # half of the split was measured; the first one imports
        "checkpoints": pytest.approx(4 * 0.3 + 1),
        "end": 20 + 0.25 * 4,
    }


def test_a_checkpoint_that_is_not_written_in_time_is_waited_for() -> None:
    slow = seconds_by_part(settings(), WORKLOAD, replace(MEASURED, write=20))  # there are 13 s between two of them
    assert slow["checkpoints"] == pytest.approx(4 * (0.3 + 20 - 52.3 / 4) + 1)


def test_hours_money_and_limits() -> None:
    estimate = estimate_of(MEASURED)
    total = estimate.total_seconds
    assert total == pytest.approx(10 + 52.3 + 0.04 + 17 + 2.2 + 21)
    assert estimate.gpu_hours == pytest.approx(total / 900)
    assert estimate.node_hours == pytest.approx(total / 1800)
    assert estimate.price(2.0) == pytest.approx(2 * total / 900)
    assert estimate_of(MEASURED, on_gpu=False).gpu_hours is None
    assert estimate_of(MEASURED, on_gpu=False).price(2.0) == pytest.approx(2 * total / 1800)
    assert (estimate.signal_seconds, estimate.limit_minutes, estimate.limit_gib) == (120, 6, 4)
    slow = estimate_of(replace(MEASURED, write=100))
    assert slow.signal_seconds == 300  # twice a step and a checkpoint, and a minute
    assert slow.limit_minutes * 60 >= 1.25 * slow.total_seconds + 360


def test_memory_of_a_node_is_that_of_its_processes_and_launcher() -> None:
    assert peaks_of_nodes(MEASURED.ranks) == {0: 4.5 * GIB, 1: 4.5 * GIB}


def write_limits(folder: Path, limits: dict[str, str]) -> Path:
    for name, limit in limits.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{limit}\n")
    return folder


@pytest.mark.parametrize(
    ("groups", "limits", "mib"),
    [
        ("0::/slice/job/step", {"slice/job/step/memory.max": "max", "slice/job/memory.max": str(3 << 30)}, 3072),
        ("0::/slice/job", {"slice/job/memory.max": str(3 << 30), "slice/memory.max": str(2 << 30)}, 2048),
        ("0::/unseen", {"memory.max": str(1 << 30)}, 1024),  # in a container that sees its own group as the root
        (
            "5:cpuset:/other\n9:hugetlb,memory:/slurm/job_7\n0::/",
            {"memory/slurm/job_7/memory.limit_in_bytes": str(5 << 30), "memory.max": "max", "other/memory.max": "1"},
            5120,
        ),
        ("0::/", {}, math.inf),
    ],
    ids=["above", "least", "container", "version 1", "none"],
)
def test_the_memory_limit_is_that_of_the_control_groups(
    groups: str, limits: dict[str, str], mib: float, tmp_path: Path
) -> None:
    (tmp_path / "cgroup").write_text(f"{groups}\n")
    root = write_limits(tmp_path / "fs", limits)
    assert cgroup_limit_mib(tmp_path / "cgroup", root) == mib
    assert cgroup_limit_mib(tmp_path / "no Linux", root) == math.inf


def test_what_the_node_has_is_no_more_than_this_process_is_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "cgroup_limit_mib", lambda: 512.0)
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "600")
    assert memory.host_limit_mib() == 512
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "400")
    assert memory.host_limit_mib() == 400


def test_a_file_stop_in_the_runs_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "STOP").touch()
    (danger,) = estimate_of(MEASURED).dangers(Settings(output_dir=str(tmp_path)))
    assert danger == f"--output_dir {tmp_path} has a file STOP, by which the run stops: remove it"


def test_what_would_not_fit_is_said() -> None:
    assert estimate_of(MEASURED).dangers(settings()) == []
    full = [replace(one, reserved_mib=75 * GIB) for one in MEASURED.ranks]
    cases = {
        "the GPU of rank 0 on host is nearly full (76800 of 81920 MiB)": estimate_of(replace(MEASURED, ranks=full)),
        "host memory is nearly full": estimate_of(MEASURED, host_mib=1e9),
        "has 2 MiB free and the run will write up to 3 there": estimate_of(
            MEASURED, free_bytes=2 << 20, there_bytes=7 << 20, run_bytes=10 << 20
        ),
        "a step takes up to 200 s of --step_timeout 300: give more": estimate_of(
            replace(MEASURED, steps=[(448, 200.0)])
        ),
    }
    for words, estimate in cases.items():
        (danger,) = estimate.dangers(settings())
        assert words in danger
