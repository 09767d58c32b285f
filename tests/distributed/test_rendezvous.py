"""A job whose processes are not all there, or cannot add up, says so at once and in one line."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from sst2.checkpoints.free_space import require_free_space
from sst2.config.flag_groups import Precision
from sst2.config.launcher import Launcher, read_launcher
from sst2.config.settings import Settings
from sst2.distributed import rendezvous as rendezvous_module
from sst2.distributed.init import _agree_on_precision, check_world_size, init_distributed
from sst2.distributed.rendezvous import all_reduce_check, rendezvous, word_of_main
from sst2.utils.errors import LocalError, LostProcessError, UserError
from sst2.utils.waiting import RunningTime
from tests.support.processes import CONTEXT, free_port
from tests.support.running import REPOSITORY


@pytest.fixture
def launcher() -> Launcher:
    """What a process without a launcher reads, but for a port of its own."""
    return replace(read_launcher(), master=("127.0.0.1", free_port()))


def rank_of(launcher: Launcher, rank: int, world_size: int, local_world_size: int) -> Launcher:
    return replace(launcher, rank=rank, world_size=world_size, local_world_size=local_world_size)


def call(launcher: Launcher, timeout: float, answers: object) -> None:
    """Answers the roll call; the outcome goes into a queue."""
    try:
        store = rendezvous(launcher, timeout)
        answers.put((launcher.rank, None))  # type: ignore[attr-defined]
        time.sleep(3)
        del store  # which rank 0 has kept for the others until now
    except LostProcessError as error:
        answers.put((launcher.rank, str(error)))  # type: ignore[attr-defined]


def outcomes(launchers: Sequence[Launcher], timeout: float) -> dict[int, str | None]:
    answers = CONTEXT.Queue()
    processes = [CONTEXT.Process(target=call, args=(launcher, timeout, answers)) for launcher in launchers]
    for process in processes:
        process.start()
    said = dict(answers.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    return said


def hear(launcher: Launcher, answers: object) -> None:
    store = rendezvous(launcher, 30)
    answers.put(word_of_main(launcher, store, lambda: f"of rank {launcher.rank}"))  # type: ignore[attr-defined]
    time.sleep(3)
    del store  # which rank 0 has kept for the others until now


def test_all_ranks_hear_the_word_of_the_first(launcher: Launcher) -> None:
    answers = CONTEXT.Queue()
    ranks = [CONTEXT.Process(target=hear, args=(rank_of(launcher, rank, 3, 3), answers)) for rank in range(3)]
    for process in ranks:
        process.start()
    assert [answers.get(timeout=60) for _ in ranks] == ["of rank 0"] * 3
    for process in ranks:
        process.join()
    assert word_of_main(launcher, None, lambda: "alone") == "alone"


def choose(launcher: Launcher, asked: Precision | None, answers: object) -> None:
    store = rendezvous(launcher, 10)
    try:
        said: str = _agree_on_precision(Settings(mixed_precision=asked), launcher, store, lambda: None)[0]
    except LocalError as error:
        said = str(error)
    answers.put((launcher.rank, said))  # type: ignore[attr-defined]
    time.sleep(3)
    del store


@pytest.mark.parametrize(("first", "second"), [("no", "auto"), ("auto", "no"), ("bf16", None), ("bf16", "bf16")])
def test_ranks_that_are_asked_for_different_precisions_are_told_apart(
    first: Precision, second: Precision | None, launcher: Launcher
) -> None:
    answers = CONTEXT.Queue()
    ranks = [rank_of(launcher, rank, 2, 2) for rank in range(2)]
    processes = [
        CONTEXT.Process(target=choose, args=(rank, asked, answers))
        for rank, asked in zip(ranks, (first, second), strict=True)
    ]
    for process in processes:
        process.start()
    said = dict(answers.get(timeout=60) for _ in ranks)
    for process in processes:
        process.join()
    assert said[0] in ("no", "bf16")
    if first == second:
        assert said[1] == said[0]
    else:
        expected = f"is {second or 'left out'}, of rank 0 {first}: start all ranks with the same flags"
        assert said[1] == f"--mixed_precision of rank 1 on {socket.gethostname()} {expected}"


def test_all_who_come_are_let_through(launcher: Launcher) -> None:
    assert outcomes([rank_of(launcher, rank, 3, 3) for rank in range(3)], 30) == dict.fromkeys(range(3))
    rendezvous(rank_of(launcher, 0, 1, 1), 0)  # one alone waits for nobody


def test_those_who_do_not_come_are_named_by_one(launcher: Launcher) -> None:
    began = time.monotonic()
    said = outcomes([rank_of(launcher, rank, 5, 2) for rank in (0, 1, 4)], 2)
    assert time.monotonic() - began < 30
    assert said[1] == said[4] == ""
    assert str(said[0]).startswith("2 of 5 processes have not come in 2 s: rank 2, 3 (node 1): its own output")


def test_nobody_where_the_first_should_be(launcher: Launcher, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LostProcessError, match=rf"rank 1 on .*: nobody answers at 127.0.0.1:{launcher.master[1]}"):
        rendezvous(rank_of(launcher, 1, 2, 2), 0.5)
    assert capfd.readouterr().err == ""  # torch's own client would have filled a page


def meet_a_store_that_is_stopped(launcher: Launcher, output: Path) -> None:
    os.dup2(os.open(output, os.O_CREAT | os.O_WRONLY), 2)
    rendezvous_module._LEEWAY = 1.0
    rendezvous(launcher, 1)


def test_a_store_that_has_stopped_to_answer_keeps_nobody(launcher: Launcher, tmp_path: Path) -> None:
    answers = CONTEXT.Queue()
    keeper = CONTEXT.Process(target=call, args=(rank_of(launcher, 0, 3, 3), 60, answers))
    keeper.start()
    rendezvous_module._wait_for_server(*launcher.master, timeout=60, clock=RunningTime())
    os.kill(keeper.pid, signal.SIGSTOP)  # type: ignore[arg-type]
    try:
        second = rank_of(launcher, 1, 3, 3)
        other = CONTEXT.Process(target=meet_a_store_that_is_stopped, args=(second, tmp_path / "said"))
        other.start()
        other.join(60)
        assert other.exitcode == 1
    finally:
        other.kill()
        keeper.kill()
    place = f"127.0.0.1:{launcher.master[1]} (MASTER_ADDR, MASTER_PORT), where rank 0 should be"
    assert (
        f"error: rank 1 on {socket.gethostname()}: the process at {place}, does not" in (tmp_path / "said").read_text()
    )


def add_up(rank: int, world_size: int, port: int, timeout: float, output: Path) -> None:
    """Joins a process group of real ranks; the last one joins and is not heard of any more, where time is short."""
    os.dup2(os.open(output / str(rank), os.O_CREAT | os.O_WRONLY), 2)
    meeting = replace(read_launcher(), master=("127.0.0.1", port), rank=rank, world_size=world_size)
    launcher = replace(meeting, local_world_size=world_size)
    with all_reduce_check(launcher, rendezvous(launcher, 30), timeout) as add:
        torch.distributed.init_process_group(
            "gloo", f"tcp://127.0.0.1:{port}", timedelta(seconds=60), rank=rank, world_size=world_size
        )
        if rank == world_size - 1 and timeout < 30:
            time.sleep(60)
        add(torch.device("cpu"))
    os._exit(0)


@pytest.mark.parametrize("timeout", [60.0, 3.0])
def test_a_first_sum_shows_who_does_not_answer(timeout: float, tmp_path: Path) -> None:
    port = free_port()
    processes = [CONTEXT.Process(target=add_up, args=(rank, 3, port, timeout, tmp_path)) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    said = [line for rank in range(3) for line in (tmp_path / str(rank)).read_text().splitlines() if "error: " in line]
    if timeout > 30:
        assert [process.exitcode for process in processes] == [0, 0, 0]
        assert said == []
    else:
        assert [process.exitcode for process in processes] == [1, 1, 1]
        assert len(said) == 1, said
        # on a busy machine, one of the others may have been late as well
        assert f"rank 2 on {socket.gethostname()}: not come to the first sum in 3 s: is every node reached" in said[0]


def test_a_promise_is_kept() -> None:
    check_world_size(1, 1)
    check_world_size(2, 2)
    with pytest.raises(UserError, match="the launcher promised 2 processes, but 1 works together: start them with"):
        check_world_size(2, 1)


SCRIPT = str(REPOSITORY / "train_sst2.py")


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--cpu", "--num_processes", "2"], ["--config_file", "{tmp}/multi_cpu.yaml"]])
def test_a_launcher_that_starts_one_process_for_two_is_found_out(flags: list[str], tmp_path: Path) -> None:
    text = (REPOSITORY / "accelerate_configs" / "multi_cpu.yaml").read_text()
    (tmp_path / "multi_cpu.yaml").write_text(text.replace("MULTI_GPU", "MULTI_CPU"))
    command = [str(Path(sys.executable).with_name("accelerate")), "launch", "-q"]
    command += [flag.format(tmp=tmp_path) for flag in flags]
    done = subprocess.run(
        [*command, SCRIPT, "--smoke", "--output_dir", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in done.stderr.splitlines() if "error: " in line]
    assert len(errors) == 1, done.stderr
    assert "the launcher promised several processes, but 1 works together" in errors[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("machine", [0, 1])
def test_a_machine_that_is_missing_is_asked_for_by_the_other(machine: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sst2.launch", "--multi_gpu", "--num_machines", "2", "--num_processes", "2"]
    command += [
        "--machine_rank",
        str(machine),
        "--main_process_ip",
        "127.0.0.1",
        "--main_process_port",
        str(free_port()),
    ]
    command += ["--rdzv_conf", "timeout=3", SCRIPT, "--smoke", "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("sst2 launch: error: not all machines have come (")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("variables", "flags", "complaint"),
    [
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, {}, "FSDP needs a GPU: on CPUs accelerate would leave"),
        ({"ACCELERATE_USE_FSDP": "true"}, {"gradient_compression": "bf16"}, "--gradient_compression is not for FSDP"),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_USE_CPU": "true"},
            {},
            "accelerate has no DeepSpeed with use_",
        ),
    ],
)
def test_what_the_host_cannot_run_is_refused(
    variables: dict[str, str], flags: dict[str, str], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=complaint):
        init_distributed(Settings(**flags))  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_rank_that_does_not_start_ends_the_job_in_seconds(tmp_path: Path) -> None:
    began = time.monotonic()
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    done = subprocess.run(
        [sys.executable, SCRIPT, "--smoke", "--connect_timeout", "2", "--output_dir", str(tmp_path / "run")],
        env=os.environ | place | {"RANK": "0", "WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("train_sst2.py: error: 1 of 2 processes have not come in 2 s: rank 1 (node 1): ")
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_a_rank_that_stands_still_from_the_start_is_named(tmp_path: Path) -> None:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}
    command = [sys.executable, SCRIPT, "--smoke", "--connect_timeout", "20", "--output_dir", str(tmp_path / "run")]
    ranks = [
        subprocess.Popen(
            command,
            env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    time.sleep(0.5)
    ranks[1].send_signal(signal.SIGSTOP)
    said = ranks[0].communicate(timeout=90)[1]
    ranks[1].kill()
    ranks[1].communicate()
    assert ranks[0].returncode == 1
    assert said.count("error: ") == 1
    assert "rank 1" in said


def test_room_on_the_disk_is_required_before_it_is_needed(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    require_free_space(tmp_path, tmp_path / "not" / "there" / "yet", free // 2)
    with pytest.raises(
        UserError, match=rf"--output_dir {tmp_path}/run has \d+ MiB free and the run will write \d+: make"
    ):
        require_free_space(tmp_path / "run", tmp_path / "run" / "checkpoints", 2 * free)
    assert list(tmp_path.iterdir()) == []
