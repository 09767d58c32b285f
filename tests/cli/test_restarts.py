"""`--max_restarts`: what has died is started again, all ranks together; what has ended for good is not."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.support.launched import SEVERAL, launched, launched_on_two_machines, wait_for

pytestmark = pytest.mark.slow

COUNTS = pytest.mark.parametrize("flags", [[], SEVERAL], ids=["one process", "two processes"])

# Takes a folder, and how each start ends: "wait,killed" is rank 0 that stops with 75 when it is asked to, and rank 1
# that is killed. A number is an exit code; "lost", what a rank does that notices the end of another one. All ranks have
# met before any of them ends. Each start of a rank leaves its process id and the id of the job.
ENDING = """
import datetime, os, pathlib, signal, sys, time

folder, *ways = sys.argv[1:]
rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
starts = pathlib.Path(folder, f"starts-{rank}")
with starts.open("a") as file:
    file.write(f"{os.getpid()} {os.environ.get('SST2_LAUNCH')}\\n")
if size > 1:
    from torch import distributed
    distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=30))
    distributed.barrier()
way = ways[len(starts.read_text().splitlines()) - 1].split(",")[rank - size]
if way == "wait":
    while True:
        time.sleep(0.1)
if way == "lost":
    distributed.barrier()
if way == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
os._exit(int(way))
"""

IMPATIENT = """
import sys

if "sst2.launch" in sys.orig_argv:
    from sst2.distributed import elastic_agent

    elastic_agent._SECONDS_TO_END = 2.0
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "script.py"
    file.write_text(ENDING)
    return file


def starts(script: Path, rank: int) -> list[list[str]]:
    """Process id and id of the job of each start of a rank."""
    file = script.parent / f"starts-{rank}"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def have_started(script: Path, flags: list[str], times: int) -> bool:
    return all(len(starts(script, rank)) == times for rank in range(2 if flags else 1))


def assert_started_together(script: Path, times: int, ranks: int = 2) -> None:
    told = [starts(script, rank) for rank in range(ranks)]
    assert [len(one) for one in told] == [times] * ranks
    assert len({job for one in told for _, job in one}) == 1  # for all starts of all ranks the same


@COUNTS
def test_what_has_died_is_started_again_until_it_has_finished(flags: list[str], script: Path) -> None:
    with launched(*flags, "--max_restarts", 5, script, script.parent, "wait,killed", "wait,1", "0,0") as process:
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said
    assert "SIGKILL: restart 1 of 5" in said
    assert "exit code 1: restart 2 of 5" in said
    assert_started_together(script, 3, ranks=2 if flags else 1)


@COUNTS
@pytest.mark.parametrize("code", [2, 3, 75])
def test_what_has_ended_for_good_is_not_started_again(flags: list[str], code: int, script: Path) -> None:
    with launched(*flags, "--max_restarts", 5, script, script.parent, "wait,killed", f"wait,{code}", "0,0") as process:
        said = process.communicate(timeout=120)[1]
    assert process.returncode == code, said
    assert have_started(script, flags, 2)


@COUNTS
@pytest.mark.parametrize("allowed", [0, 1])
def test_who_is_started_again_too_often_ends_by_what_killed_it(flags: list[str], allowed: int, script: Path) -> None:
    # Not with the 75 of the other rank, which torchrun has asked to end: SLURM would have the job come back for it.
    with launched(*flags, "--max_restarts", allowed, script, script.parent, *["wait,killed"] * 2) as process:
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 137, said
    assert have_started(script, flags, allowed + 1)


def test_a_number_that_cannot_be_is_refused(script: Path) -> None:
    with launched("--max_restarts", -1, script) as process:
        assert process.communicate(timeout=60)[1] == "sst2 launch: error: --max_restarts is -1: give 0 or more\n"
    assert process.returncode == 2


@COUNTS
def test_a_request_to_stop_is_heard_after_a_restart(flags: list[str], script: Path) -> None:
    with launched(*flags, "--max_restarts", 5, script, script.parent, *["wait,wait"] * 3) as process:
        wait_for(partial(have_started, script, flags, 1), process)
        os.kill(int(starts(script, 1 if flags else 0)[0][0]), signal.SIGKILL)
        wait_for(partial(have_started, script, flags, 2), process)
        process.terminate()
        assert process.wait(60) == 75
    assert have_started(script, flags, 2)


@COUNTS
def test_a_request_to_stop_takes_the_place_of_a_restart(flags: list[str], script: Path) -> None:
    # It reaches what is left of the ranks while they end, and who has lost another one cannot save.
    asked = script.parent / "asked"
    slowly = "lambda *_: pathlib.Path(folder, 'asked').touch() or time.sleep(3) or os._exit(1)"
    script.write_text(ENDING.replace("lambda *_: os._exit(75)", slowly))
    with launched(*flags, "--max_restarts", 5, script, script.parent, "wait,killed" if flags else "wait") as process:
        wait_for(lambda: bool(starts(script, 0)), process)
        if not flags:
            process.terminate()
        wait_for(asked.exists, process)
        process.terminate()
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 75, said
    assert "restart 1 of 5" not in said


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGINT])
def test_a_job_that_is_ended_by_hand_is_not_started_again(number: signal.Signals, script: Path) -> None:
    script.write_text(ENDING.replace("starts =", "signal.signal(signal.SIGINT, lambda *_: os._exit(130))\nstarts ="))
    with launched(*SEVERAL, "--max_restarts", 5, script, script.parent, "wait,wait") as process:
        wait_for(partial(have_started, script, SEVERAL, 1), process)
        process.send_signal(number)
        assert process.wait(60) == 128 + number
    assert have_started(script, SEVERAL, 1)


def test_ranks_that_start_again_do_not_take_the_addresses_of_those_before(script: Path) -> None:
    late = "if rank == 0 and len(starts.read_text().splitlines()) > 1:\n    time.sleep(2)\nif size > 1:"
    script.write_text(ENDING.replace("if size > 1:", late))
    with launched(*SEVERAL, "--max_restarts", 1, script, script.parent, "wait,killed", "0,0") as process:
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said


def test_a_request_to_stop_right_before_ranks_start_again_is_for_them(script: Path) -> None:
    launcher = """
import os, signal, sys
from sst2.cli.launch import main
from sst2.distributed.elastic_agent import RestartingAgent

def ask_first(self, group, rendezvous=RestartingAgent._rendezvous):
    rendezvous(self, group)
    if self._attempt == 1:
        os.kill(os.getpid(), signal.SIGTERM)

RestartingAgent._rendezvous = ask_first
main(sys.argv[1:])
"""
    command = [sys.executable, "-c", launcher, *SEVERAL, "--max_restarts", "5", str(script), str(script.parent)]
    done = subprocess.run([*command, "wait,killed", "wait,wait"], check=False, timeout=120, capture_output=True)
    assert done.returncode == 75, done.stderr


def test_a_rank_that_dies_while_the_agent_looks_is_told_from_those_that_it_takes_along(script: Path) -> None:
    # Within one call, the agent finds that rank 1 is dead and asks rank 0 to end, which says 75.
    script.write_text(
        ENDING.replace("    while True:", "    starts.with_name(f'waits-{rank}').touch()\n    while True:")
    )
    launcher = """
import os, signal, sys, time
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from sst2.cli.launch import main

def kill_first(self, group, monitor=LocalElasticAgent._monitor_workers):
    if self._attempt == 0 and all(os.path.exists(f"{sys.argv[-3]}/waits-{rank}") for rank in (0, 1)):
        process = self._pcontext.subprocess_handlers[1].proc
        process.kill()
        while process.poll() is None:
            time.sleep(0.01)
    return monitor(self, group)

LocalElasticAgent._monitor_workers = kill_first
main(sys.argv[1:])
"""
    command = [sys.executable, "-c", launcher, *SEVERAL, "--max_restarts", "5", str(script), str(script.parent)]
    done = subprocess.run([*command, "wait,wait", "0,0"], check=False, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sst2 launch: rank 1: SIGKILL: restart 1 of 5 of all ranks" in done.stderr


@pytest.mark.parametrize("ways", [("lost,killed", "wait,1", "0,0"), ("killed,wait", "1,lost", "0,0")])
def test_all_machines_start_again_together(ways: tuple[str, ...], script: Path) -> None:
    with launched_on_two_machines("--max_restarts", 5, script, script.parent, *ways) as machines:
        said = [one.communicate(timeout=180)[1] for one in machines]
    assert [one.returncode for one in machines] == [0, 0], said
    assert_started_together(script, 3)


@pytest.mark.parametrize("way", ["lost,2", "2,lost"])
def test_what_has_ended_for_good_on_one_machine_is_started_again_on_none(way: str, script: Path) -> None:
    with launched_on_two_machines("--max_restarts", 5, script, script.parent, way, "0,0") as machines:
        said = [one.communicate(timeout=180)[1] for one in machines]
    assert {one.returncode for one in machines} == {1, 2}, said
    assert_started_together(script, 1)


def test_a_machine_that_has_finished_starts_again_with_one_that_has_not(script: Path) -> None:
    with launched_on_two_machines("--max_restarts", 5, script, script.parent, "0,killed", "0,0") as machines:
        said = [one.communicate(timeout=180)[1] for one in machines]
    assert [one.returncode for one in machines] == [0, 0], said
    assert_started_together(script, 2)


@pytest.mark.parametrize("vanishing", [0, 1])
def test_a_machine_that_vanishes_is_not_waited_for_beyond_two_minutes(vanishing: int, script: Path) -> None:
    # The two minutes are two seconds here. Its rank goes with the launcher, and the other rank notices.
    (script.parent / "sitecustomize.py").write_text(IMPATIENT)
    met = "starts.with_name(f'met-{rank}').touch()\n"
    script.write_text(ENDING.replace('if way == "wait":', met + 'if way == "wait":'))
    words = ("--max_restarts", 5, script, script.parent, "lost,wait" if vanishing else "wait,lost", "0,0")
    with launched_on_two_machines(*words, PYTHONPATH=str(script.parent)) as machines:
        left, gone = machines[1 - vanishing], machines[vanishing]
        wait_for(lambda: all((script.parent / f"met-{rank}").exists() for rank in range(2)), *machines)
        gone.kill()
        os.kill(int(starts(script, vanishing)[0][0]), signal.SIGKILL)
        said = left.communicate(timeout=60)[1]
    assert left.returncode == 1, said
    line = "the launcher of machine 0 has ended" if vanishing == 0 else "1 of 2 machines have not said within 2 s"
    assert said.count("sst2 launch: ") == said.count(f"sst2 launch: {line}") == 1, said
    assert_started_together(script, 1)
