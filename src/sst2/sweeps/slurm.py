"""A sweep as jobs of SLURM: an array of trials, an array of finals after it, and the tables after that.

All of it is in SLURM's queue when this ends, and nothing of it needs the machine that it was submitted from. Each task
is slurm/train.sh, which asks for its flags when it starts, and is preempted and requeued by itself.
"""

import json
import os
import shlex
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from sst2.distributed.stop_requests import SIGNALS
from sst2.sweeps.folder import SweepFolder
from sst2.sweeps.starts import FINALS, TRIALS, runs_left
from sst2.utils.atomic_file import write_json
from sst2.utils.errors import UserError, first_line

TABLES = "tables"
_JOBS = (TRIALS, FINALS, TABLES)


def submit(
    sweep: SweepFolder, project: Path, options: Sequence[str], at_once: int, say: Callable[[str], object]
) -> None:
    """Queue what is left of a sweep and not queued already.

    Args:
        sweep: from its folder, which all nodes see.
        project: has slurm/train.sh.
        options: of sbatch, for all jobs but their names.
        at_once: tasks of an array that run at the same time, at most.
        say: is told each job.

    Raises:
        UserError: sbatch refuses a job, or is not there. Jobs before it are queued; the same command queues the rest.
    """
    folder = Path(os.path.abspath(sweep.path))  # jobs may start elsewhere
    with sweep.locked(), _signals_wait():
        jobs = _Jobs(folder / "jobs.json")
        before = ""
        for stage in (TRIALS, FINALS):
            if job := jobs.queued.get(stage, ""):
                say(f"{stage}: queued already, as job {job}")
                jobs.have_wait(job, before)
            elif left := runs_left(sweep, stage):
                output = f"--output={folder}/logs/{stage}-%A_%a.out"
                command = [f"--array={_numbers(left)}%{at_once}", output, *options, *_after(before), "--export=ALL"]
                command.append(str(project / "slurm" / "train.sh"))
                job = jobs.submit(stage, command, os.environ | {"SST2_SWEEP": str(folder / stage)})
                say(f"{stage}: job {job}, {len(left)} runs, {at_once} at once")
            before = job or before
        if job := jobs.queued.get(TABLES, ""):
            say(f"{TABLES}: queued already, as job {job}")
            jobs.have_wait(job, before)
            return
        write = shlex.join([str(project / "slurm" / "python.sh"), "-m", "sst2.sweep", str(folder), "--tables"])
        one = ["--array=", "--nodes=1", "--ntasks=1", "--time=00:15:00", "--requeue", f"--wrap={write}"]
        output = f"--output={folder}/logs/{TABLES}-%j.out"
        command = [output, *options, *_after(before), "--export=ALL", *one]
        say(f"{TABLES}: job {jobs.submit(TABLES, command, os.environ)}, which writes {sweep.path / 'results.md'}")


class _Jobs:
    """The jobs of a sweep in the queue, whoever has queued them, found by names that no other job has.

    The names are written down before the first job is queued. Numbers would be too late, where this process is killed
    while sbatch answers; and SLURM gives a number again, when it has counted to the last.

    Args:
        file: of the names.

    Attributes:
        queued: the number of each job that waits or runs, by what it does.

    Raises:
        UserError: the file cannot be read, or the controller does not answer. To queue a job then may be to queue it
            twice.
    """

    def __init__(self, file: Path) -> None:
        self._names = _names(file)
        names = ",".join(self._names.values())
        plain = {one: value for one, value in os.environ.items() if not one.startswith("SQUEUE_")}
        done = _run(["squeue", "--noheader", "--format=%F %j", f"--name={names}"], plain)
        if done.returncode:
            said = first_line(ValueError(done.stderr))
            raise UserError(f"squeue does not say what of the sweep is queued ({said}): give the same command later")
        numbers = {name: number for number, name in map(str.split, done.stdout.splitlines())}
        self.queued = {what: numbers[name] for what, name in self._names.items() if name in numbers}

    def have_wait(self, job: str, before: str) -> None:
        """Have a job that waits in the queue wait for another one as well, which may have been queued just now."""
        if before:
            _run(["scontrol", "update", f"JobId={job}", f"Dependency=afterany:{before}"], os.environ)  # not if it runs

    def submit(self, what: str, options: list[str], environment: Mapping[str, str]) -> str:
        """Queue a job, and return its number. Its name counts, whatever the options say."""
        last = len(options) - (what != TABLES)  # the script stands at the end
        named = [*options[:last], f"--job-name={self._names[what]}", *options[last:]]
        done = _run(["sbatch", "--parsable", *named], environment)
        if done.returncode:
            said = first_line(ValueError(done.stderr))
            raise UserError(f"sbatch does not take the {what} of the sweep ({said}): the same command tries again")
        return done.stdout.strip().split(";")[0]  # on a federation, the cluster's name follows


def _names(file: Path) -> dict[str, str]:
    """The names of a sweep's jobs by what they do; made and written down by the first call."""
    try:
        written = json.loads(file.read_text(encoding="utf-8"))
        names = {what: str(written[what]) for what in _JOBS}
        for what, name in names.items():
            if not name.startswith(_prefix(what)):  # development versions wrote numbers of jobs
                raise ValueError(f"{name} is no name of a job of {what}")
        return names
    except FileNotFoundError:
        own = uuid.uuid4().hex[:8]
        names = {what: f"{_prefix(what)}{own}" for what in _JOBS}
        write_json(file, names)
        return names
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{file} cannot be read ({first_line(error)}): end the sweep's jobs by scancel, and remove it"
        ) from None


def _prefix(what: str) -> str:
    return f"sweep-{what}-"


def _run(command: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not here: --slurm is for the login node of a cluster") from None


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Keep Ctrl-C, and a terminal that closes, from coming between two jobs that need each other."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # which sbatch inherits
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _after(job: str) -> list[str]:
    """The option to start when a job has ended, well or not. A task that is requeued has not ended."""
    return [f"--dependency=afterany:{job}"] if job else []


def _numbers(left: list[int]) -> str:
    """As --array has them: `0-7`, or `0,3,5`."""
    is_range = left == list(range(left[0], left[-1] + 1))
    return f"{left[0]}-{left[-1]}" if is_range and len(left) > 1 else ",".join(map(str, left))
