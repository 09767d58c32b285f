"""Let each call that changes a file of a run fail once, start the run again, and compare it with an undisturbed one.

    python benchmarks/faults.py --output benchmarks/results/faults.json

A small run is started in four ways: new, resumed, from another run's checkpoint, and over a finished run that it
replaces. A library between the process and libc (faults.c, compiled here with cc) counts the calls below the run's
folder: one of them fails with EIO or ENOSPC, writes half of its bytes, or is where the process is killed. Then the same
command must go on until it exits 0, with the weights and predictions of the run that nobody disturbed, and no
checkpoint may be half there at any time. All calls take hours; --sample tries some for each way and fault.

Exit code 0 if all of that holds.
"""

import argparse
import ctypes
import errno
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from sst2.checkpoints.folders import list_checkpoints
from sst2.config.arguments import PROGRAM, parse_arguments
from sst2.distributed.devices import processor
from sst2.distributed.stop_requests import StopRequests
from sst2.utils.checksums import DamagedFolderError, verify_folder
from sst2.utils.errors import OF_TRAINING, exit_codes, leave_at_once

HERE = Path(__file__).parent
LIBRARY = "SST2_FAULTS_LIBRARY"  # its place, in the environment of the process that has it preloaded
SECONDS = 120  # that a start may take
JOB = "--smoke --max_train_samples 96 --max_eval_samples 40 --max_train_steps 6 --global_batch_size 16"
JOB += " --eval_steps 2 --checkpointing_steps 1 --checkpoints_total_limit 2 --load_best_model_at_end --logging_steps 1"
KINDS = {"kill": 1, "short write": 2, "EIO": 3 + errno.EIO, "ENOSPC": 3 + errno.ENOSPC}  # as in faults.c
RESULTS = ("model/model.safetensors", "predictions.csv")  # not the logs, without which a run goes on


@dataclass
class Way:
    """A way to start a run.

    Attributes:
        flags: of the command, which is given again after a fault.
        before: what is in the run's folder then; None for nothing.
    """

    flags: list[str]
    before: Path | None = None


def main() -> None:
    """Measure, print the figures, and write them to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, help="calls for each way and fault, of many sorts; all if left out")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    if LIBRARY not in os.environ:
        start_with_library()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_DATASETS_CACHE"] = f"{folder}/cache"
        import train_sst2  # noqa: F401 (once, here: each start is a copy of this process)

        figures = try_all(Path(folder).resolve(), arguments.sample, random.Random(arguments.seed))
    shutil.rmtree(Path(os.environ[LIBRARY]).parent)
    sample = f" --sample {arguments.sample} --seed {arguments.seed}" if arguments.sample else ""
    figures = {
        "what": "One call that changes a file of a run failed, and the run started again, against the same run "
        "undisturbed",
        "command": f"python benchmarks/faults.py{sample}",
    } | figures
    print(json.dumps(figures, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    sys.exit(0 if figures["passed"] else 1)


def start_with_library() -> None:
    """Compile the library, and start this program again with it."""
    if shutil.which("cc") is None:
        sys.exit("faults.py: error: there is no C compiler, cc: install gcc or clang")
    library = Path(tempfile.mkdtemp()) / "faults.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(HERE / "faults.c")], check=True)
    os.environ |= {LIBRARY: str(library), "LD_PRELOAD": str(library), "PYTHONPATH": str(HERE.parent)}
    # One thread, on the CPU: other sums are not repeatable bit for bit.
    os.environ |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    os.execv(sys.executable, [sys.executable, *sys.argv])


def try_all(folder: Path, sample: int | None, chance: random.Random) -> dict[str, Any]:
    """Try every call, or a sample, in every way. Returns the figures."""
    started = time.monotonic()
    ways = prepare(folder)
    expected: dict[str, dict[str, str]] = {}
    calls: dict[str, int] = {}
    ends: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    failures = []
    for name, way in ways.items():
        changes = start(folder, way).calls
        calls[name], expected[name] = len(changes), results(folder / "run")
        for kind in KINDS:
            for number in draw(changes, kind, sample, chance):
                call, end, wrong = try_one(folder, way, number, kind, expected[name])
                ends[kind][end] += 1
                if wrong:
                    failures.append({"way": name, "fault": kind, "call": call, "end": end, "wrong": wrong})
                    print(failures[-1], file=sys.stderr, flush=True)
            print(f"{name}, {kind}: {sum(ends[kind].values())} so far", file=sys.stderr, flush=True)
    return {
        "passed": not failures and len({by_file[RESULTS[0]] for by_file in expected.values()}) == 1,
        "calls": calls,
        "faults": sum(sum(counted.values()) for counted in ends.values()),
        "ends": {kind: dict(counted) for kind, counted in ends.items()},
        "failures": failures,
        "sha256_undisturbed": expected,
        "seconds": round(time.monotonic() - started, 1),
        "machine": processor(),
        "cpu_count": os.cpu_count(),
    }


def draw(changes: list[str], kind: str, sample: int | None, chance: random.Random) -> list[int]:
    """Numbers of the calls to try, from 1: all that the fault can strike, or a sample of as many sorts as there are.

    Calls of one sort are those of one function to one file, whatever step or time is in its name.
    """
    numbers = [n for n, call in enumerate(changes, start=1) if kind != "short write" or call.startswith("write")]
    if sample is None:
        return numbers
    sorts: dict[str, list[int]] = {}
    for number in numbers:
        sorts.setdefault(re.sub(r"\d{2,}", "", changes[number - 1]), []).append(number)
    drawn = chance.sample(sorted(sorts), min(sample, len(sorts)))
    return sorted(chance.choice(sorts[name]) for name in drawn)


def prepare(folder: Path) -> dict[str, Way]:
    """Make the runs that the ways begin with, and `undisturbed`."""
    auto = ["--resume_from_checkpoint", "auto"]
    undisturbed = start(folder, Way(auto))
    if undisturbed.code != 0:
        raise RuntimeError(undisturbed.output)
    shutil.copytree(folder / "run", folder / "undisturbed")
    start(folder, Way(auto), 1 + next(n for n, call in enumerate(undisturbed.calls) if "step-00000004" in call), "kill")
    shutil.copytree(folder / "run", folder / "half-way")
    start(folder, Way(["--seed", "1"]))
    shutil.copytree(folder / "run", folder / "finished")
    checkpoint = list_checkpoints(folder / "half-way" / "checkpoints")[-1]
    return {
        "new": Way(auto),
        "resumed": Way(auto, folder / "half-way"),
        "from another run": Way(["--resume_from_checkpoint", str(checkpoint)]),
        "overwriting": Way(["--overwrite_output_dir"], folder / "finished"),
    }


@dataclass
class Started:
    """A start of a run: its exit code, what it said, and the calls that changed files, such as `mkdir /model`."""

    code: int
    output: str
    calls: list[str]


def start(folder: Path, way: Way, number: int = 0, kind: str = "kill", again: bool = False) -> Started:
    """Start the run `folder`/run, in a process whose `number`-th call fails, and wait for its end.

    Args:
        folder: of the run, its output and the list of its calls.
        way: to train.
        number: of the call that fails, from 1; none if 0.
        kind: of fault.
        again: whether the run stays as an earlier start has left it.
    """
    run, output, calls = folder / "run", folder / "output", folder / "calls"
    if not again:
        shutil.rmtree(run, ignore_errors=True)
        if way.before:
            shutil.copytree(way.before, run)
    process = os.fork()
    if process == 0:
        work(run, way.flags, output, lambda: begin(run, 0 if again else number, kind, calls))
    _, status = os.waitpid(process, 0)
    said = output.read_text(encoding="utf-8", errors="replace")
    changes = [line.split(" ", 1)[1] for line in calls.read_text(encoding="utf-8").splitlines()]
    return Started(os.waitstatus_to_exitcode(status), said, changes)


def begin(run: Path, number: int, kind: str, calls: Path) -> None:
    """Have the library count the calls of this process that touch the run from now on, and fail one of them."""
    library = ctypes.CDLL(os.environ[LIBRARY])
    library.faults_begin(os.fsencode(run), ctypes.c_long(number), KINDS[kind], os.fsencode(calls))


def work(run: Path, flags: list[str], output: Path, arm: Callable[[], None]) -> NoReturn:
    """Run the job in this process, a copy of one that has imported everything."""
    signal.alarm(SECONDS)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    from train_sst2 import main as train

    arm()
    try:
        with exit_codes(PROGRAM, 0, leave=leave_at_once, ways_out=OF_TRAINING):
            train(parse_arguments([*JOB.split(), *flags, "--output_dir", str(run)]), StopRequests())
    except SystemExit as end:
        leave_at_once(int(end.code or 0))
    finally:
        os._exit(1)


def try_one(folder: Path, way: Way, number: int, kind: str, expected: dict[str, str]) -> tuple[str, str, str]:
    """Let one call fail, and start again. Returns the call, how the first start ended, and what was wrong then."""
    struck = start(folder, way, number, kind)
    end = "killed" if struck.code == -signal.SIGKILL else f"exit code {struck.code}"
    if "Traceback" in struck.output:
        end += ", traceback"
    call = struck.calls[number - 1] if number <= len(struck.calls) else "none"  # threads may have fewer to do
    wrong = damaged(folder / "run")
    if struck.code not in (0, -signal.SIGKILL) and not (struck.code == 2 and "Traceback" not in struck.output):
        wrong += struck.output.splitlines()[-1:]
    if struck.code != 0:
        again = start(folder, way, again=True)
        if again.code != 0:
            return call, end, "; ".join([*wrong, f"again: exit code {again.code}", *again.output.splitlines()[-1:]])
    got = results(folder / "run")
    return call, end, "; ".join([*wrong, *(f"{name} differs" for name in expected if got[name] != expected[name])])


def damaged(run: Path) -> list[str]:
    """What is wrong with the run's checkpoints."""
    found = []
    for place in list_checkpoints(run / "checkpoints"):
        try:
            verify_folder(place)
        except DamagedFolderError as error:
            found.append(f"{place.name}: {error}")
    return found


def results(run: Path) -> dict[str, str]:
    """SHA-256 of what must not depend on faults; empty for a file that is not there."""
    files = {name: run / name for name in RESULTS}
    return {
        name: hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else "" for name, file in files.items()
    }


if __name__ == "__main__":
    main()
