"""A process that stands still is noticed, with its stack, and with the ranks that it waits for."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sst2.distributed.watchdog import Watchdog

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
watchdog.start()
for step in range(5):  # progress, slower in all than the time-out
    watchdog.at(f"step {step}")
    time.sleep(0.4)
watchdog.at("step 7, forward pass 1")
if rank == 1:
    time.sleep(6)  # longer than collective operations wait
watchdog.at("step 7, backward pass 1")
distributed.all_reduce(torch.zeros(1))
"""


def test_one_report_for_each_standstill(caplog: pytest.LogCaptureFixture) -> None:
    watchdog = Watchdog(timeout=3)
    watchdog.start()
    try:
        for step in range(12):  # longer in all than the time-out
            watchdog.at(f"step {step}")
            time.sleep(0.3)
        assert reports(caplog) == []
        for number, where in enumerate(("step 16, forward pass 1", "step 17, forward pass 1"), start=1):
            watchdog.at(where)
            wait_for_reports(caplog, number)
            assert reports(caplog)[-1].startswith(f"rank 0 has been at {where} for ")
            assert "in wait_for_reports" in reports(caplog)[-1]  # the line that it stands at
            time.sleep(3.5)
            assert len(reports(caplog)) == number  # one is enough
    finally:
        watchdog.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "watchdog"]


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
