"""How a run ends: one line and an exit code for what a user or a machine has done, a traceback for a bug."""

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from sst2.utils.errors import (
    OF_TRAINING,
    LocalError,
    StopRequestedError,
    TrainingDivergedError,
    UserError,
    exit_codes,
    first_line,
)


def raise_error(error: Exception) -> None:
    raise error


def end_of(work: Callable[[], object], rank: int = 0, report: bool = True) -> int:
    with pytest.raises(SystemExit) as left, exit_codes("train_sst2.py", rank, report, ways_out=OF_TRAINING):
        work()
    return int(left.value.code or 0)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("--seed 1\n  is odd"), 2, "train_sst2.py: error: --seed 1 is odd\n"),
        (TrainingDivergedError("no"), 3, "train_sst2.py: error: no\n"),
        (StopRequestedError("stopped by SIGTERM"), 75, "train_sst2.py: stopped by SIGTERM\n"),
    ],
)
def test_what_all_processes_raise_one_of_them_says(
    error: Exception, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_of(lambda: raise_error(error)) == code
    assert capsys.readouterr() == ("", line)
    assert end_of(lambda: raise_error(error), rank=1, report=False) == code
    assert capsys.readouterr() == ("", "")


def test_what_strikes_one_process_it_says_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill() -> None:
        raise LocalError("no room: name another folder")

    monkeypatch.setattr("sst2.utils.errors.SECONDS_FOR_OTHERS", 0.0)
    assert end_of(fill, rank=3) == 2
    assert capsys.readouterr().err == "train_sst2.py: error: no room: name another folder\n"
    before = signal.getsignal(signal.SIGTERM)
    assert end_of(fill, rank=3, report=False) == 2
    signal.signal(signal.SIGTERM, before)
    here = f"rank 3 on {socket.gethostname()}"
    assert capsys.readouterr().err == f"train_sst2.py: error: {here}: no room: name another folder\n"


def test_the_code_comes_through_where_nothing_can_be_said() -> None:
    code = "from sst2.utils.errors import *\n"
    code += "with exit_codes('x', leave=leave_at_once): raise StopRequestedError('stopped')"
    with Path("/dev/full").open("w") as full:
        assert subprocess.run([sys.executable, "-c", code], stdout=full, stderr=full, check=False).returncode == 75


def stumble() -> None:
    try:
        os.environ["THE_CAUSE"]
    except KeyError:
        raise UserError("--seed 1 is odd") from None


@pytest.mark.parametrize("value", ["1", "0", ""])
def test_the_traceback_behind_a_line_is_shown_on_request(
    value: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SST2_TRACEBACK", value)
    assert end_of(stumble) == 2
    *before, last = capsys.readouterr().err.splitlines()
    assert last == "train_sst2.py: error: --seed 1 is odd"
    if value == "1":
        assert before[0] == "Traceback (most recent call last):"
        assert "KeyError: 'THE_CAUSE'" in before  # what `from None` keeps out of sight
        assert end_of(lambda: bytearray(1 << 62)) == 2
        assert "MemoryError" in capsys.readouterr().err.splitlines()[-2]
    else:
        assert before == []


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no\nmore"), "no"),
        (OSError("reasons:\n  it is gone\nfor good"), "reasons: it is gone"),
        (KeyError("dim"), "KeyError: 'dim'"),
        (AssertionError(), "AssertionError"),
        (ValueError("x" * 1000), "x" * 399 + "…"),
    ],
)
def test_an_exception_of_a_library_is_quoted_in_one_line(error: Exception, line: str) -> None:
    assert first_line(error) == line


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_the_code_comes_through_where_outputs_are_closed(closed: str) -> None:
    code = "from sst2.utils.errors import *\n"
    code += "with exit_codes('x', leave=leave_at_once): raise StopRequestedError('stopped')"
    command = ["bash", "-c", f'exec "$@" {closed}', "bash", sys.executable, "-c", code]
    assert subprocess.run(command, check=False).returncode == 75


def fill_a_disk() -> None:
    with Path("/dev/full").open("w") as file:
        file.write("x")


def save_a_tokenizer_on_a_full_disk() -> None:
    Tokenizer(models.WordLevel({str(number): number for number in range(100)}, "0")).save("/dev/full")


def save_tensors_into_nothing() -> None:
    save_file({"a": torch.zeros(1)}, "/nonexistent/model.safetensors")


def save_what_torch_saves_on_a_full_disk() -> None:
    with Path("/dev/full").open("wb") as file:
        torch.save({"a": torch.zeros(1 << 16)}, file)


def lose_a_folder() -> None:
    (Path("/nonexistent") / "metrics.json").write_text("{}")


def break_a_disk() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


DISKS: dict[str, tuple[Callable[[], object], str]] = {
    "tokenizers": (save_a_tokenizer_on_a_full_disk, "[Errno 28] No space left on device: make room; "),
    "safetensors": (save_tensors_into_nothing, "[Errno 2] No such file or directory: see to that disk or path; "),
    "torch": (save_what_torch_saves_on_a_full_disk, "[Errno 28] No space left on device: make room; "),
    "a folder that is gone": (lose_a_folder, "[Errno 2] No such file or directory: '/nonexistent/metrics.json': see"),
    "a disk that is broken": (break_a_disk, "[Errno 5] Input/output error: see to that disk or path; "),
}


@pytest.mark.parametrize("what", DISKS)
def test_what_a_disk_answers_is_one_line_whatever_library_was_writing(
    what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    work, beginning = DISKS[what]
    assert end_of(work, rank=3, report=False) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"train_sst2.py: error: rank 3: {beginning}")
    assert said.endswith("checkpoints are whole, and --resume_from_checkpoint auto goes on from the last\n")
    assert said.count("\n") == 1


def test_a_bug_that_came_after_an_error_of_a_disk_is_a_bug(capsys: pytest.CaptureFixture[str]) -> None:
    def forget() -> None:
        try:
            break_a_disk()
        except OSError:
            int("a word")

    assert end_of(forget) == 1
    assert "ValueError: invalid literal" in capsys.readouterr().err


SHORTAGES = {
    "memory of Python": (lambda: bytearray(1 << 62), "out of memory (MemoryError): lower --per_device_train_batch"),
    "memory of torch": (lambda: torch.empty(1 << 60), "out of memory ("),
    "room on a disk": (fill_a_disk, "[Errno 28] No space left on device: make room; checkpoints are whole"),
}


@pytest.mark.parametrize("what", SHORTAGES)
def test_a_shortage_is_one_line_of_the_process_that_it_strikes(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    work, beginning = SHORTAGES[what]
    assert end_of(work, rank=3, report=False) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"train_sst2.py: error: rank 3: {beginning}")
    assert said.count("\n") == 1
    if "memory" in what:
        assert "--per_device_eval_batch_size or --max_length" in said


def lose_a_process() -> None:
    raise RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer")


@pytest.mark.parametrize(
    ("work", "code", "line"),
    [
        (fill_a_disk, 2, "[Errno 28] No space left on device: make room"),
        (break_a_disk, 2, "[Errno 5] Input/output error: see to that disk or path"),
        (
            SHORTAGES["memory of Python"][0],
            2,
            "out of memory (MemoryError): end other programs, or take a machine that",
        ),
        (lose_a_process, 1, "another process is gone, or did not answer in time ("),
    ],
)
def test_a_program_that_does_not_train_offers_nothing_of_training(
    work: Callable[[], object], code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left, exit_codes("compare"):
        work()
    said = capsys.readouterr().err
    assert left.value.code == code
    assert said.startswith(f"compare: error: {line}")
    assert "--" not in said
    assert (said.count("\n"), "rank" in said, "checkpoint" in said) == (1, False, False)


def test_a_bug_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of(lambda: os.environ["MISSING"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):")
    assert "KeyError: 'MISSING'" in said


def test_success_and_others_exit_codes_are_left_as_they_are() -> None:
    assert end_of(lambda: None) == 0
    assert end_of(lambda: sys.exit(17)) == 17


def test_leaving_at_once_loses_no_output_and_waits_for_nothing() -> None:
    code = (
        "import atexit, sys, threading, time\n"
        "from sst2.utils.errors import leave_at_once\n"
        "atexit.register(print, 'tidied up')\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "print('said')\n"
        "leave_at_once(75)\n"
    )
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", code], env=buffered, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (75, "said\n", "")
