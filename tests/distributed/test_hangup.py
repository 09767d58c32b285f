"""The terminal closes: a request to stop at every moment of a run, and nothing to a job that nohup has started."""

import os
import pty
import re
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.distributed.test_stopping import saved_state
from tests.support.jobs import PYTHON, TWO_PROCESSES, Job, running
from tests.support.running import SCRIPT

pytestmark = pytest.mark.slow

# As sitecustomize.py of a folder in PYTHONPATH: the exported model stays unfinished long enough to be seen.
SLOW_EXPORT = """
import sys, time

def slow(event, of):
    if event == "os.rename" and ".model.unfinished" in str(of[0]):
        time.sleep(1)

sys.addaudithook(slow)
"""


@pytest.fixture
def flags(tiny_model: Path, tsv_files: tuple[Path, Path], tmp_path: Path) -> list[object]:
    """A run of 40 steps whose every part takes long enough to be met; tokenizing does with `much_to_tokenize`."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_EXPORT)
    return [
        *("--model_name_or_path", tiny_model, "--train_file", tsv_files[0]),
        *("--validation_file", tsv_files[0], "--per_device_eval_batch_size", 1),
        *("--max_train_steps", 40, "--eval_steps", 20, "--logging_steps", 1, "--resume_from_checkpoint", "auto"),
    ]


@pytest.fixture
def much_to_tokenize(tsv_files: tuple[Path, Path], tmp_path: Path) -> list[object]:
    """Flags after which tokenizing takes a second."""
    sentences = tsv_files[0].read_text().split("\n", 1)[1]
    (tmp_path / "train.tsv").write_text("sentence\tlabel\n" + sentences * 60)
    return ["--train_file", tmp_path / "train.tsv"]


def hangups_are(what: str, job: Job) -> bool:
    """Whether SIGHUP is caught (`SigCgt`) or ignored (`SigIgn`) by the process that was started."""
    status = Path("/proc", str(job.process.pid), "status").read_text()
    mask = re.search(rf"^{what}:\s*(\w+)", status, re.MULTILINE)
    return mask is not None and bool(int(mask[1], 16) >> (signal.SIGHUP - 1) & 1)


def step_is_logged(step: int) -> Callable[[Job], bool]:
    return lambda job: f" step {step}/40 (" in job.said


MOMENTS: dict[str, Callable[[Job], bool]] = {
    "imports": partial(hangups_are, "SigCgt"),
    "tokenizing": lambda job: " x cpu" in job.said,  # the line before it
    "training": step_is_logged(5),
    "evaluation": step_is_logged(20),  # the line before it
    "export": lambda job: (job.run_dir / ".model.unfinished").exists(),
}


def hang_up(job: Job) -> None:
    """What the kernel does to the processes of a terminal that goes away. Those of torchrun are of none."""
    os.killpg(job.process.pid, signal.SIGHUP)


COUNTS = pytest.mark.parametrize("launcher", [PYTHON, TWO_PROCESSES], ids=["one process", "two processes"])


@COUNTS
def test_a_hangup_stops_a_run_at_any_moment(
    launcher: tuple[str, ...], flags: list[object], much_to_tokenize: list[object], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    for moment, has_come in MOMENTS.items():
        own = [*flags, *(much_to_tokenize if moment == "tokenizing" else [])]  # of which nothing is begun then
        home = str(tmp_path / "home")  # without token ids of other tests
        with running(own, run_dir, launcher, PYTHONPATH=str(tmp_path), HF_HOME=home) as job:
            job.wait_for(partial(has_come, job))
            hang_up(job)
            finished = job.wait()
            assert not job.processes(), moment
        assert "Traceback" not in finished.stderr, finished.stderr
        assert finished.code == (75 if moment != "export" else 0), finished.stderr
        step = saved_state(job)["step"] if job.checkpoints else 0  # untouched, before training
        is_right = {"training": 5 <= step < 20, "evaluation": step == 20, "export": step == 40}
        assert is_right.get(moment, step == 0), finished.stderr
    assert (run_dir / "metrics.json").exists()


@COUNTS
def test_a_hangup_is_nothing_to_a_run_under_nohup(
    launcher: tuple[str, ...], flags: list[object], much_to_tokenize: list[object], tmp_path: Path
) -> None:
    flags, home = [*flags, *much_to_tokenize], str(tmp_path / "home")  # without token ids of other tests
    with running(flags, tmp_path / "run", ("nohup", *launcher), PYTHONPATH=str(tmp_path), HF_HOME=home) as job:
        for has_come in (MOMENTS | {"imports": partial(hangups_are, "SigIgn")}).values():
            job.wait_for(partial(has_come, job))
            for process in job.processes():
                process.send_signal(signal.SIGHUP)
        finished = job.wait()
        assert not job.processes()
    assert finished.code == 0, finished.stderr
    assert "SIGHUP" not in finished.stderr


@COUNTS
def test_a_terminal_that_is_gone_cannot_be_written_to(
    launcher: tuple[str, ...], flags: list[object], tmp_path: Path
) -> None:
    controller, terminal = pty.openpty()
    long = ["--max_train_steps", "2000", "--eval_steps", "1000"]  # steps pass while the terminal is being closed
    command = [*launcher, str(SCRIPT), *map(str, flags), *long, "--output_dir", str(tmp_path / "run")]
    process = subprocess.Popen(  # the terminal is its own, as of a window
        ["setsid", "--ctty", *command], stdin=terminal, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    try:
        said = b""
        while b"step 5/2000 " not in said:
            said += os.read(controller, 4096)
        left = [process, *psutil.Process(process.pid).children(recursive=True)]
        os.close(controller)
        assert process.wait(60) == 75
        psutil.wait_procs(left[1:], timeout=10)
        assert not [child for child in left[1:] if child.is_running()]
    finally:
        process.kill()
        process.wait()
    job = Job(process, tmp_path / "run", tmp_path)
    assert 5 <= saved_state(job)["step"] < 1000
    assert not re.search(rb":\d\d step 5/2000", said)  # without date and time, as somebody watches
    assert "stopping after this step" in (tmp_path / "run" / "train.log").read_text()
