"""A run that is asked to stop saves, says so with exit code 75, and becomes the run that nobody has interrupted."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from sst2.checkpoints.folders import newest_checkpoint
from sst2.utils.checksums import verify_folder
from tests.support.jobs import ONE_PROCESS, TWO_PROCESSES, Job, results, running
from tests.support.ranks import ranks_of, run_to_the_end

pytestmark = pytest.mark.slow

ACCELERATE = str(Path(sys.executable).with_name("accelerate"))
LAUNCHERS: dict[str, tuple[tuple[str, ...] | None, list[signal.Signals]]] = {
    "script": (None, [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2]),
    "one process": (ONE_PROCESS, [signal.SIGTERM, signal.SIGUSR1]),
    "two processes": (TWO_PROCESSES, [signal.SIGTERM, signal.SIGUSR1]),
}


def saved_state(job: Job) -> dict[str, Any]:
    """How far the run is by its newest checkpoint, which must be whole."""
    newest = newest_checkpoint(job.run_dir / "checkpoints")
    assert newest is not None
    verify_folder(newest)
    state: dict[str, Any] = json.loads((newest / "state.json").read_text())["training_state"]
    return state


@pytest.mark.parametrize("name", LAUNCHERS)
def test_signals_stop_a_run_which_goes_on_bit_for_bit(
    name: str, long_job: list[object], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    launcher, signals = LAUNCHERS[name]
    run_dir = tmp_path / "run"
    for number, wish in enumerate(signals, start=1):
        with running([*long_job, "--resume_from_checkpoint", "auto"], run_dir, launcher) as job:
            job.wait_for_step(22 * number)  # within an epoch of ten steps, each time in another
            job.process.send_signal(wish)
            finished = job.wait()
            assert finished.code == 75, finished.stderr
            assert not job.processes()
        place = newest_checkpoint(run_dir / "checkpoints")
        expected = f"train_sst2.py: stopped by {wish.name}: --resume_from_checkpoint auto goes on from {place}"
        assert [line for line in finished.stderr.splitlines() if "stopped by" in line] == [expected]
        assert "Traceback" not in finished.stderr
        assert 22 * number <= saved_state(job)["step"] < 22 * number + 30
    fixture, processes = ("undisturbed_on_two", 2) if name == "two processes" else ("undisturbed", 1)
    assert run_to_the_end(long_job, run_dir, processes=processes) == request.getfixturevalue(fixture)


@pytest.mark.parametrize(
    ("processes", "wish"), [(1, signal.SIGTERM), (2, signal.SIGUSR1), (2, signal.SIGTERM), (2, signal.SIGHUP)]
)
def test_processes_of_accelerate_launch_outlive_it_only_to_save(
    processes: int, wish: signal.Signals, long_job: list[object], tmp_path: Path
) -> None:
    several = ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"] if processes == 2 else []
    with running(long_job, tmp_path / "run", [ACCELERATE, "launch", *several]) as job:
        job.wait_for_step(23)
        assert len(job.ranks()) == processes
        job.process.send_signal(wish)
        assert job.wait().code not in (0, 75)  # its own fault; the processes do what they can
        assert not job.processes()
    is_passed_on = processes == 2 and wish in (signal.SIGTERM, signal.SIGHUP)
    reason = wish.name if is_passed_on else "the end of its launcher"
    assert f"stopped by {reason}: " in job.said
    assert saved_state(job)["step"] >= 23


def test_files_ask_for_a_checkpoint_and_for_a_stop(
    long_job: list[object], undisturbed_on_two: dict[str, Any], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    with running([*long_job, "--checkpointing_steps", 1000], run_dir, ranks=ranks_of(processes=2)) as job:
        job.wait_for_step(3)
        (run_dir / "SAVE").touch()
        job.wait_for(lambda: job.checkpoints)
        saved = saved_state(job)["step"]
        job.wait_for_step(saved + 2)  # it has gone on
        (run_dir / "STOP").touch()
        assert job.wait().code == 75
    assert "stopped by the file STOP: " in job.said
    assert saved_state(job)["step"] > saved
    assert not (run_dir / "SAVE").exists()
    assert not (run_dir / "STOP").exists()
    assert run_to_the_end(long_job, run_dir, processes=2) == undisturbed_on_two


def test_an_evaluation_is_left_at_once_and_made_up_for(long_job: list[object], tmp_path: Path) -> None:
    flags = [*long_job, "--eval_steps", 1, "--per_device_eval_batch_size", 1, "--max_train_steps", 30]
    flags += ["--checkpointing_steps", 1000]
    run_dir = tmp_path / "run"
    step = amid_an_evaluation = 0
    for number in range(4):
        with running([*flags, "--resume_from_checkpoint", "auto"], run_dir) as job:
            job.wait_for_step(step + 2)  # which is logged right before its evaluation
            if number == 1:
                (run_dir / "SAVE").touch()  # seen within a second, so most likely in an evaluation as well
                job.wait_for(lambda: not (run_dir / "SAVE").exists())
            job.process.terminate()
            assert job.wait().code == 75
        state = saved_state(job)
        step = state["step"]
        amid_an_evaluation += state["evaluated_step"] < step
    assert amid_an_evaluation >= 2
    assert run_to_the_end(flags, run_dir) == run_to_the_end(flags, tmp_path / "undisturbed")


def test_the_last_evaluation_is_repeated_with_the_best_model(
    long_job: list[object], tsv_files: tuple[Path, Path], tmp_path: Path
) -> None:
    # Many sentences, one at a time, so that the last evaluation takes a second or more.
    flags = [*long_job, "--validation_file", tsv_files[0], "--per_device_eval_batch_size", 1, "--max_train_steps", 20]
    # A model that does not change, so that the first evaluation is not beaten, and the last one has to be repeated.
    flags += ["--eval_steps", 10, "--load_best_model_at_end", "--learning_rate", 1e-30]
    run_dir = tmp_path / "run"
    with running(flags, run_dir) as job:
        job.wait_for(lambda: "step 20: accuracy" in job.said and "step-00000020: " in job.said)
        job.process.terminate()
        finished = job.wait()
    assert finished.code == 75, finished.stderr
    assert not (run_dir / "metrics.json").exists()
    assert saved_state(job)["step"] == 20
    assert saved_state(job)["best_step"] == 10
    assert run_to_the_end(flags, run_dir) == run_to_the_end(flags, tmp_path / "undisturbed")
    # A run that is over may be started again, and says the same.
    assert run_to_the_end(flags, run_dir) == results(tmp_path / "undisturbed")


def test_a_second_interrupt_stops_at_once(long_job: list[object], tmp_path: Path) -> None:
    with running([*long_job, "--checkpointing_steps", 1000], tmp_path / "run", TWO_PROCESSES) as job:
        job.wait_for_step(3)
        stuck, other = job.ranks()
        other.suspend()  # so that the first interrupt cannot be heeded
        job.process.send_signal(signal.SIGINT)
        job.wait_for(lambda: "SIGINT: stopping after this step" in job.said)
        os.kill(stuck.pid, signal.SIGINT)  # the same one, as a terminal may send it besides
        with pytest.raises(psutil.TimeoutExpired):
            stuck.wait(0.5)
        signalled = job.said
        while job.process.poll() is None and stuck.is_running() and stuck.status() != "zombie":
            job.process.send_signal(signal.SIGINT)
            try:
                stuck.wait(0.5)
            except psutil.TimeoutExpired:
                continue
        other.resume()
        assert job.wait().code == 130, signalled
    assert not job.checkpoints
