"""The profile of `--profile_steps`: a trace of optimizer steps, for Perfetto, and tables of where the time goes."""

import errno
import gzip
import json
import logging
import os
import re
import socket
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from sst2.utils.atomic_file import put_in_place, write_text
from sst2.utils.device_timing import PHASES, Phases
from sst2.utils.errors import first_line
from sst2.utils.file_system import BestEffort

logger = logging.getLogger(__name__)

ROWS = 40  # of the table of operators
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of a trace's events
# The first pattern that is found in a kernel's name says what it does.
CLASSES = {
    "AdamW": r"adam",
    "gradient norm": r"lpnorm|l2norm|norm_except",
    "attention": r"flash|fmha|attention",
    "collectives": r"nccl",
    "matrix products": r"gemm|nvjet|cutlass|cublas|splitk|xmma",
    "LayerNorm": r"layer_?norm|gammabeta",
    "softmax and loss": r"softmax|nll_loss|cross_entropy",
    "dropout, random numbers": r"dropout|distribution|philox|random",
    "casts, copies": r"copy|memcpy|catarray",
    "fills": r"fill|memset",
    "embedding, indexing": r"index|embedding|gather|scatter|sort|unique|krn_partial",
    "sums": r"reduce|sum",
    "Triton": r"triton",
    "other elementwise": r"elementwise|multi_tensor",
}


class StepProfiler:
    """Records the steps of a range on this rank, and writes what it has recorded. No other step costs anything.

    Args:
        steps: to record, counted from 1; those that are `done` are left out with a warning.
        done: steps that the run has taken when it starts or resumes.
        phases: of steps, which are marked in the trace.
        folder: to write to: a trace and a text file, named by steps and rank.
        rank: of this process.
        device: on which steps run.
    """

    def __init__(self, steps: range, done: int, phases: Phases, folder: Path, rank: int, device: torch.device) -> None:
        self._steps = range(max(steps.start, done + 1), steps.stop)
        self._phases, self._folder, self._rank, self._device = phases, folder, rank, device
        self._profiler: profile | None = None
        self._recorded: list[int] = []
        if len(self._steps) < len(steps):
            what = f"steps {self._steps[0]} to {steps[-1]} are recorded" if self._steps else "nothing is recorded"
            logger.warning("--profile_steps %d:%d: the run has done %d steps: %s", steps[0], steps[-1], done, what)

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around optimizer step `number`, counted from 1."""
        if number not in self._steps:
            yield
            return
        if self._profiler is None:
            self._start()
        if self._profiler is None:
            yield
            return
        with record_function(f"step {number}"):
            yield
        self._recorded.append(number)
        if number == self._steps[-1]:
            self.close()

    def close(self, write: bool = True) -> None:
        """Stop recording, which the run may end amid, or torch crashes as the process exits; and `write` what there is.

        On a GPU, this waits for all that it has been asked to do.
        """
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        self._phases.are_marked = False
        if write and self._recorded:
            with BestEffort(f"the profile in {self._folder}"):
                try:
                    self._write(profiler)
                except (LookupError, RuntimeError, ValueError, ZeroDivisionError) as error:  # of a trace that is odd
                    raise OSError(errno.EIO, first_line(error)) from error

    def _start(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.synchronize()  # earlier steps, which are still on their way, are not to be recorded
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it says on stderr that it starts and stops
        profiler = profile(activities=activities)
        try:
            profiler.start()
        except RuntimeError as error:  # of a GPU that another program profiles, for one
            logger.warning("--profile_steps: nothing is recorded (%s)", first_line(error))
            self._steps = range(0)
            return
        self._profiler, self._phases.are_marked = profiler, True

    def _write(self, profiler: profile) -> None:
        self._folder.mkdir(exist_ok=True)
        trace = self._folder / f"steps-{self._recorded[0]}-{self._recorded[-1]}-rank{self._rank}.json.gz"
        table = trace.with_name(trace.name.removesuffix(".json.gz") + ".txt")
        unfinished = trace.with_name(f".unfinished-{trace.name}")  # torch compresses what ends in .gz
        profiler.export_chrome_trace(str(unfinished))
        events = read_trace(unfinished)
        put_in_place(unfinished, trace)
        write_text(table, self._tables(profiler, events))
        logger.info("profile: open %s in https://ui.perfetto.dev; where the time goes: %s", trace, table)

    def _tables(self, profiler: profile, events: list[dict[str, Any]]) -> str:
        steps, on_gpu = self._recorded, self._device.type == "cuda"
        device = torch.cuda.get_device_name(self._device) if on_gpu else "CPU"
        title = f"steps {steps[0]} to {steps[-1]} of rank {self._rank} on {socket.gethostname()}, {device}, torch "
        title += f"{torch.__version__}; the profiler itself takes time"
        parts = [title, by_phase(events, len(steps))]
        if on_gpu:
            parts.append(by_class(events, len(steps)))
        return "\n\n".join([*parts, by_operator(profiler, on_gpu)]) + "\n"


def read_trace(file: Path) -> list[dict[str, Any]]:
    """The events of a trace. Raises OSError: torch could not write all of it, which it does not say itself."""
    try:
        with gzip.open(file, "rt", encoding="utf-8") as trace:
            events: list[dict[str, Any]] = json.load(trace)["traceEvents"]
            return events
    except ValueError:
        raise OSError(None, f"no JSON came out: {tempfile.gettempdir()} may be full") from None


def by_operator(profiler: profile, on_gpu: bool) -> str:
    """Torch's own table of all steps: operators with calls and times, those that take most themselves first."""
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    table: str = profiler.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=100)
    return table


def by_phase(events: Sequence[dict[str, Any]], steps: int) -> str:
    """The host's time of a step, and where there is a GPU the GPU's, by phase; `rest` is in none of them.

    Args:
        events: of a trace that torch.profiler has written. On the GPU, a phase goes from its first kernel to its last.
        steps: that were recorded.
    """
    host: dict[str, float] = defaultdict(float)
    gpu: dict[str, float] = defaultdict(float)
    times = {"user_annotation": host, "gpu_user_annotation": gpu}
    for event in events:
        if event.get("cat") in times:
            name = "step" if event["name"].startswith("step ") else event["name"]
            times[event["cat"]][name] += event["dur"] / steps / 1000
    within = [phase for phase in PHASES if phase in host and phase != "stop_check"]  # which lies between two steps
    host["rest"] = host["step"] - sum(host[phase] for phase in within)
    lines = [f"{'phase':12}{'host, ms':>10}{'share':>8}" + (f"{'GPU, ms':>10}" if gpu else "") + "   of a step"]
    for name in [*within, "rest", "step"]:
        on_gpu = (f"{gpu[name]:10.3f}" if name in gpu else f"{'':10}") if gpu else ""
        lines.append(f"{name:12}{host[name]:10.3f}{host[name] / host['step']:8.1%}{on_gpu}")
    return "\n".join(lines)


def by_class(events: Sequence[dict[str, Any]], steps: int) -> str:
    """Launches and time on the GPU of a step, by class of kernel, and the largest kernels of each class.

    Args:
        events: of a trace that torch.profiler has written.
        steps: that were recorded.
    """
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    spans = []
    for event in events:
        if event.get("cat") in ON_GPU:
            found[kernel_class(event["name"])][event["name"]].append(event["dur"])
            spans.append((event["ts"], event["ts"] + event["dur"]))
    total = sum(sum(sum(times) for times in kernels.values()) for kernels in found.values())
    lines = [f"{'':32}{'launches':>10}{'us':>10}{'share':>8}   of a step"]
    classes = sorted(found.items(), key=lambda item: -sum(map(sum, item[1].values())))
    for name, kernels in classes:
        launches, time_of_it = sum(map(len, kernels.values())), sum(map(sum, kernels.values()))
        lines.append(f"{name:32}{launches / steps:10.1f}{time_of_it / steps:10.1f}{time_of_it / total:8.1%}")
    span = max(end for _, end in spans) - min(begin for begin, _ in spans) if spans else 0
    launches = len(spans)
    lines.append(f"{'all':32}{launches / steps:10.1f}{total / steps:10.1f}   from first to last {span / steps:.1f}")
    for name, kernels in classes:
        lines.append(f"\n{name}")
        for kernel, times in sorted(kernels.items(), key=lambda item: -sum(item[1]))[:6]:
            lines.append(f"  {len(times) / steps:8.1f}{sum(times) / steps:10.1f}  {kernel[:110]}")
    return "\n".join(lines)


def kernel_class(name: str) -> str:
    """What a kernel does, by its name."""
    return next((label for label, pattern in CLASSES.items() if re.search(pattern, name, re.IGNORECASE)), "other")
