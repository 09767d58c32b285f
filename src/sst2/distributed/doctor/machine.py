"""Checks of the machines of a job: packages, devices, precision, threads, the wires between them, the hub."""

import importlib.metadata
import os
import platform
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets
import huggingface_hub
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from packaging.requirements import Requirement
from torch import distributed

from sst2.config.flag_groups import DEFAULT_MODEL
from sst2.config.launcher import read_launcher
from sst2.data.hub import TIMEOUT, answer_in_time, in_words
from sst2.distributed.devices import processor
from sst2.distributed.precision import choose_precision

PACKAGES = "torch accelerate transformers datasets evaluate scikit-learn scipy tensorboard deepspeed".split()
BASE_PARAMETERS = 66_955_010  # of DistilBERT-base with its head
SMALL_SUM, LARGE_SUM = 1, 1 << 24  # float32 numbers: the time to answer, and the bandwidth


@dataclass(frozen=True)
class Check:
    """What was found of one thing.

    Attributes:
        advice: on what is not as it should be; empty where all is well.
        is_fatal: whether a run would fail.
        gain: what is to be won here, and the flag that does it; empty where it is nothing.
    """

    what: str
    value: str
    advice: str = ""
    is_fatal: bool = False
    gain: str = ""

    @property
    def verdict(self) -> str:
        """In a word."""
        return "BAD" if self.is_fatal else "note" if self.advice else "ok"


def check_machine(accelerator: Accelerator) -> Iterator[Check]:
    """Everything but the disk. All ranks call it."""
    yield from _versions()
    yield from _processes(accelerator)
    chosen, reason = choose_precision("auto")
    advice = "16-bit arithmetic would gain nothing here" if chosen == "no" else ""
    gain = f"{reason}: --mixed_precision auto" if chosen != "no" else ""
    yield Check("--mixed_precision auto", f"{chosen} ({reason})", advice, gain=gain)
    yield _threads()
    if accelerator.num_processes > 1 and distributed.is_initialized():
        yield from _all_reduce(accelerator)
    yield _hub()


def verdict(checks: Sequence[Check]) -> str:
    """What all checks come to, and what to do, in a line."""
    bad, notes = ([check.what for check in checks if check.verdict == kind] for kind in ("BAD", "note"))
    if bad:
        return f"verdict: a run would fail here: fix {', '.join(bad)} first, as the advice beside BAD says"
    told = [check.gain for check in checks if check.gain]
    told += [f"look at the advice on {', '.join(notes)}"] if notes else []
    return "; ".join(["verdict: a run will work here", *told])


def _versions() -> Iterator[Check]:
    """Installed packages against what the project needs."""
    yield Check("python", platform.python_version())
    requirements = map(Requirement, importlib.metadata.requires("sst2") or [])
    required = {requirement.name: requirement.specifier for requirement in requirements}
    for name in PACKAGES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name == "deepspeed":
                yield Check(name, "not installed", "needed for the deepspeed_*.yaml alone: pip install deepspeed")
            else:
                yield Check(name, "not installed", "pip install -r requirements.txt", is_fatal=True)
            continue
        fits = required[name].contains(version, prereleases=True)
        yield Check(name, version, "" if fits else f"the project needs {name}{required[name]}", is_fatal=not fits)


def _processes(accelerator: Accelerator) -> Iterator[Check]:
    """Which devices work together, and where."""
    device = accelerator.device
    name = processor()
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, {torch.cuda.mem_get_info(device)[1] / 2**30:.0f} GiB"
    everybody = gather_object([(socket.gethostname(), name)])
    hosts, kinds = ({place[column] for place in everybody} for column in (0, 1))
    strategy = accelerator.distributed_type.value.lower()
    yield Check("processes", f"{len(everybody)} on {len(hosts)} host{'s' * (len(hosts) > 1)} ({strategy})")
    yield Check("device", "; ".join(sorted(kinds)), "the slowest sets the pace of all" if len(kinds) > 1 else "")
    if device.type == "cpu" and torch.accelerator.is_available():
        yield Check("GPU", "there, and not used", "the launcher says use_cpu")


def _threads() -> Check:
    """Cores for each process; a run of a small model takes one thread."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes_here = read_launcher().local_world_size
    used = torch.get_num_threads() * processes_here
    advice = f"set OMP_NUM_THREADS to {max(1, allowed // processes_here)}" if used > allowed else ""
    return Check("threads", f"{used} on {allowed} cores", advice)


def _all_reduce(accelerator: Accelerator) -> Iterator[Check]:
    """How fast ranks add up: as in a ring, where 2 (n - 1) / n times the data pass every wire."""
    backend = distributed.get_backend()
    latency = _seconds_of_sum(accelerator, SMALL_SUM)
    seconds = _seconds_of_sum(accelerator, LARGE_SUM)
    ranks = accelerator.num_processes
    bandwidth = 4 * LARGE_SUM * 2 * (ranks - 1) / ranks / seconds
    gradients = 4 * BASE_PARAMETERS * 2 * (ranks - 1) / ranks / bandwidth
    yield Check(f"{backend}, one number", f"{latency * 1e6:.0f} us")
    remedy = "--gradient_compression bf16, a larger --global_batch_size, or a faster NCCL_/GLOO_SOCKET_IFNAME"
    yield Check(
        f"{backend}, 64 MiB",
        f"{bandwidth / 1e9:.2f} GB/s; {gradients * 1e3:.0f} ms for DistilBERT-base's gradients",
        remedy if gradients > 0.1 else "",
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


def _hub() -> Check:
    """Is there a hub, or a cache that does without?"""
    model = isinstance(huggingface_hub.try_to_load_from_cache(DEFAULT_MODEL, "model.safetensors"), str)
    data = any(Path(datasets.config.HF_DATASETS_CACHE).glob("nyu-mll___glue/sst2/*/*/*.arrow"))
    cached = f"model {'' if model else 'not '}cached, data {'' if data else 'not '}cached"
    if huggingface_hub.is_offline_mode():
        answer = "HF_HUB_OFFLINE is set"
    else:
        try:
            answer_in_time(partial(huggingface_hub.HfApi().repo_info, DEFAULT_MODEL, timeout=TIMEOUT))
            return Check("hub", f"answers; {cached}")
        except Exception as error:  # the HTTP library behind it, and so its exceptions, vary
            answer = f"does not answer ({in_words(error)})"
    advice = "" if model and data else "load once where there is a network, or give local folders and files"
    return Check("hub", f"{answer}; {cached}", advice)
