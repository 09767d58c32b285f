"""Variables that somebody else has left: a job alone is alone, and speaks; its gradients and threads are its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.support.running import Finished, without_times

Train = Callable[..., Finished]

LAUNCHER = """
import os, subprocess, sys
subprocess.run([sys.executable, "-c", sys.argv[1]], env=os.environ | {"OMP_NUM_THREADS": sys.argv[2]}, check=True)
"""
WORKER = "from sst2.config.launcher import threads_are_chosen; print(threads_are_chosen())"


@pytest.fixture
def undisturbed(train_here: Train, small_job: list[object]) -> list[dict[str, object]]:
    return [without_times(line) for line in train_here(*small_job, "--max_train_steps", 3).logged("train")]


@pytest.mark.parametrize(
    "variables",
    [
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
        {"LOCAL_RANK": "-1"},
        {"RANK": "8"},
        {"LOCAL_RANK": "3", "RANK": "8"},
        {"LOCAL_RANK": "3", "RANK": "3", "TORCHELASTIC_RUN_ID": "x"},
        {"ACCELERATE_MIXED_PRECISION": ""},
        {"RANK": "", "LOCAL_RANK": "", "WORLD_SIZE": "", "LOCAL_WORLD_SIZE": ""},
        {"LOCAL_RANK": "0", "WORLD_SIZE": "1", "RANK": "0", "LOCAL_WORLD_SIZE": "8"},
    ],
)
def test_what_somebody_else_has_left_changes_nothing(
    variables: dict[str, str],
    train_here: Train,
    small_job: list[object],
    undisturbed: list[dict[str, object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    run = train_here(*small_job, "--max_train_steps", 3, "--overwrite_output_dir")
    assert run.code == 0, run.stderr
    assert [without_times(line) for line in run.logged("train")] == undisturbed  # losses, norms of gradients and all
    assert json.loads((run.run_dir / "environment.json").read_text())["world_size"] == 1
    assert "3 steps of 32 sentences" in run.stderr


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"RANK": "8"}, "--nonsense is not a flag"),
        ({"LOCAL_RANK": "-1"}, "--nonsense is not a flag"),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "1"}, "--nonsense is not a flag"),
        ({"LOCAL_RANK": "-1", "WORLD_SIZE": "2", "RANK": "0"}, "--nonsense is not a flag"),
        ({"LOCAL_RANK": "x", "WORLD_SIZE": "2", "RANK": "0"}, "--nonsense is not a flag"),
    ],
)
def test_a_mistake_is_answered_whatever_is_left(
    variables: dict[str, str], line: str, train_here: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    run = train_here("--nonsense")
    assert run.code == 2
    assert line in run.stderr


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"WORLD_SIZE": "2", "RANK": "8"}, "RANK is 8, but there are 2 processes (WORLD_SIZE): unset both"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK is -1, but there are 2 processes"),
        ({"WORLD_SIZE": "2", "RANK": "first"}, "RANK is first, which is no number: unset it"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is many, which is no number"),
        ({"PMI_SIZE": "2"}, "PMI_SIZE is 2, and MPI does not tell its processes of each other"),
        (
            {"ACCELERATE_DYNAMO_MODE": "default", "MASTER_ADDR": "127.0.0.1"},  # of accelerate launch --cpu for two
            "the launcher promised several processes, but 1 works together: start them with torchrun, or with",
        ),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "ACCELERATE_USE_MEGATRON_LM asks for what"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "ACCELERATE_USE_PARALLELISM_CONFIG asks for what"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "the launcher asks for fp8"),
        (
            {"ACCELERATE_DYNAMO_BACKEND": "foo"},
            "'FOO' is not a valid DynamoBackend: correct or unset one of",
        ),
        ({"ACCELERATE_USE_CPU": "maybe"}, "invalid truth value maybe: correct or unset one of ACCELERATE_USE_CPU"),
    ],
)
def test_what_cannot_be_is_one_line(
    variables: dict[str, str], line: str, train_here: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    run = train_here("--smoke")
    assert run.code == 2
    assert line in run.stderr
    assert run.stderr.count("\n") == 1
    assert not run.run_dir.exists()


def test_an_exported_master_is_no_promise_of_the_launcher() -> None:
    # as a batch script exports it, for one process of accelerate launch as well
    variables = os.environ | {"MASTER_ADDR": "node1", "MASTER_PORT": "29500", "ACCELERATE_DYNAMO_MODE": "default"}
    child = "from sst2.config.launcher import forget_leftovers; forget_leftovers()"
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    subprocess.run([sys.executable, "-c", launcher], env=variables, check=True)


def test_looser_arithmetic_is_said_and_recorded(
    train_here: Train, small_job: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "strict")
    run = train_here(*small_job, "--max_train_steps", 1)
    assert "NVIDIA_TF32_OVERRIDE=1 is set: products of float32 numbers have fewer digits" in run.stderr
    recorded = json.loads((run.run_dir / "environment.json").read_text())["variables"]
    assert recorded["NVIDIA_TF32_OVERRIDE"] == "1"


@pytest.mark.parametrize(
    ("of_user", "in_worker", "flags", "is_chosen"),
    [
        (None, "1", [], False),  # what launchers set
        ("1", "1", [], True),
        (None, "4", [], False),  # the number of cores, as accelerate's does on a CPU
        ("4", "4", [], True),
        (None, "1", ["--num_cpu_threads_per_process=1"], True),
        (None, "1", ["--num-cpu-threads-per-process", "1"], True),
    ],
)
def test_the_users_threads_are_told_from_the_launchers(
    of_user: str | None, in_worker: str, flags: list[str], is_chosen: bool
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "1"}
    environment |= {"OMP_NUM_THREADS": of_user} if of_user else {}
    command = [sys.executable, "-c", LAUNCHER, WORKER, in_worker, *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(is_chosen)


@pytest.mark.slow
def test_one_thread_is_one_thread_under_a_launcher(train: Train, small_job: list[object]) -> None:
    launcher = [sys.executable, "-m", "sst2.launch", "--cpu", "--num_processes", "1"]
    run = train(*small_job, "--max_train_steps", 1, launcher=launcher, OMP_NUM_THREADS="1")
    assert run.code == 0, run.stderr
    environment = json.loads((run.run_dir / "environment.json").read_text())
    assert (environment["torch_threads"], environment["launcher"]) == (1, "accelerate launch")
