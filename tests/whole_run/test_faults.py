"""What machines do to a job: afterwards it goes on from a whole checkpoint, and ends as if nothing had been."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sst2.checkpoints.folders import find_latest, list_checkpoints
from sst2.evaluation.run_results import find_run
from sst2.runs.run_folder import MARK
from tests.support.jobs import POOR_DISK, SLOW_DISK, TWO_PROCESSES, results, running
from tests.support.ranks import run_to_the_end
from tests.support.running import REPOSITORY, Finished

pytestmark = [pytest.mark.slow, pytest.mark.fault]

Train = Callable[..., Finished]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system in memory of its own."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts file systems")
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: str) -> Path:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
        return place

    yield mount
    subprocess.run(["umount", "--lazy", str(place)], check=False)


def fill(disk: Path) -> Path:
    """Use up all room, as another job on the same disk may do."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for block in (1 << 16, 1):
            while has_room_for(file, block):
                pass
    return filler


def has_room_for(file: IO[bytes], size: int) -> bool:
    try:
        return file.write(bytes(size)) == size
    except OSError:
        return False


def test_a_full_disk_keeps_the_last_good_checkpoint(
    long_job: list[object], undisturbed: dict[str, Any], small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    disk, run_dir = small_disk("40m"), tmp_path / "run"
    run_dir.symlink_to(disk)  # so that what the job says has room
    (tmp_path / "temporary").mkdir()
    with running(long_job, run_dir, ranks=[os.environ | {"TMPDIR": str(tmp_path / "temporary")}]) as job:
        job.wait_for(lambda: len(job.checkpoints) >= 2)
        filler = fill(disk)
        finished = job.wait()
    assert finished.code == 2, finished.stderr
    assert "No space left on device" in [line for line in finished.stderr.splitlines() if "error" in line][-1]
    assert "Traceback" not in finished.stderr
    good = find_latest(run_dir / "checkpoints")
    assert good is not None
    filler.unlink()
    assert run_to_the_end(long_job, run_dir) == undisturbed


def test_a_checkpoint_that_finds_no_room_is_named_with_the_last_good_one(
    long_job: list[object], undisturbed: dict[str, Any], small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    # Checkpoints lie on a disk of their own, so that nothing but them finds it full.
    disk, run_dir = small_disk("40m"), tmp_path / "run"
    with running(long_job, run_dir) as job:
        job.wait_for_step(3)
        job.process.terminate()
        assert job.wait().code == 75
    shutil.copytree(run_dir / "checkpoints", disk, dirs_exist_ok=True)
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "checkpoints").symlink_to(disk)
    (tmp_path / "temporary").mkdir()
    flags = [*long_job, "--resume_from_checkpoint", "auto"]
    with running(flags, run_dir, ranks=[os.environ | {"TMPDIR": str(tmp_path / "temporary")}]) as job:
        job.wait_for_step(12)
        filler = fill(disk)
        finished = job.wait()
    assert finished.code == 2, finished.stderr
    good = find_latest(run_dir / "checkpoints")
    errors = [line for line in finished.stderr.splitlines() if "error" in line]
    assert len(errors) == 1, finished.stderr
    assert "could not be written (" in errors[0]
    assert "No space left on device" in errors[0]
    assert f"the last good checkpoint is {good}" in errors[0]
    (rescued,) = (tmp_path / "temporary").glob("sst2-rescued-*/step-*")
    assert f"it is saved in {rescued} on " in errors[0]
    assert not list(disk.glob(".step-*"))  # what was begun is cleared away
    filler.unlink()
    assert run_to_the_end(long_job, run_dir) == undisturbed


def test_a_run_whose_folder_is_removed_goes_on_elsewhere(
    long_job: list[object], undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    run_dir, temporary = tmp_path / "run", tmp_path / "temporary"
    temporary.mkdir()
    with running(long_job, run_dir, ranks=[os.environ | {"TMPDIR": str(temporary)}]) as job:
        job.wait_for_step(23)
        run_dir.rename(tmp_path / "moved")  # at once, while the job writes into it
        finished = job.wait()
    assert finished.code == 2, finished.stderr
    assert "Traceback" not in finished.stderr
    assert not run_dir.exists()
    (place,) = temporary.glob("sst2-rescued-*/step-*")
    (said,) = [line for line in finished.stderr.splitlines() if ": error: " in line]
    assert f"could not be written ([Errno 2] No such file or directory: '{run_dir}')" in said
    assert f"it is saved in {place} on " in said
    for warning in ("metrics.jsonl cannot be written", "TensorBoard's file cannot be written"):
        assert finished.stderr.count(warning) == 1, finished.stderr
    with running([*long_job, "--resume_from_checkpoint", place], tmp_path / "another") as job:
        assert job.wait(300).code == 0, job.said
    assert results(tmp_path / "another")["weights"] == undisturbed["weights"]


def test_a_disk_without_room_for_the_checkpoints_is_refused_before_training(
    long_job: list[object], small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("3m")
    with running(long_job, disk / "run", HF_DATASETS_CACHE=str(disk.parent / "cache")) as job:
        finished = job.wait()
    assert finished.code == 2, finished.stderr
    assert "run has 3 MiB free and the run will write" in finished.stderr
    assert [path.name for path in disk.iterdir()] == ["run.output"]


def test_a_read_only_disk_is_refused_and_left_as_it_is(
    long_job: list[object], undisturbed: dict[str, Any], small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("40m")
    with running(long_job, disk / "run") as job:
        job.wait_for_step(23)
        job.process.send_signal(signal.SIGTERM)
        assert job.wait().code == 75
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    before = {path: path.stat().st_mtime_ns for path in disk.rglob("*")}
    command = [sys.executable, REPOSITORY / "train_sst2.py", *long_job, "--output_dir", disk / "run"]
    command += ["--resume_from_checkpoint", "auto"]
    refused = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert f"--output_dir {disk / 'run'} cannot be written (Read-only file system): name another" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert {path: path.stat().st_mtime_ns for path in disk.rglob("*")} == before
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert run_to_the_end(long_job, disk / "run") == undisturbed


def flip_a_byte(place: Path) -> str:
    file = place / "training.pt"
    content = bytearray(file.read_bytes())
    content[random.Random(0).randrange(len(content))] ^= 1
    file.write_bytes(content)
    return "training.pt has another SHA-256"


def truncate(place: Path) -> str:
    os.truncate(place / "model.safetensors", 1000)
    return "model.safetensors has 1000 bytes instead of"


def delete_the_manifest(place: Path) -> str:
    (place / "manifest.json").unlink()
    return "manifest.json is missing"


def test_damaged_checkpoints_are_named_and_the_one_before_is_taken(
    long_job: list[object], undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    flags = [*long_job, "--checkpoints_total_limit", 4]
    with running(flags, tmp_path / "run") as job:
        job.wait_for_step(33)
        assert find_run(tmp_path / "run").status == "running"
        job.process.send_signal(signal.SIGUSR1)
        assert job.wait().code == 75
    left = find_run(tmp_path / "run")  # as compare sees it
    assert (left.status, left.note[:18], left.total_steps) == ("stopped", "stopped by SIGUSR1", 120)
    assert left.step == int(list_checkpoints(tmp_path / "run" / "checkpoints")[-1].name.removeprefix("step-"))
    whole, *damaged = list_checkpoints(tmp_path / "run" / "checkpoints")
    ways = (flip_a_byte, truncate, delete_the_manifest)
    reasons = {place: damage(place) for place, damage in zip(damaged, ways, strict=True)}
    with running([*flags, "--resume_from_checkpoint", "auto"], tmp_path / "run") as job:
        finished = job.wait()
    for place, reason in reasons.items():
        assert f"passing over {place}: {reason}" in finished.stderr
    assert f"resuming from {whole}" in finished.stderr
    assert results(tmp_path / "run") == undisturbed


def test_a_clock_that_jumps_back(long_job: list[object], undisturbed: dict[str, Any], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    for days_ahead, step in ((3, 23), (5, 48), (4, 71)):
        with running([*long_job, "--resume_from_checkpoint", "auto"], run_dir) as job:
            job.wait_for_step(step)
            for process in job.processes():
                process.kill()
        date_ahead(run_dir, 86400 * days_ahead)
    assert run_to_the_end(long_job, run_dir) == undisturbed
    board = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in board.Scalars("train/loss")] == list(range(1, 121))


def date_ahead(run_dir: Path, seconds: int) -> None:
    """Date everything that is from now as a clock would that was ahead, and is not any more."""
    now = time.time()
    for path in [path for path in run_dir.rglob("*") if path.stat().st_mtime <= now]:
        os.utime(path, (now + seconds, now + seconds))
    for file in run_dir.glob("events.*"):
        *head, stamp, rest = file.name.split(".", 4)
        if int(stamp) <= now:
            file.rename(file.with_name(".".join([*head, str(int(stamp) + seconds), rest])))


def test_one_rank_of_two_is_killed(long_job: list[object], undisturbed_on_two: dict[str, Any], tmp_path: Path) -> None:
    for victim, step in ((0, 23), (1, 61)):
        with running([*long_job, "--resume_from_checkpoint", "auto"], tmp_path / "run", TWO_PROCESSES) as job:
            job.wait_for_step(step)
            job.ranks()[victim].kill()
            finished = job.wait(60)
            assert finished.code not in (0, 75)
            assert not job.processes()
        assert "Traceback" not in finished.stderr
    assert run_to_the_end(long_job, tmp_path / "run", processes=2) == undisturbed_on_two


def test_a_killed_rank_is_back_within_the_job(
    long_job: list[object], undisturbed_on_two: dict[str, Any], tmp_path: Path
) -> None:
    run_dir, launcher = tmp_path / "run", (*TWO_PROCESSES, "--max_restarts", "1")
    (run_dir / "checkpoints" / "step-00000999").mkdir(parents=True)  # of a run to overwrite, but once only
    (run_dir / "config.yaml").write_text(f"{MARK}\n")
    with running([*long_job, "--overwrite_output_dir"], run_dir, launcher) as job:
        job.wait_for_step(61)
        job.ranks()[0].kill()
        finished = job.wait()
    assert finished.code == 0, finished.stderr
    assert "rank 0: SIGKILL: restart 1 of 1 of all ranks" in " ".join(finished.stderr.split())
    assert finished.stderr.count("resuming from ") == 1
    assert results(run_dir) == undisturbed_on_two


def test_one_rank_of_two_stands_still(
    long_job: list[object], undisturbed_on_two: dict[str, Any], tmp_path: Path
) -> None:
    with running(
        [*long_job, "--step_timeout", 3], tmp_path / "run", TWO_PROCESSES, TORCH_ELASTIC_SHUTDOWN_TIMEOUT="1"
    ) as job:
        job.wait_for_step(23)
        job.ranks()[1].suspend()
        finished = job.wait(60)
        assert finished.code == 1
        assert not job.processes()
    assert "rank 0 has been at " in finished.stderr
    assert "rank 1 does not answer; it was last at " in finished.stderr, finished.stderr
    assert "rank 0, stack of thread MainThread:" in finished.stderr
    assert "in fit" in finished.stderr  # wherever in it: the moment is not the test's to choose
    assert "error: rank 0: another process is gone, or did not answer in time" in finished.stderr
    assert run_to_the_end(long_job, tmp_path / "run", processes=2) == undisturbed_on_two


def test_a_run_goes_on_without_what_its_file_system_lacks(
    long_job: list[object], undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(POOR_DISK)
    cache = str(tmp_path / "cache")
    with running(long_job, tmp_path / "run", PYTHONPATH=str(tmp_path), HF_DATASETS_CACHE=cache) as job:
        finished = job.wait(300)
    assert finished.code == 0, finished.stderr
    for warning in (
        "has no fsync for it (Invalid argument): going on without",
        "who may read it cannot be set (Operation not permitted): going on without",
        "whose file system has no locks (Function not implemented): going on without",
    ):
        assert finished.stderr.count(warning) == 1, finished.stderr
    assert results(tmp_path / "run") == undisturbed


def test_a_disk_that_is_slow_is_waited_for(
    long_job: list[object], undisturbed_on_two: dict[str, Any], tmp_path: Path
) -> None:
    # The second rank has nothing to write. It must neither time out beside the first one nor take that for dead.
    (tmp_path / "sitecustomize.py").write_text(SLOW_DISK.format(seconds=2, until=""))
    flags = [*long_job, "--step_timeout", 3, "--checkpointing_steps", 100]
    with running(flags, tmp_path / "run", TWO_PROCESSES, PYTHONPATH=str(tmp_path)) as job:
        job.wait_for_step(23)
        job.process.terminate()
        finished = job.wait()
    assert finished.code == 75, finished.stderr
    assert "training paused" in finished.stderr
    assert "has been at" not in finished.stderr
    assert run_to_the_end(long_job, tmp_path / "run", processes=2) == undisturbed_on_two


def test_of_two_jobs_started_at_once_one_works(
    long_job: list[object], undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run").symlink_to(run_dir)  # the same folder; what they say goes to two places
    with running(long_job, run_dir) as one, running(long_job, tmp_path / "other" / "run") as other:
        codes = {job.wait().code for job in (one, other)}
    assert codes == {0, 2}
    (refused,) = [job.said for job in (one, other) if "error: " in job.said]
    assert "is not empty: --resume_from_checkpoint auto goes on with it" in refused or "is in use" in refused
    assert results(run_dir) == undisturbed


def test_out_of_memory_is_one_line_that_names_the_flags(long_job: list[object], tmp_path: Path) -> None:
    sentence = "a gripping , funny film " * 30
    (tmp_path / "train.tsv").write_text("sentence\tlabel\n" + f"{sentence}\t1\n{sentence}\t0\n" * 40_000)
    limit = 6 << 30
    command = [sys.executable, REPOSITORY / "train_sst2.py", *long_job, "--train_file", tmp_path / "train.tsv"]
    command += ["--per_device_train_batch_size", 80_000, "--global_batch_size", 80_000]
    command += ["--max_train_steps", 1, "--output_dir", tmp_path / "run"]
    done = subprocess.run(
        [*map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert "error: rank 0: out of memory" in line
    assert "lower --per_device_train_batch_size" in line
    assert "--per_device_eval_batch_size or --max_length" in line
    assert "Traceback" not in done.stderr


def test_kills_at_random_instants(tmp_path: Path) -> None:
    script = REPOSITORY / "benchmarks" / "chaos.py"
    command = [sys.executable, script, "--kills", "4", "--output", tmp_path / "figures"]
    done = subprocess.run(
        [*map(str, command), "--", "--max_train_steps", "150"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures").read_text())
    assert figures["kills"] == 4
    assert figures["sha256_disturbed"] == figures["sha256_undisturbed"]
    assert figures["damaged_checkpoints"] == []


def test_one_failed_call_of_the_file_system(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    command = [
        sys.executable,
        REPOSITORY / "benchmarks" / "faults.py",
        *("--sample", 1, "--output", tmp_path / "figures"),
    ]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures").read_text())
    assert figures["faults"] == 16
    assert figures["ends"]["kill"] == {"killed": 4}
    assert figures["failures"] == []
