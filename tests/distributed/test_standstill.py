"""A job that is suspended goes on, and one that waits for what never comes has an end, and says what it waited for."""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.jobs import TWO_PROCESSES, Job, is_alive, results, running
from tests.support.processes import free_port
from tests.support.running import SCRIPT

pytestmark = pytest.mark.slow

STEP_TIMEOUT = 3.0


@pytest.fixture
def flags(long_job: list[object]) -> list[object]:
    return [*long_job, "--step_timeout", STEP_TIMEOUT]


def suspend(job: Job) -> list[psutil.Process]:
    """Suspend all of a job, one rank a moment before the others, so that these wait for it. Returns its processes."""
    processes = [*job.ranks()[::-1], psutil.Process(job.process.pid)]
    for process in processes:
        process.suspend()
        time.sleep(0.5)
    return processes


def test_time_in_which_all_of_a_job_was_suspended_does_not_count(
    flags: list[object], undisturbed_on_two: dict[str, Any], tmp_path: Path
) -> None:
    with running(flags, tmp_path / "run", TWO_PROCESSES) as job:
        job.wait_for_step(23)
        processes = suspend(job)
        time.sleep(2.5 * STEP_TIMEOUT)
        for process in processes:
            process.resume()
        finished = job.wait()
    assert finished.code == 0, finished.stderr
    assert "has been at" not in finished.stderr
    assert results(tmp_path / "run") == undisturbed_on_two


def test_what_does_not_come_back_from_a_suspension_is_reason_to_start_again(
    flags: list[object], tmp_path: Path
) -> None:
    with running(flags, tmp_path / "run", TWO_PROCESSES, TORCH_ELASTIC_SHUTDOWN_TIMEOUT="1") as job:
        job.wait_for_step(23)
        _, *others = suspend(job)
        time.sleep(1.5 * STEP_TIMEOUT)
        for process in others:
            process.resume()
        finished = job.wait()
        assert not job.processes()
    assert finished.code == 75, finished.stderr
    assert "train_sst2.py: rank 0: suspended for " in finished.stderr
    assert "rank 1 does not answer; it was last at " in finished.stderr


def test_a_store_that_does_not_answer_keeps_nobody(flags: list[object], tmp_path: Path) -> None:
    with running(flags, tmp_path / "run", TWO_PROCESSES) as job:
        job.wait_for_step(23)
        first, second = job.ranks()
        job.process.send_signal(signal.SIGSTOP)  # the launcher, which keeps the store
        second.suspend()
        wait_for_the_end_of(first, job)
    assert "rank 0 has been at " in job.said
    assert "rank 0, stack of thread MainThread:" in job.said
    assert "train_sst2.py: error: rank 0: another process is gone, or did not answer in time" in job.said


def test_a_rank_that_is_stopped_before_the_first_step_is_found(flags: list[object], tmp_path: Path) -> None:
    with running(flags, tmp_path / "run", TWO_PROCESSES, TORCH_ELASTIC_SHUTDOWN_TIMEOUT="1") as job:
        job.wait_for(lambda: "2 x cpu" in job.said)  # the first sum is done
        job.ranks()[1].suspend()
        finished = job.wait()
        assert not job.processes()
    assert finished.code == 1, finished.stderr
    assert "\nstep 1: " not in finished.stderr
    assert "rank 0, stack of thread MainThread:" in finished.stderr
    assert "train_sst2.py: error: rank 0: another process is gone, or did not answer in time" in finished.stderr
    assert re.search("rank 1 (does not answer; it was last at the preparations|has not been heard of)", finished.stderr)


def wait_for_the_end_of(process: psutil.Process, job: Job) -> None:
    deadline = time.monotonic() + 20 * STEP_TIMEOUT
    while is_alive(process):
        assert time.monotonic() < deadline, job.said
        time.sleep(0.05)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a wire between them: 10.213.0.1 and 10.213.0.2, each at its end `wire`."""
    names = f"sst2-{free_port()}-a", f"sst2-{free_port()}-b"
    try:
        for name in names:
            made = ip("netns", "add", name)
            if made is None or made.returncode != 0:
                pytest.skip("network namespaces need the right to make them, and iproute2")
        ip("link", "add", "wire", "netns", names[0], "type", "veth", "peer", "name", "wire", "netns", names[1])
        for number, name in enumerate(names, start=1):
            ip("-n", name, "address", "add", f"10.213.0.{number}/24", "dev", "wire")
            ip("-n", name, "link", "set", "wire", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            ip("netns", "delete", name)


def ip(*words: str) -> subprocess.CompletedProcess[bytes] | None:
    if shutil.which("ip") is None:
        return None
    return subprocess.run(["ip", *words], capture_output=True, check=False)


def test_a_wire_that_is_cut_ends_both_sides(hosts: tuple[str, str], flags: list[object], tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "sst2.launch", "--multi_gpu", "--num_machines", "2", "--num_processes", "2"]
    launch += ["--main_process_ip", "10.213.0.1", "--main_process_port", "29517"]
    jobs, outputs = [], [tmp_path / f"output-{number}" for number in range(2)]
    command = [*map(str, [SCRIPT, *flags, "--output_dir", tmp_path / "run"])]
    try:
        for number, (host, output) in enumerate(zip(hosts, outputs, strict=True)):
            inside = ["ip", "netns", "exec", host, "env", "GLOO_SOCKET_IFNAME=wire"]
            with output.open("w") as stream:
                jobs.append(
                    subprocess.Popen(
                        [*inside, *launch, "--machine_rank", str(number), *command], stdout=stream, stderr=stream
                    )
                )
        watched = Job(jobs[0], tmp_path / "run", outputs[0])
        watched.wait_for_step(23)
        ip("-n", hosts[1], "link", "set", "wire", "down")
        codes = [job.wait(40 * STEP_TIMEOUT) for job in jobs]
    finally:
        for job in jobs:
            for process in psutil.Process(job.pid).children(recursive=True) if job.poll() is None else []:
                process.kill()
            job.kill()
            job.wait()
    assert codes == [1, 1]
    for rank, output in enumerate(outputs):
        said = output.read_text()
        assert f"rank {rank}, stack of thread MainThread:" in said
        assert f"train_sst2.py: error: rank {rank}: another process is gone, or did not answer in time" in said
