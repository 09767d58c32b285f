"""A process that stands still is noticed, with its stack, and with the ranks that it waits for."""

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sst2.distributed import watchdog as watchdog_module
from sst2.distributed.heartbeat import ARRIVED
from sst2.distributed.watchdog import Watchdog
from sst2.utils.waiting import RunningTime

STANDING_STILL = """
import logging, sys, time
import torch
from torch import distributed
from sst2.distributed.watchdog import Watchdog

logging.basicConfig(format="%(message)s")
distributed.init_process_group("gloo")
distributed.all_reduce(torch.zeros(1))
rank = distributed.get_rank()
watchdog = Watchdog(timeout=1)
watchdog.step_done()
for step in range(5):  # progress, slower in all than the time-out
    watchdog.set_activity(f"step {step}")
    time.sleep(0.4)
watchdog.set_activity("step 7, forward pass 1")
if rank == 1:
    time.sleep(6)  # longer than collective operations wait
watchdog.set_activity("step 7, backward pass 1")
distributed.all_reduce(torch.zeros(1))
"""


class SetByHand(RunningTime):
    """A clock that stands where it is put, and says when it is looked at."""

    def __init__(self, longest: float) -> None:
        super().__init__(longest)
        self.was_read = threading.Semaphore(0)

    def look(self) -> float:
        self.was_read.release()
        return self.seconds

    def advance(self, seconds: float) -> None:
        """Put the clock forward, and wait until the watchdog has seen that and done what follows from it."""
        self.seconds += seconds
        while self.was_read.acquire(blocking=False):
            pass
        for _ in range(3):  # the first may be of before, and what follows from the second is done at the third
            assert self.was_read.acquire(timeout=60)


def test_one_report_for_each_standstill(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog_module, "RunningTime", SetByHand)
    watchdog = Watchdog(timeout=1)  # it looks ten times a second
    clock: SetByHand = watchdog._clock  # type: ignore[assignment]
    watchdog.step_done()
    try:
        for step in range(4):  # longer in all than the time-out
            watchdog.set_activity(f"step {step}")
            clock.advance(0.4)
        assert reports(caplog) == []
        for number, activity in enumerate(("step 16, forward pass 1", "step 17, forward pass 1"), start=1):
            watchdog.set_activity(activity)
            clock.advance(0)
            clock.advance(1.1)
            wait_for_reports(caplog, number)
            assert reports(caplog)[-1].startswith(f"rank 0 has been at {activity} for 1 s")
            assert "in test_one_report_for_each_standstill" in reports(caplog)[-1]  # the line that it stands at
            clock.advance(1.1)
            assert len(reports(caplog)) == number  # one is enough
    finally:
        watchdog.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "watchdog"]


class Forgetful:
    """A heartbeat that is answered once; afterwards the store keeps silent, as one does that has stopped."""

    activity, count = "", 0

    def __init__(self) -> None:
        self.answers = [([ARRIVED], False)]
        self.is_asked = threading.Semaphore(0)

    def others(self) -> tuple[list[str], bool]:
        self.is_asked.release()
        if not self.answers:
            threading.Event().wait()  # for good; the thread is a daemon
        return self.answers.pop()

    def stop(self) -> None:
        """Nothing to stop."""


def test_what_an_earlier_standstill_has_found_is_not_said_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    is_over = threading.Event()

    def end(code: int, said: str) -> None:
        ended.append(said)
        is_over.set()
        watchdog._stopped.set()

    monkeypatch.setattr(watchdog_module, "RunningTime", SetByHand)
    monkeypatch.setattr(watchdog_module, "end_from_thread", end)
    watchdog = Watchdog(timeout=1)
    heartbeat = watchdog._heartbeat = Forgetful()  # type: ignore[assignment]
    clock: SetByHand = watchdog._clock  # type: ignore[assignment]
    clock.suspended = lambda last: 0.0  # type: ignore[method-assign]
    watchdog.step_done()
    try:
        watchdog.set_activity("step 1")
        clock.advance(0)
        clock.advance(1.1)
        assert heartbeat.is_asked.acquire(timeout=60)
        while not watchdog._others:
            time.sleep(0.01)
        assert watchdog._others == [ARRIVED]  # all are slow, and go on
        watchdog.set_activity("step 2")
        clock.advance(0)
        clock.advance(1.1)
        clock.seconds += 1.0
        assert is_over.wait(60)
    finally:
        watchdog.stop()
    assert "error: rank 0: another process is gone, or did not answer in time" in ended[0]


def wait_for_reports(caplog: pytest.LogCaptureFixture, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(reports(caplog)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def reports(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "sst2.distributed.watchdog"]


@pytest.mark.slow
def test_the_rank_that_has_not_arrived_is_named(tmp_path: Path) -> None:
    (tmp_path / "still.py").write_text(STANDING_STILL)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, str(tmp_path / "still.py")], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert "rank 0 has been at step 7, backward pass 1 for" in done.stderr
    assert "rank 1 has not arrived: it is at step 7, forward pass 1" in done.stderr
    assert "rank 1 has been at step 7, forward pass 1 for" in done.stderr
    assert "every other rank has arrived" in done.stderr  # as rank 1 says
    assert done.returncode == 1
    assert "still.py: error: rank " in done.stderr  # after 2 s; which of them is first is not known


HOLDING = """
import ctypes, logging, os
import torch
from torch import distributed
from sst2.distributed.watchdog import Watchdog

logging.basicConfig(format="%(message)s")
distributed.init_process_group("gloo")
distributed.all_reduce(torch.zeros(1))
watchdog = Watchdog(timeout=1)
watchdog.step_done()

def hold_the_gil():
    ctypes.PyDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)  # which a signal does not end

if distributed.get_rank() == 1:
    hold_the_gil()
distributed.all_reduce(torch.zeros(1))
"""


@pytest.mark.slow
def test_a_rank_whose_gil_is_held_still_prints_its_stack(tmp_path: Path) -> None:
    (tmp_path / "holding.py").write_text(HOLDING)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launcher, str(tmp_path / "holding.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.search(r"Stack \(most recent call first\):\n.* in hold_the_gil", done.stderr)
    # as rank 0 says, which ends the job
    assert re.search("rank 1 (does not answer; it was last at the preparations|has not been heard of)", done.stderr)


SUSPENDED = """
import os, signal, time
from sst2.distributed.watchdog import Watchdog

def deep(depth):
    return depth and deep(depth - 1)

watchdog = Watchdog(timeout=0.2)
watchdog.step_done()
if not (suspending := os.fork()):  # another process, as a cluster's suspends and resumes a job
    for _ in range(20):
        for number, seconds in ((signal.SIGSTOP, 0.4), (signal.SIGCONT, 0.1)):
            os.kill(os.getppid(), number)
            time.sleep(seconds)
    os._exit(0)
while os.waitpid(suspending, os.WNOHANG) == (0, 0):
    deep(500)
watchdog.stop()
"""


@pytest.mark.slow
def test_stacks_printed_after_a_suspension_do_not_crash_a_process_that_goes_on() -> None:
    done = subprocess.run([sys.executable, "-c", SUSPENDED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "in deep" in done.stderr


LEAVING = """
import logging, threading, time
from torch import distributed
from sst2.distributed.watchdog import Watchdog

logging.basicConfig(format="%(message)s")
distributed.init_process_group("gloo")
watchdog = Watchdog(timeout=30)  # it asks the others for nine seconds
time.sleep(1)  # both are heard of
examining = threading.Thread(target=watchdog._examine, args=(31.0, 1))
examining.start()
time.sleep(1)
watchdog.stop()  # as a run does that has gone on and is over; no rank beats any more
examining.join()
distributed.barrier()
"""


@pytest.mark.slow
def test_ranks_that_have_ended_are_not_taken_for_silent(tmp_path: Path) -> None:
    (tmp_path / "leaving.py").write_text(LEAVING)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launcher, str(tmp_path / "leaving.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "does not answer" not in done.stderr


PREPARING = """
import os, time
import torch
from torch import distributed
from sst2.distributed import watchdog
from sst2.utils.waiting import RunningTime

class Hours(RunningTime):  # in which the watchdog looks at the clock: a second counts as twenty minutes
    def look(self):
        return 1200 * super().look()

watchdog.RunningTime = Hours
distributed.init_process_group("gloo")
distributed.all_reduce(torch.zeros(1))
watching = watchdog.Watchdog(timeout=10)
if distributed.get_rank() == 1:
    time.sleep(5)  # as long as tokenizing a large corpus takes
distributed.all_reduce(torch.zeros(1))
watching.stop()
os._exit(0)  # as jobs end: threads may be waiting for the store
"""


@pytest.mark.slow
def test_hours_of_preparations_end_nobody_while_all_ranks_answer(tmp_path: Path) -> None:
    (tmp_path / "preparing.py").write_text(PREPARING)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launcher, str(tmp_path / "preparing.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "has been at" not in done.stderr
