"""Scripts under `sst2 launch`, on one machine or on two."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import psutil

from tests.support.processes import free_port

SEVERAL = ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]  # without a GPU it takes CPUs


@contextmanager
def launched(*command: object, before: Sequence[str] = (), **variables: str) -> Iterator[subprocess.Popen[str]]:
    """The launcher at work, with further variables; whatever is left of it is killed."""
    started = [*before, sys.executable, "-m", "sst2.launch", *map(str, command)]
    process = subprocess.Popen(
        started, env=os.environ | variables, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                child.kill()
        process.communicate()


@contextmanager
def launched_on_two_machines(
    *command: object, **variables: str
) -> Iterator[tuple[subprocess.Popen[str], subprocess.Popen[str]]]:
    """Two launchers that take each other for other machines, with a process each."""
    flags = ["--multi_gpu", "--num_machines", 2, "--num_processes", 2, "--rdzv_backend", "static"]
    flags += ["--main_process_ip", "127.0.0.1", "--main_process_port", free_port()]
    machines = [launched(*flags, "--machine_rank", machine, *command, **variables) for machine in range(2)]
    with machines[0] as first, machines[1] as second:
        yield first, second


def wait_for(condition: Callable[[], bool], *processes: subprocess.Popen[str]) -> None:
    """Wait until `condition` holds; fail when one of the processes ends before, or after a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        for process in processes:
            assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
