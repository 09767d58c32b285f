"""`accelerate launch` with the signals and exit codes that a job needs which may be preempted.

    sst2 launch [flags of accelerate launch] train_sst2.py [flags of the script]

It is the same launcher with the same flags, in this very process. Left to itself, it dies of SIGUSR1 and leaves its
processes behind, gives them 30 seconds after SIGTERM, passes nothing on to a single process, dies of SIGHUP in spite of
nohup, turns every exit code but 0 into 1, and answers a mistake in its flags with pages. Here a mistake is one line, no
notice says which flags were left out (the run's first line says what they have come to), and a signal that asks the job
to stop, or to quit, goes to every process that it started, they take the time that they need, and their exit code
becomes the launcher's.

With `--max_restarts N`, processes that have died are started again, all of them together, up to N times, and go on with
the run that this job has begun. What has finished, stopped on request, diverged or was refused is not started again.
"""

import argparse
import copy
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from traceback import walk_tb
from types import FrameType
from typing import Any, NoReturn

import psutil
import yaml

from sst2.config.command_line import flag_hint, mistake_in_words
from sst2.config.launcher import LAUNCH
from sst2.config.yaml_file import mistakes_of
from sst2.distributed.stop_requests import SIGNALS, is_ignored
from sst2.utils.console import restrain_deepspeed, standard_output
from sst2.utils.errors import (
    EXIT_CODES,
    EXIT_FAILED,
    EXIT_STOPPED,
    EXIT_USER_ERROR,
    UserError,
    first_line,
    print_error,
    print_line,
    quoted,
)

PROGRAM = "sst2 launch"
_WORKER_VARIABLES = {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"}  # one of them is in each worker's environment
_OF_MACHINES = {
    "machine_rank": "the number of this machine, from 0",
    "main_process_ip": "the address of machine 0, the same on all machines",
}
_forwarded: set[int] = set()
_begun = threading.Event()  # set when the first worker is about to start


def main(argv: list[str] | None = None) -> None:
    """Launch, forward signals, and exit as the processes did.

    Args:
        argv: flags of `accelerate launch`, the script, its flags; `sys.argv` if None.

    Raises:
        SystemExit: with the exit code of the process that ended first in failure, where another one that ended with it
            says no more; 128 + the signal if one killed it; 75 if it was a forwarded request to stop, which strikes
            only a process that has not begun to listen.
    """
    sys.addaudithook(_watch_for_workers)
    for number in (*SIGNALS, signal.SIGQUIT):
        if not is_ignored(number):
            signal.signal(number, _forward)
    if not is_ignored(signal.SIGTSTP):
        signal.signal(signal.SIGTSTP, _suspend)
    restrain_deepspeed()
    # Only now, since they take seconds in which a signal may come.
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.launcher import api

    from sst2.distributed.elastic_agent import RestartingAgent

    # There is no other way to have torchrun take another agent than its own.
    agent = partial(RestartingAgent, is_stopping=lambda: bool(_forwarded), started=_forward_again)
    vars(api)["LocalElasticAgent"] = agent
    # None by torchrun's own handlers, which give the processes 30 seconds, and are set even for a signal that nohup has
    # had ignored. Read by its argument parser.
    os.environ["PET_SIGNALS_TO_HANDLE"] = ""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes speak for themselves
    # accelerate's on values that were not passed, and torchrun's on threads, of which each process decides itself
    logging.getLogger("accelerate.commands.launch").addFilter(lambda record: "not passed" not in record.getMessage())
    logging.getLogger("torch.distributed.run").addFilter(lambda record: "OMP_NUM" not in record.getMessage())
    try:
        arguments = launcher_arguments(argv)
    except UserError as error:
        _refuse(str(error))
    arguments.quiet = False  # the quiet launcher of one process drops the exit code
    arguments.rdzv_conf = arguments.rdzv_conf or "timeout=300"
    try:
        _launch(arguments)
    except subprocess.CalledProcessError as error:
        sys.exit(_exit_code(error.returncode))
    except (DistError, RendezvousError) as error:
        # of the launchers' meeting, before any process has started
        if "EADDRINUSE" in str(error):
            _refuse_port(error)
        print_line(
            f"{PROGRAM}: error: not all machines have come ({error}): start the same command on each of them, with "
            "its --machine_rank and the --main_process_ip of machine 0, where no other program may have the "
            "--main_process_port; --rdzv_conf timeout=SECONDS waits longer"
        )
        sys.exit(EXIT_FAILED)
    except ChildFailedError as error:
        code = _exit_code_of(list(error.failures.values()))
        if code not in EXIT_CODES.values():  # those have said in one line what there is to say
            print(error, file=sys.stderr)
        sys.exit(code)
    except Exception as error:
        if _begun.is_set() or not _is_of_flags(error):
            raise
        if isinstance(error, ConnectionError):
            _refuse_port(error)
        file = config_file(arguments)
        place = f"{file}, or the flags" if file else "the flags"
        print_error(error, f"{PROGRAM}: error: {first_line(error).rstrip('.')}: correct {place} before the script")
        sys.exit(EXIT_USER_ERROR)


def _is_of_flags(error: Exception) -> bool:
    """Whether the launchers say it of flags and files that do not go together, or of what these ask a machine for.

    They raise errors of Python's own kinds for it, in words of their own: without the number or name that the system's
    and the imports' have. The rest is no mistake of the user's.
    """
    if isinstance(error, OSError | ImportError):
        return (error.errno if isinstance(error, OSError) else error.name) is None
    *_, (frame, _) = walk_tb(error.__traceback__)
    is_of_accelerate = str(frame.f_globals["__name__"]).startswith("accelerate.")
    return isinstance(error, ValueError) or (type(error) is RuntimeError and is_of_accelerate)


def _refuse_port(error: Exception) -> NoReturn:
    """Where the launchers would meet, another program listens: accelerate's question finds out, or torch's attempt."""
    port = re.search(r"port:? `?(\d+)", str(error))
    _refuse(
        f"port {port[1] if port else ''} of this machine is taken by another program: give another "
        "--main_process_port, the same on all machines, or 0 on a single one, for any that is free"
    )


def config_file(arguments: argparse.Namespace) -> str:
    """The file that accelerate takes flags from: `--config_file`, else what `accelerate config` has left, if it has."""
    from accelerate.commands.config.config_args import default_config_file

    if arguments.config_file or arguments.cpu:  # with which accelerate looks for no other
        return arguments.config_file or ""
    return default_config_file if os.path.isfile(default_config_file) else ""


def launcher_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of `accelerate launch`, the script and its flags, by accelerate's own parser.

    Raises:
        UserError: a flag, a value, a file or a script that cannot be.
    """
    from accelerate.commands.launch import launch_command_parser

    def refuse(message: str) -> NoReturn:
        if "required: training_script" in message:
            raise UserError("the script is missing: give train_sst2.py behind the launcher's flags")
        raise UserError(mistake_in_words(message, partial(flag_hint, flags=flags)))

    parser = launch_command_parser()
    flags = [action.dest for action in parser._actions if action.option_strings]
    vars(parser)["error"] = refuse  # which prints its usage, of some hundred lines, and ends the process
    parser.prog = PROGRAM
    arguments: argparse.Namespace = parser.parse_args(argv)
    script = arguments.training_script
    if arguments.config_file and not os.path.isfile(arguments.config_file):
        raise UserError(f"--config_file {arguments.config_file} does not exist: check its name")
    if file := config_file(arguments):
        name = f"--config_file {file}" if arguments.config_file else file
        _require_settings(file, name, [action.dest for action in parser._actions if action.type is int])
    elif (arguments.num_machines or 1) > 1:  # of which a file has defaults
        for flag in ("machine_rank", "main_process_ip"):
            if getattr(arguments, flag) is None:
                raise UserError(f"--num_machines {arguments.num_machines} needs --{flag}: {_OF_MACHINES[flag]}")
    if arguments.max_restarts < 0:
        raise UserError(f"--max_restarts is {arguments.max_restarts}: give 0 or more")
    if not (arguments.module or arguments.no_python or os.path.isfile(script)):
        raise UserError(f"there is no script {script}: give train_sst2.py with its path, behind the launcher's flags")
    return arguments


def _require_settings(file: str, name: str, numbers: list[str]) -> None:
    """Raises UserError, which calls the file `name`: it is no YAML (or JSON), or has something else for a number."""
    with mistakes_of(name):
        text = Path(file).read_text(encoding="utf-8")
        settings = json.loads(text) if file.endswith(".json") else yaml.safe_load(text)
        if not isinstance(settings, dict):
            raise ValueError("it must hold lines of the form 'num_processes: 2'")
        for number in numbers:
            if not isinstance(value := settings.get(number), int | None):
                raise ValueError(f"{number} is {quoted(value)}: give a number, without quotation marks")


def _refuse(message: str) -> NoReturn:
    print_line(f"{PROGRAM}: error: {message}")
    sys.exit(EXIT_USER_ERROR)


def _launch(arguments: argparse.Namespace) -> None:
    """`accelerate launch`. torchrun's agent sees to restarts of several processes; those of a single one are made here.

    Raises:
        CalledProcessError: the single process has failed.
        ChildFailedError: one of several has.
    """
    from accelerate.commands.launch import launch_command

    from sst2.distributed.elastic_agent import can_help, in_words

    os.environ[LAUNCH] = uuid.uuid4().hex if arguments.max_restarts else ""  # not that of a job which has started this
    for restart in range(1, arguments.max_restarts + 1):
        try:
            launch_command(copy.deepcopy(arguments))
            return
        except subprocess.CalledProcessError as error:
            if not can_help(error.returncode):
                raise
            if _forwarded:  # whoever starts the job again goes on as after any other stop
                sys.exit(EXIT_STOPPED)
            print_line(f"{PROGRAM}: {in_words(error.returncode)}: restart {restart} of {arguments.max_restarts}")
    launch_command(arguments)


def _forward(number: int, _: FrameType | None) -> None:
    _forwarded.add(number)
    if _send(number):
        return
    if not _begun.is_set():  # so nothing can be lost
        sys.exit(_exit_code(-number))
    # The workers have ended, and their exit codes are what counts: a launcher that left now would have those of the
    # other machines wait for it. Or the first one starts in this very moment.
    again = threading.Timer(1.0, _send, (number,))
    again.daemon = True
    again.start()


def _forward_again() -> None:
    """What came before these workers had started is for them as well."""
    for number in sorted(_forwarded):
        _send(number)


def _suspend(_number: int, _frame: FrameType | None) -> None:
    """Stand still, with all processes, until SIGCONT: those of torchrun have no terminal that would stop them."""
    _send(signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)
    _send(signal.SIGCONT)


def _send(number: int) -> bool:
    """Send a signal to all workers. Returns whether there were any."""
    workers = [child for child in psutil.Process().children() if _is_worker(child)]
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.send_signal(number)
    return bool(workers)


def _watch_for_workers(event: str, arguments: tuple[Any, ...]) -> None:
    """Hear from Python itself of the processes that it starts: whether there have been any cannot be seen later."""
    if event == "subprocess.Popen" and _is_of_worker(arguments[3] or ()):
        _begun.set()


def _is_worker(child: psutil.Process) -> bool:
    """Whether it is one of the job's processes: accelerate also asks nvidia-smi before it starts them."""
    with suppress(psutil.Error):
        return _is_of_worker(child.environ())
    return False


def _is_of_worker(environment: Iterable[str]) -> bool:
    return not _WORKER_VARIABLES.isdisjoint(environment)


def _exit_code_of(failures: list[Any]) -> int:
    """Of processes that have ended at once, by torchrun's records of them: a code that says why, before a mere 1."""
    codes = [_exit_code(failure.exitcode) for failure in sorted(failures, key=lambda failure: failure.timestamp)]
    return next((code for code in codes if code in EXIT_CODES.values() and code != EXIT_FAILED), codes[0])


def _exit_code(code: int) -> int:
    if -code in _forwarded and -code in SIGNALS:
        return EXIT_STOPPED
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    with standard_output():
        main()
