"""Jobs in processes of their own that a test can watch, signal and kill."""

import hashlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.support.processes import CONTEXT
from tests.support.running import SCRIPT, Finished, without_times

PYTHON = (sys.executable,)
ONE_PROCESS = (sys.executable, "-m", "sst2.launch")
TWO_PROCESSES = (*ONE_PROCESS, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
# A disk on which a checkpoint takes long, until there is a file, as sitecustomize.py of a folder in PYTHONPATH.
SLOW_DISK = """
import os, threading, time

def slow(descriptor, fsync=os.fsync):
    if threading.current_thread().name == "checkpoint writer" and not os.path.exists({until!r}):
        time.sleep({seconds})
    fsync(descriptor)

os.fsync = slow
"""
# Steps that take a second, as long as there is a file, but for the first ones; they are logged one by one.
SLOW_STEPS = """
import os, sys, time

count = 0

def slow(event, arguments):
    global count
    if event == "open" and arguments[1] == "a" and str(arguments[0]).endswith("metrics.jsonl"):
        count += 1
        time.sleep(count > {quick} and os.path.exists({file!r}))

sys.addaudithook(slow)
"""
# Linear layers that take several times as long, since the process is busy in between.
BUSY_COMPUTE = """
import time, torch

def busy(layer, tokens, forward=torch.nn.Linear.forward):
    started = time.perf_counter()
    result = forward(layer, tokens)
    until = time.perf_counter() + {times} * (time.perf_counter() - started)
    while time.perf_counter() < until:
        pass
    return result

torch.nn.Linear.forward = busy
"""
# A file system that lacks what some network, FUSE and shared-folder mounts lack, likewise.
POOR_DISK = """
import errno, fcntl, os, stat

def refuse(number):
    raise OSError(number, os.strerror(number))

def fsync(descriptor, real=os.fsync):
    refuse(errno.EINVAL) if stat.S_ISDIR(os.fstat(descriptor).st_mode) else real(descriptor)

os.fsync = fsync
os.chmod = lambda path, mode, **options: refuse(errno.EPERM)
fcntl.flock = lambda file, operation: refuse(errno.ENOSYS)
"""


def train_as_script(words: list[str], variables: dict[str, str], output: Path) -> None:
    """Be `train_sst2.py` with these words and variables, in a process that has the libraries imported."""
    from sst2.config.arguments import PROGRAM, parse_arguments
    from sst2.distributed.ranks import exit_codes_of_rank
    from sst2.distributed.stop_requests import StopRequests
    from train_sst2 import main

    os.environ.clear()
    os.environ.update(variables)
    tempfile.tempdir = None  # so that TMPDIR is looked up anew
    for folder in filter(None, variables.get("PYTHONPATH", "").split(os.pathsep)):
        if (injected := Path(folder) / "sitecustomize.py").is_file():  # which Python runs when it starts
            runpy.run_path(str(injected))
    with output.open("a") as stream:
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)
    stop_requests = StopRequests().listen()
    settings = parse_arguments(words)
    with exit_codes_of_rank(PROGRAM), stop_requests.stop_explains_errors():
        main(settings, stop_requests)


class Forked:
    """Processes that are `train_as_script`, one for each of `ranks`, with what tests use of `subprocess.Popen`.

    Args:
        words: of the command line.
        output: the file that they write to.
        ranks: the environment variables of each.
    """

    def __init__(self, words: list[str], output: Path, ranks: Sequence[dict[str, str]]) -> None:
        self._processes = [
            CONTEXT.Process(target=train_as_script, args=(words, variables, output), daemon=True) for variables in ranks
        ]
        for process in self._processes:
            process.start()
        self.pids = [process.pid or 0 for process in self._processes]

    @property
    def pid(self) -> int:
        return self.pids[0]

    def poll(self) -> int | None:
        codes = [process.exitcode for process in self._processes]
        return None if None in codes else max((code or 0 for code in codes), key=abs)

    def wait(self, timeout: float | None = None) -> int:
        for process in self._processes:
            process.join(timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired("train_sst2.py", timeout or 0)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            if process.exitcode is None:
                os.kill(process.pid or 0, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class Job:
    """`train_sst2.py`, running."""

    def __init__(self, process: subprocess.Popen[bytes] | Forked, run_dir: Path, output: Path) -> None:
        self.process = process
        self.run_dir = run_dir
        self._output = output
        self._seen: set[psutil.Process] = set()

    @property
    def said(self) -> str:
        return self._output.read_text(encoding="utf-8", errors="replace")

    @property
    def checkpoints(self) -> list[Path]:
        return sorted((self.run_dir / "checkpoints").glob("step-*"))

    def wait_for(self, condition: Callable[[], object], seconds: float = 120) -> None:
        """Wait until `condition` holds; fail when the job ends before."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            self.processes()
            time.sleep(0.01)

    def wait_for_step(self, step: int) -> None:
        """Wait until at least `step` steps are logged. The job needs `--logging_steps 1`."""
        log = self.run_dir / "metrics.jsonl"
        self.wait_for(lambda: log.exists() and f'"split": "train", "step": {step},' in log.read_text())

    def processes(self) -> set[psutil.Process]:
        """The launcher and all processes below it, also those that have been seen before and lost their parent."""
        for pid in self.process.pids if isinstance(self.process, Forked) else [self.process.pid]:
            with suppress(psutil.NoSuchProcess):
                started = psutil.Process(pid)
                self._seen |= {started, *started.children(recursive=True)}
        return {process for process in self._seen if is_alive(process)}

    def ranks(self) -> list[psutil.Process]:
        """The processes that train, in the order in which they were started."""
        if isinstance(self.process, Forked):
            return sorted((one for one in self.processes() if one.pid in self.process.pids), key=lambda one: one.pid)
        launched = [process for process in self.processes() if process.pid != self.process.pid]
        return sorted(launched, key=lambda process: process.pid)

    def wait(self, seconds: float = 120) -> Finished:
        """Wait for the end of the process that was started, and then of all others."""
        code = self.process.wait(seconds)
        psutil.wait_procs(self._seen, timeout=10)
        return Finished(code, "", self.said, self.run_dir)


def is_alive(process: psutil.Process) -> bool:
    try:
        is_at_work: bool = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return is_at_work
    except psutil.NoSuchProcess:
        return False


@contextmanager
def running(
    flags: Sequence[object],
    run_dir: Path,
    launcher: Sequence[str] | None = None,
    ranks: Sequence[dict[str, str]] | None = None,
    **variables: str,
) -> Iterator[Job]:
    """Start a job; kill what is left of it at the end.

    It is one process that has the libraries imported already, or one for each of `ranks`, which are their environment
    variables (`tests.support.ranks.ranks_of`), unless there is a `launcher`, `PYTHON` for example, or there are
    variables, which libraries read when they are imported.
    """
    words = [*map(str, flags), "--output_dir", str(run_dir)]
    output = run_dir.with_name(f"{run_dir.name}.output")
    output.write_text("")
    process: subprocess.Popen[bytes] | Forked
    if launcher is None and not variables:
        process = Forked(words, output, ranks or [dict(os.environ)])
    else:
        with output.open("w", encoding="utf-8") as stream:
            process = subprocess.Popen(
                [*(launcher or PYTHON), str(SCRIPT), *words],
                stdout=stream,
                stderr=stream,
                env=os.environ | variables,
                start_new_session=True,
            )
    job = Job(process, run_dir, output)
    try:
        yield job
    finally:
        for survivor in job.processes():
            survivor.kill()
        process.wait()


def results(run_dir: Path) -> dict[str, Any]:
    """What must not depend on how often a run was interrupted."""
    return {
        "weights": hashlib.sha256((run_dir / "model" / "model.safetensors").read_bytes()).hexdigest(),
        "metrics": without_times(json.loads((run_dir / "metrics.json").read_text())),
        "curves": [without_times(json.loads(line)) for line in (run_dir / "metrics.jsonl").read_text().splitlines()],
        "sample_ids": (run_dir / "samples.jsonl").read_text(),
    }
