"""`accelerate launch` with the signals and exit codes that a job needs which may be preempted.

    python -m sst2.launch [flags of accelerate launch] train_sst2.py [flags of the script]

It is the same launcher with the same flags, in this very process. Left to itself, it dies of SIGUSR1 and leaves its
processes behind, gives them 30 seconds after SIGTERM, passes nothing on to a single process, and turns every exit code
but 0 into 1. Here SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 go to every process that it started, they take the time that
they need, and their exit code becomes the launcher's. `--max_restarts` has no effect: who starts the job again also
chooses with how many processes.
"""

import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress
from types import FrameType

import psutil

from sst2.errors import EXIT_CODES, EXIT_FAILED, EXIT_STOPPED
from sst2.preemption import SIGNALS

_forwarded: set[int] = set()


def main(argv: list[str] | None = None) -> None:
    """Launch, forward signals, and exit as the processes did.

    Args:
        argv: flags of `accelerate launch`, the script, its flags; `sys.argv` if None.

    Raises:
        SystemExit: with the exit code of the process that ended first in failure; 128 + the signal if one killed it;
            75 if it was one of the forwarded signals, which strikes only a process that has not begun to listen.
    """
    for number in SIGNALS:
        signal.signal(number, _forward)
    # Only now, since they take seconds in which a signal may come.
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError

    # torchrun's own handlers for the others would give the processes 30 seconds. Read by its argument parser.
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGHUP,SIGQUIT"
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes speak for themselves
    arguments = launch_command_parser().parse_args(argv)
    arguments.quiet = False  # the quiet launcher of one process drops the exit code
    arguments.rdzv_conf = arguments.rdzv_conf or "timeout=300"
    arguments.max_restarts = 0  # it would start what has stopped on request once more
    try:
        launch_command(arguments)
    except subprocess.CalledProcessError as error:
        sys.exit(_exit_code(error.returncode))
    except (DistError, RendezvousError) as error:
        # of the launchers on several machines, before any process has started
        print(
            f"sst2.launch: error: not all machines have come ({error}): start the same command on each of them, with "
            "its --machine_rank and the --main_process_ip of machine 0; --rdzv_conf timeout=SECONDS waits longer",
            file=sys.stderr,
        )
        sys.exit(EXIT_FAILED)
    except ChildFailedError as error:
        code = _exit_code(error.get_first_failure()[1].exitcode)
        if code not in EXIT_CODES.values():  # those have said in one line what there is to say
            print(error, file=sys.stderr)
        sys.exit(code)


def _forward(number: int, frame: FrameType | None) -> None:
    _forwarded.add(number)
    workers = [child for child in psutil.Process().children() if _is_worker(child)]
    if not workers:  # nothing has begun, so nothing can be lost
        sys.exit(EXIT_STOPPED)
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.send_signal(number)


def _is_worker(child: psutil.Process) -> bool:
    """Whether it is one of the job's processes: accelerate also asks nvidia-smi before it starts them."""
    with suppress(psutil.Error):
        return not {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"}.isdisjoint(child.environ())
    return False


def _exit_code(code: int) -> int:
    if -code in _forwarded:
        return EXIT_STOPPED
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    main()
