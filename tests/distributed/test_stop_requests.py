"""Signals and files become flags that all ranks agree on; nothing happens before they are asked for."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sst2.distributed.stop_requests import SIGNALS, StopFlags, StopRequests
from sst2.utils.atomic_file import write_text
from tests.support.processes import start
from tests.support.running import REPOSITORY


def answer_to(*signals: signal.Signals) -> StopFlags:
    """What a process is told that has got these signals."""
    requests = StopRequests().listen()
    assert requests.reduce()[0] == StopFlags()
    for number in signals:
        os.kill(os.getpid(), number)
    flags = requests.reduce()[0]
    deadline = time.monotonic() + 30
    while not flags.stop and time.monotonic() < deadline:
        time.sleep(0.01)  # another thread receives them
        flags = requests.reduce()[0]
    time.sleep(0.2)
    assert requests.reduce()[0] == flags  # nobody takes it back
    return flags


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_is_a_wish_to_stop(number: signal.Signals) -> None:
    process, answer = start(answer_to, number)
    assert answer.recv() == StopFlags(stop=number.name)
    process.join()
    assert process.exitcode == 0


def test_what_is_printed_where_outputs_are_closed_is_no_signal() -> None:
    code = (
        "import os, time\n"
        "from sst2.distributed.stop_requests import StopRequests\n"
        "requests = StopRequests().listen()\n"
        "for output in (0, 1, 2):\n"
        "    os.write(output, bytes(range(1, 32)))\n"  # a newline is SIGUSR1
        "time.sleep(0.5)\n"
        "raise SystemExit(requests.reduce()[0].stop != '')"
    )
    command = ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash", sys.executable, "-c", code]
    assert subprocess.run(command, check=False).returncode == 0


def test_the_first_of_several_signals_is_named() -> None:
    process, answer = start(answer_to, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGINT)
    assert answer.recv() == StopFlags(stop="SIGUSR2")  # and two interrupts at a time are one Ctrl-C
    process.join()
    assert process.exitcode == 0


def answer_where_ignored(*signals: signal.Signals) -> StopFlags:
    """What a process is told that was started to ignore some signals, and has got them, and then SIGTERM."""
    for number in signals:
        signal.signal(number, signal.SIG_IGN)
    return answer_to(*signals, signal.SIGTERM)


def test_what_a_terminal_sends_stays_ignored_and_what_a_batch_system_sends_does_not() -> None:
    started = [start(answer_where_ignored, signal.SIGHUP, signal.SIGINT), start(answer_where_ignored, signal.SIGUSR1)]
    assert [answer.recv() for _, answer in started] == [StopFlags(stop="SIGTERM"), StopFlags(stop="SIGUSR1")]


def answer_of_a_library(number: signal.Signals) -> StopFlags:
    """What a process is told in which a library has taken a signal for a timer of its own."""
    requests = StopRequests().listen()
    signal.signal(number, lambda number, frame: None)
    os.kill(os.getpid(), number)
    time.sleep(0.5)
    return requests.reduce()[0]


def test_a_signal_that_a_library_has_taken_is_no_wish() -> None:
    _, answer = start(answer_of_a_library, signal.SIGUSR2)
    assert answer.recv() == StopFlags()


@pytest.mark.parametrize("ends_by", [signal.SIGQUIT, signal.SIGSEGV])
def test_what_ends_the_process_at_once_prints_where_it_was(ends_by: signal.Signals) -> None:
    code = "import os, sys; from sst2.distributed.stop_requests import StopRequests; StopRequests().listen()\n"
    code += "def stand_here(): os.kill(os.getpid(), int(sys.argv[1]))\nstand_here()"
    command = [sys.executable, "-c", code, str(int(ends_by))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -ends_by
    assert "in stand_here" in done.stderr


def wait_for_ever() -> None:
    """Listen, with a main thread that is as stuck as in a collective operation without an answer."""
    StopRequests().listen()
    os.kill(os.getpid(), signal.SIGINT)
    threading.Timer(1.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    stuck = threading.Lock()
    with stuck:
        stuck.acquire()


def test_a_second_interrupt_ends_a_process_that_is_stuck() -> None:
    process, _ = start(wait_for_ever)
    process.join(60)
    assert process.exitcode == 130


def test_signals_are_caught_before_torch_is_imported() -> None:
    code = "import sys, sst2.distributed.stop_requests; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


def test_files_are_flags_and_are_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sst2.distributed.stop_requests.SECONDS_BETWEEN_LOOKS", 0)
    requests = StopRequests()
    (tmp_path / "STOP").touch()
    assert requests.reduce()[0] == StopFlags()  # it has not been told where to look
    (tmp_path / "STOP").unlink()
    requests.watch(tmp_path)
    assert requests.reduce()[0] == StopFlags()
    for _ in range(2):
        (tmp_path / "SAVE").touch()
        assert requests.reduce()[0] == StopFlags(save=True)
        assert requests.reduce()[0] == StopFlags()  # once is enough
    (tmp_path / "STOP").touch()
    assert requests.reduce()[0] == StopFlags(stop="the file STOP")
    assert list(tmp_path.iterdir()) == []  # or the next start would stop as well
    assert requests.reduce()[0].stop


def test_the_folder_is_not_looked_at_in_every_step(tmp_path: Path) -> None:
    requests = StopRequests()
    requests.watch(tmp_path)
    began = time.monotonic()
    requests.reduce()[0]
    (tmp_path / "SAVE").touch()
    looks = 0
    while not requests.reduce()[0].save:
        looks += 1
        time.sleep(0.01)
    assert time.monotonic() - began >= 1
    assert looks > 3


def agreement(rank: int, folder: Path) -> list[Any]:
    """What one of two ranks is told while only the other one knows of something."""
    from torch import distributed

    (folder / "run").mkdir(exist_ok=True)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    requests = StopRequests()
    told: list[Any] = [requests.reduce()[0], requests.reduce(rank == 1)]
    if rank == 0:
        (folder / "run" / "SAVE").touch()
        requests.watch(folder / "run")
    told += [requests.reduce()[0], requests.reduce()[0]]
    if rank == 1:
        requests.listen()
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(1)
    told.append(requests.reduce()[0])
    distributed.barrier()
    distributed.destroy_process_group()
    return told


def test_what_one_rank_knows_all_are_told_at_once(tmp_path: Path) -> None:
    started = [start(agreement, rank, tmp_path) for rank in (0, 1)]
    for process, answer in started:
        assert answer.recv() == [
            StopFlags(),
            (StopFlags(), [True]),
            StopFlags(save=True),
            StopFlags(),
            StopFlags(stop="SIGUSR1"),
        ]
        process.join()


def leave_a_process_behind(reported: Path) -> None:
    ready = reported.with_name("ready")
    if os.fork():
        while not ready.exists():
            time.sleep(0.01)
        return
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no"  # exported by somebody, and no sign of a launcher
    of_shell = StopRequests()
    told = [of_shell.reduce()[0]]
    os.environ |= {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "1"}  # a launcher sets both
    requests = StopRequests()
    told.append(requests.reduce()[0])
    launcher = os.getppid()
    ready.touch()
    while os.getppid() == launcher:
        time.sleep(0.01)
    told += [requests.reduce()[0], of_shell.reduce()[0]]
    write_text(reported, repr(told))
    os._exit(0)


def test_the_end_of_the_launcher_is_a_wish_to_stop(tmp_path: Path) -> None:
    process, _ = start(leave_a_process_behind, tmp_path / "told")
    process.join()
    deadline = time.monotonic() + 30
    while not (tmp_path / "told").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    told = [StopFlags(), StopFlags(), StopFlags(stop="the end of its launcher"), StopFlags()]
    assert (tmp_path / "told").read_text() == repr(told)
