"""The launcher passes signals on to its processes, waits for them, and ends as they do."""

import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.launched import SEVERAL, launched, launched_on_two_machines, wait_for

pytestmark = pytest.mark.slow

COUNTS = pytest.mark.parametrize("flags", [[], SEVERAL], ids=["one process", "two processes"])

LISTENING = """
import os, signal, sys, time
from pathlib import Path

rank, (folder, patience) = os.environ.get("RANK", "0"), sys.argv[1:]
def end(number, frame):
    Path(folder, f"got-{rank}").write_text(str(number))
    time.sleep(float(patience))
    Path(folder, f"saved-{rank}").touch()
    sys.exit(75)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGXCPU):
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, end)
Path(folder, f"ready-{rank}").touch()
while True:
    time.sleep(0.1)
"""


def test_a_configuration_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with launched("--config_file", tmp_path / "typo.yaml", "script.py") as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said == f"sst2 launch: error: --config_file {tmp_path}/typo.yaml does not exist: check its name\n"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--num_proceses", "2", "s.py"], "--num_proceses is not a flag, did you mean --num_processes?; --help lists"),
        (["--num_processes", "x", "s.py"], "argument --num_processes/--num-processes: invalid int value: 'x'"),
        (["--multi_gpu", "--num_processes", "1", "s.py"], "You need to use at least 2 processes"),
        (["absent.py"], "there is no script absent.py: give train_sst2.py with its path"),
        (["--config_file", "typo.yaml", "s.py"], "A `distributed_type` must be specified in the config file: correct "),
        ([], "the script is missing: give train_sst2.py behind the launcher's flags"),
        (["--config_file", "torn.yaml", "s.py"], "--config_file torn.yaml is not YAML: while parsing a flow sequence"),
        (["--config_file", "torn.json", "s.py"], "--config_file torn.json: Expecting property name enclosed in double"),
        (["--config_file", "words.yaml", "s.py"], "--config_file words.yaml: num_processes is 'two': give a number"),
        (["--config_file", "list.yaml", "s.py"], "--config_file list.yaml: it must hold lines of the form"),
        ([*SEVERAL, "--num_machines", "2", "s.py"], "--num_machines 2 needs --machine_rank: the number of this"),
        (["--mixed_precision", "fp8", "s.py"], "RuntimeError: FP8 is not available on this machine"),
    ],
)
def test_a_mistake_in_its_own_flags_is_one_line(
    flags: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.py").touch()
    (tmp_path / "typo.yaml").write_text("distribted_type: NO\n")
    (tmp_path / "torn.yaml").write_text("distributed_type: NO\nnum_processes: [2\n")
    (tmp_path / "torn.json").write_text('{"distributed_type": "NO",\n}')
    (tmp_path / "words.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: two\n")
    (tmp_path / "list.yaml").write_text("- NO\n")
    with launched(*flags) as process:
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 2, said
    assert said.startswith(f"sst2 launch: error: {line}")
    assert said.count("\n") == 1
    if flags[1:] and flags[1].startswith("torn"):
        assert " line 2" in said or " line 3" in said


@pytest.mark.parametrize(
    "flags",
    [[], ["--num_machines", "2", "--machine_rank", "0", "--main_process_ip", "127.0.0.1"]],
    ids=["one machine", "two machines"],
)
@pytest.mark.parametrize("is_heard", [True, False], ids=["listening", "bound"])
def test_a_port_that_is_taken_is_one_line(flags: list[str], is_heard: bool, tmp_path: Path) -> None:
    (tmp_path / "s.py").touch()
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        if is_heard:  # else nothing answers a question whether it is in use
            other.listen()
        port = other.getsockname()[1]
        with launched(*SEVERAL, *flags, "--main_process_port", port, tmp_path / "s.py") as process:
            said = process.communicate(timeout=120)[1]
    if is_heard and not flags:
        assert process.returncode == 0, said  # accelerate takes another one by itself
        return
    assert process.returncode == 2, said
    assert said.startswith(f"sst2 launch: error: port {port} of this machine is taken by another program: give another")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "is_flags"),
    [
        ("ImportError('DeepSpeed is not installed => run `pip3 install deepspeed`')", True),
        ("OSError('mpirun or mpiexec were not found')", True),
        ("OSError(28, 'No space left on device', '/tmp/x')", False),
        ("ModuleNotFoundError('No module named torch.distributed.run', name='torch.distributed.run')", False),
        ("RuntimeError('of torch')", False),
        ("KeyError('a bug')", False),
    ],
)
def test_what_no_flag_has_led_to_keeps_its_traceback(error: str, is_flags: bool, tmp_path: Path) -> None:
    (tmp_path / "s.py").touch()
    code = "import sys, sst2.cli.launch, accelerate.commands.launch as accelerates\n"
    code += f"def fail(_): raise {error}\n"
    code += "accelerates.launch_command = fail; sst2.cli.launch.main([sys.argv[1]])"
    command = [sys.executable, "-c", code, str(tmp_path / "s.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == (2 if is_flags else 1), done.stderr
    assert ("Traceback" in done.stderr) is not is_flags
    assert ("correct the flags" in done.stderr) is is_flags


@pytest.mark.parametrize("flags", [[], SEVERAL, ["--use_deepspeed", "--num_processes", "2"]])
def test_a_script_that_says_nothing_leaves_nothing_to_read(flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "s.py").touch()
    with launched(*flags, tmp_path / "s.py") as process:
        assert process.communicate(timeout=120)[1] == ""
    assert process.returncode == 0


def test_it_listens_before_its_long_imports(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("")
    with launched(tmp_path / "script.py") as process:
        folder = Path("/proc") / str(process.pid)

        def listens() -> bool:
            caught = re.search(r"^SigCgt:\s*(\w+)", (folder / "status").read_text(), re.MULTILINE)
            return caught is not None and bool(int(caught[1], 16) >> (signal.SIGUSR1 - 1) & 1)

        while not listens():
            assert process.poll() is None
            time.sleep(0.001)
        assert "libtorch" not in (folder / "maps").read_text()
        process.send_signal(signal.SIGUSR1)
        assert process.wait(30) == 75


@COUNTS
@pytest.mark.parametrize(
    ("ending", "code"),
    [("pass", 0), ("sys.exit(2)", 2), ("sys.exit(75)", 75), ("1 / 0", 1), ("os.kill(os.getpid(), 9)", 137)],
)
def test_the_exit_code_of_the_script_is_that_of_the_launcher(
    flags: list[str], ending: str, code: int, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import os, sys\n{ending}\n")
    with launched(*flags, script) as process:
        said = process.communicate(timeout=120)[1]
        assert process.returncode == code, said
    if code in (2, 75):
        assert "Traceback" not in said  # the script has said what there is to say
    if code == 1:
        assert "ZeroDivisionError" in said


@COUNTS
@pytest.mark.parametrize("wish", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGXCPU])
def test_a_signal_reaches_every_process(flags: list[str], wish: signal.Signals, tmp_path: Path) -> None:
    stop_when_ready(flags, wish, tmp_path, patience=0.5)


def test_processes_take_the_time_that_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # accelerate's own launcher kills after that many seconds, by default 30
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "1")
    stop_when_ready(SEVERAL, signal.SIGTERM, tmp_path, patience=4)


@COUNTS
def test_what_was_ignored_at_the_start_stays_ignored(flags: list[str], tmp_path: Path) -> None:
    ranks = range(2 if flags else 1)
    script = tmp_path / "script.py"
    script.write_text(LISTENING)
    with launched(*flags, script, tmp_path, 0, before=("nohup",)) as process:
        wait_for(lambda: all((tmp_path / f"ready-{rank}").exists() for rank in ranks), process)
        for hung_up in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
            hung_up.send_signal(signal.SIGHUP)  # which would come first
        process.terminate()
        assert process.wait(60) == 75
    assert [(tmp_path / f"got-{rank}").read_text() for rank in ranks] == [str(int(signal.SIGTERM)) for _ in ranks]


@COUNTS
def test_a_launcher_is_suspended_with_its_processes(flags: list[str], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(LISTENING)
    with launched(*flags, script, tmp_path, 0) as process:
        wait_for((tmp_path / f"ready-{len(flags) and 1}").exists, process)
        all_of_it = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(signal.SIGTSTP)  # Ctrl-Z
        wait_for(lambda: all(one.status() == psutil.STATUS_STOPPED for one in all_of_it), process)
        process.send_signal(signal.SIGCONT)
        wait_for(lambda: all(one.status() != psutil.STATUS_STOPPED for one in all_of_it), process)
        process.terminate()
        assert process.wait(60) == 75


@COUNTS
def test_to_quit_leaves_nobody_behind(flags: list[str], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(LISTENING)
    with launched(*flags, script, tmp_path, 0) as process:
        wait_for((tmp_path / f"ready-{len(flags) and 1}").exists, process)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGQUIT)
        assert process.wait(60) == 128 + signal.SIGQUIT
    assert not [child for child in children if child.is_running()]


def stop_when_ready(flags: list[str], wish: signal.Signals, folder: Path, patience: float) -> None:
    ranks = range(2 if flags else 1)
    script = folder / "script.py"
    script.write_text(LISTENING)
    with launched(*flags, script, folder, patience) as process:
        wait_for(lambda: all((folder / f"ready-{rank}").exists() for rank in ranks), process)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(wish)
        assert process.wait(120) == 75
    assert not [child for child in children if child.is_running()]
    assert [(folder / f"got-{rank}").read_text() for rank in ranks] == [str(int(wish)) for _ in ranks]
    assert all((folder / f"saved-{rank}").exists() for rank in ranks)


def test_a_signal_after_its_processes_have_ended(tmp_path: Path) -> None:
    # On one of two machines, while the other's still works: a launcher that left would have the other one wait for it.
    script = tmp_path / "script.py"
    script.write_text(
        "import os, pathlib, sys, time\n"
        "folder, rank = pathlib.Path(sys.argv[1]), os.environ['RANK']\n"
        "(folder / f'ready-{rank}').write_text(str(os.getpid()))\n"
        "while not (folder / f'end-{rank}').exists(): time.sleep(0.02)\n"
    )
    with launched_on_two_machines(script, tmp_path) as (first, second):
        for rank in range(2):
            wait_for((tmp_path / f"ready-{rank}").exists, first, second)
        (tmp_path / "end-1").touch()
        wait_for(lambda: not psutil.Process(second.pid).children(), first, second)
        second.send_signal(signal.SIGUSR1)
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(3)
        (tmp_path / "end-0").touch()
        assert (first.wait(60), second.wait(60)) == (0, 0)


def test_a_code_that_says_why_counts_more_than_that_of_who_was_left_alone(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, pathlib, sys, time\n"
        "folder, rank = pathlib.Path(sys.argv[1]), int(os.environ['RANK'])\n"
        "(folder / f'ready-{rank}').touch()\n"
        "while not (folder / 'end').exists(): time.sleep(0.02)\n"
        "sys.exit([1, 75][rank])\n"
    )
    with launched(*SEVERAL, script, tmp_path) as process:
        wait_for(lambda: all((tmp_path / f"ready-{rank}").exists() for rank in range(2)), process)
        launcher = psutil.Process(process.pid)
        launcher.suspend()  # so that it finds both at once
        (tmp_path / "end").touch()
        wait_for(lambda: all(child.status() == psutil.STATUS_ZOMBIE for child in launcher.children()), process)
        launcher.resume()
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 75, said


TOGETHER = """
import logging, sys, time
from pathlib import Path
from sst2.distributed.stop_requests import StopRequests
requests = StopRequests().listen()
import torch
from torch import distributed
from sst2.utils.errors import exit_codes, leave_at_once

logging.basicConfig(format="%(message)s", level=logging.INFO)
distributed.init_process_group("gloo")
rank = distributed.get_rank()
with exit_codes("script.py", rank, rank == 0, leave_at_once), requests.stop_explains_errors():
    distributed.all_reduce(torch.zeros(1))
    Path(sys.argv[1], f"ready-{rank}").touch()
    while rank == 1:  # which tokenizes, as it were
        time.sleep(0.05)
        requests.raise_if_stopped()
    distributed.all_reduce(torch.zeros(1))
"""


def test_a_stop_that_finds_ranks_in_different_places_is_a_stop(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(TOGETHER)
    with launched(*SEVERAL, script, tmp_path) as process:
        wait_for(lambda: all((tmp_path / f"ready-{rank}").exists() for rank in range(2)), process)
        process.terminate()
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 75, said
    assert "script.py: stopped by SIGTERM before training began; nothing is lost" in said
    assert "another process is gone" not in said
    assert "SIGTERM: stopping\n" in said  # after no step, and without a checkpoint


def test_a_signal_before_any_process_has_started(tmp_path: Path) -> None:
    # Beside a helper, as accelerate has one where it asks nvidia-smi, which is no process of the job.
    (tmp_path / "script.py").touch()
    code = "import os, signal, subprocess, sst2.cli.launch, accelerate.commands.launch as accelerates; "
    code += "subprocess.Popen(['sleep', '2']); "
    code += "accelerates.launch_command = lambda a: os.kill(os.getpid(), {0}); sst2.cli.launch.main(['{1}'])"
    for wish in (signal.SIGTERM, signal.SIGUSR1):
        command = [sys.executable, "-c", code.format(int(wish), tmp_path / "script.py")]
        assert subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 75
