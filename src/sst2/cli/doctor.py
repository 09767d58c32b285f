"""What this machine, or this job's machines, can do, and what stands in the way of a run.

    python -m sst2.doctor                                       # here
    accelerate launch ... -m sst2.doctor --folder runs          # on all processes of a launcher, their wires included
    srun ... python -m sst2.launch ... -m sst2.doctor

Prints one table with advice. Exit code 0, or 2 when a run would fail.
"""

import importlib.metadata
import os
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from packaging.requirements import Requirement
from torch import distributed

from sst2.config.launcher_variables import is_reporting_process, process_rank
from sst2.config.one_line_parser import OneLineParser
from sst2.config.settings import DEFAULT_MODEL, Settings
from sst2.data.hub import TIMEOUT, answer_in_time, in_words
from sst2.distributed.devices import processor
from sst2.distributed.init import init_distributed
from sst2.distributed.launcher import read_launcher
from sst2.distributed.precision import choose_precision
from sst2.utils.console import say, standard_output
from sst2.utils.errors import EXIT_USER_ERROR, UserError, exit_codes, leave_at_once
from sst2.utils.file_system import FEATURES, fsync, missing_features

PACKAGES = "torch accelerate transformers datasets evaluate scikit-learn scipy tensorboard deepspeed".split()
BASE_PARAMETERS = 66_955_010  # of DistilBERT-base with its head
RUN_BYTES = 4 * 3 * 4 * BASE_PARAMETERS  # weights and two moments, for the checkpoints that stand beside each other
WITHOUT = {
    "fsync of folders": "runs go on without; after a crash of the host, the newest checkpoint may be missing",
    "mode bits": "runs go on without; who may read the weights is decided by the mount",
    "locks": "two jobs in one folder would not notice each other: mount with flock",
}
SMALL_SUM, LARGE_SUM = 1, 1 << 24  # float32 numbers: the time to answer, and the bandwidth


@dataclass(frozen=True)
class Check:
    """One line of the table. `verdict` is `ok`, `note` or `BAD`, of which the last would make a run fail."""

    what: str
    value: str
    verdict: str = "ok"
    advice: str = ""


def main(argv: list[str] | None = None) -> int:
    """Examine and print. Returns the exit code; all ranks call it, the main process prints."""
    parser = OneLineParser(prog="python -m sst2.doctor", description="What stands in the way of a run.")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where runs will be written (runs)")
    parser.add_argument("--connect_timeout", type=float, default=60.0, help="seconds to wait for all processes (60)")
    arguments = parser.parse_args(argv)
    try:
        settings = Settings(connect_timeout=arguments.connect_timeout)
    except ValueError as error:
        raise UserError(str(error)) from None
    accelerator, _ = init_distributed(settings)
    findings = [
        finding
        for examine in (
            versions,
            lambda: processes(accelerator),
            precision,
            threads,
            lambda: sums(accelerator),
            hub,
            lambda: disk(arguments.folder),
            lambda: file_system(arguments.folder, accelerator),
        )
        for finding in examine()
    ]
    if accelerator.is_main_process:
        say(table(findings))
    return EXIT_USER_ERROR if any(finding.verdict == "BAD" for finding in findings) else 0


def versions() -> Iterator[Check]:
    """Installed packages against what the project needs."""
    yield Check("python", ".".join(map(str, sys.version_info[:3])))
    required = {}
    for text in importlib.metadata.requires("sst2") or []:
        requirement = Requirement(text)
        required[requirement.name] = requirement.specifier
    for name in PACKAGES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name == "deepspeed":
                yield Check(
                    name, "not installed", "note", "needed for the deepspeed_*.yaml alone: pip install deepspeed"
                )
            else:
                yield Check(name, "not installed", "BAD", "pip install -r requirements.txt")
            continue
        fits = required[name].contains(version, prereleases=True)
        yield Check(name, version, "ok" if fits else "BAD", "" if fits else f"the project needs {name}{required[name]}")


def processes(accelerator: Accelerator) -> Iterator[Check]:
    """Which devices work together, and where."""
    device = accelerator.device
    name = processor()
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, {torch.cuda.mem_get_info(device)[1] / 2**30:.0f} GiB"
    everybody = gather_object([(socket.gethostname(), name)])
    hosts = sorted({host for host, _ in everybody})
    kinds = sorted({kind for _, kind in everybody})
    strategy = accelerator.distributed_type.value.lower()
    yield Check("processes", f"{len(everybody)} on {len(hosts)} host{'s' * (len(hosts) > 1)} ({strategy})")
    mixed = len(kinds) > 1
    yield Check(
        "device", "; ".join(kinds), "note" if mixed else "ok", "the slowest sets the pace of all" if mixed else ""
    )
    if device.type == "cpu" and torch.accelerator.is_available():
        yield Check("GPU", "there, and not used", "note", "the launcher says use_cpu")


def precision() -> Iterator[Check]:
    """What `--mixed_precision auto` would choose."""
    chosen, reason = choose_precision("auto")
    advice = "" if chosen != "no" else "16-bit arithmetic would gain nothing here"
    yield Check("--mixed_precision auto", f"{chosen} ({reason})", "note" if chosen == "no" else "ok", advice)


def threads() -> Iterator[Check]:
    """Cores for each process; a run of a small model takes one thread."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes_here = read_launcher().local_world_size
    used = torch.get_num_threads() * processes_here
    too_many = used > allowed
    advice = f"set OMP_NUM_THREADS to {max(1, allowed // processes_here)}" if too_many else ""
    yield Check("threads", f"{used} on {allowed} cores", "note" if too_many else "ok", advice)


def sums(accelerator: Accelerator) -> Iterator[Check]:
    """How fast ranks add up: as in a ring, where 2 (n - 1) / n times the data pass every wire."""
    if not distributed.is_initialized() or accelerator.num_processes == 1:
        return
    backend = distributed.get_backend()
    latency = _seconds_of_sum(accelerator, SMALL_SUM)
    seconds = _seconds_of_sum(accelerator, LARGE_SUM)
    ranks = accelerator.num_processes
    bandwidth = 4 * LARGE_SUM * 2 * (ranks - 1) / ranks / seconds
    gradients = 4 * BASE_PARAMETERS * 2 * (ranks - 1) / ranks / bandwidth
    yield Check(f"{backend}, one number", f"{latency * 1e6:.0f} us")
    slow = gradients > 0.1
    yield Check(
        f"{backend}, 64 MiB",
        f"{bandwidth / 1e9:.2f} GB/s; {gradients * 1e3:.0f} ms for DistilBERT-base's gradients",
        "note" if slow else "ok",
        "--gradient_compression bf16, a larger --global_batch_size, or a faster NCCL_/GLOO_SOCKET_IFNAME"
        if slow
        else "",
    )


def _seconds_of_sum(accelerator: Accelerator, count: int) -> float:
    numbers, seconds = torch.ones(count, device=accelerator.device), []
    for _ in range(6):
        distributed.barrier()
        began = time.perf_counter()
        distributed.all_reduce(numbers)
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        numbers.fill_(1.0)
    return statistics.median(seconds[1:])


def hub() -> Iterator[Check]:
    """Is there a hub, or a cache that does without?"""
    model = isinstance(huggingface_hub.try_to_load_from_cache(DEFAULT_MODEL, "model.safetensors"), str)
    data = any(Path(datasets.config.HF_DATASETS_CACHE).glob("nyu-mll___glue/sst2/*/*/*.arrow"))
    cached = f"model {'' if model else 'not '}cached, data {'' if data else 'not '}cached"
    if huggingface_hub.is_offline_mode():
        answer = "HF_HUB_OFFLINE is set"
    else:
        try:
            answer_in_time(partial(huggingface_hub.HfApi().repo_info, DEFAULT_MODEL, timeout=TIMEOUT))
            yield Check("hub", f"answers; {cached}")
            return
        except Exception as error:  # the HTTP library behind it, and so its exceptions, vary
            answer = f"does not answer ({in_words(error)})"
    complete = model and data
    advice = "" if complete else "load once where there is a network, or give local folders and files"
    yield Check("hub", f"{answer}; {cached}", "ok" if complete else "note", advice)


def disk(folder: Path) -> Iterator[Check]:
    """Room where runs will be written."""
    free = shutil.disk_usage(_existing(folder)).free
    enough = free > RUN_BYTES
    advice = f"a run of DistilBERT-base needs about {RUN_BYTES / 2**30:.1f} GiB" if not enough else ""
    yield Check(f"free space, {folder}", f"{free / 2**30:.1f} GiB", "ok" if enough else "BAD", advice)


def file_system(folder: Path, accelerator: Accelerator) -> Iterator[Check]:
    """Whether a checkpoint can be put in place there: durable, by one rename, locked, and seen by every host."""
    there = _existing(folder)
    place: list[Any] = [None]
    problem = None
    if accelerator.is_main_process:
        try:
            place[0] = tempfile.mkdtemp(prefix=".sst2-doctor-", dir=there)
        except OSError as error:
            problem = Check(f"writing, {there}", str(error.strerror), "BAD", "name another --output_dir")
    place = gather_object(place)
    try:
        if place[0] is not None and accelerator.is_main_process:
            try:
                seconds = _commit(Path(place[0]))
            except OSError as error:
                problem = Check(f"writing, {there}", str(error.strerror), "BAD", "name another --output_dir")
        seen = gather_object([(socket.gethostname(), _appears(place[0]))])
    finally:
        if accelerator.is_main_process and place[0] is not None:
            shutil.rmtree(place[0], ignore_errors=True)
    if not accelerator.is_main_process:
        return
    if problem:
        yield problem
        return
    slow = seconds > 1
    yield Check(
        "rename and fsync",
        f"{seconds * 1e3:.0f} ms for 8 MiB",
        "note" if slow else "ok",
        "checkpoints are written beside training, but stops wait for them: give enough grace time" if slow else "",
    )
    missing = missing_features(there)
    for feature in FEATURES:
        lacks = feature in missing
        yield Check(
            feature, missing.get(feature, "there"), "note" if lacks else "ok", WITHOUT[feature] if lacks else ""
        )
    blind = sorted({host for host, sees in seen if not sees})
    if len({host for host, _ in seen}) > 1 or blind:
        advice = f"{', '.join(blind)} cannot see it: name a folder on a shared file system" if blind else ""
        yield Check("shared by all hosts", "no" if blind else "yes", "BAD" if blind else "ok", advice)


def _commit(place: Path) -> float:
    """Seconds to write 8 MiB, bring them to disk, and rename their folder, as a checkpoint does."""
    began = time.perf_counter()
    (place / "unfinished").mkdir()
    (place / "unfinished" / "file").write_bytes(bytes(8 << 20))
    for path in (place / "unfinished" / "file", place / "unfinished"):
        fsync(path)
    os.rename(place / "unfinished", place / "finished")
    fsync(place)
    return time.perf_counter() - began


def _appears(place: str | None, patience: float = 5.0) -> bool:
    """Whether this host sees what the main process has made; network file systems take a moment."""
    if place is None:
        return False
    deadline = time.monotonic() + patience
    while not Path(place).exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def table(findings: list[Check]) -> str:
    """The findings as aligned columns."""
    rows = [("", "what", "found", "advice"), *((f.verdict, f.what, f.value, f.advice) for f in findings)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    )


def _rank() -> int:
    """Of this process; where the variables are wrong, `main` says so."""
    with suppress(UserError):
        return process_rank()
    return 0


if __name__ == "__main__":
    with exit_codes("sst2.doctor", _rank(), is_reporting_process(), leave_at_once):
        with standard_output():
            code = main()
        if code:
            leave_at_once(code)
