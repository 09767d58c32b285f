"""Seconds from the start of a process to the end of its first two optimizer steps, and what they are spent on.

    python benchmarks/startup.py --rounds 3 --output benchmarks/results/startup.json

Each start is a process of its own that does what `python train_sst2.py` does, on DistilBERT-base with random weights
and as many sentences as SST-2 has, until its second step is done. In each round one start finds no token ids in the
cache, and the next one finds those of the first. A start before all rounds, which does not count, has the operating
system read libraries, model and sentences from the disk.

The functions of the package that make up a part are wrapped, in the new process alone. A part's seconds are those in
which at least one of its functions runs: where two parts run side by side both count them, and `overlap` is what that
adds to the sum.
"""

import argparse
import functools
import gc
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # for train_sst2.py and benchmarks

# Functions and methods below `sst2`, by part. One that is not there is left out: its seconds are in `rest of setup`.
PARTS = {
    "init distributed": "distributed.init:init_distributed",
    "sentences": "data.staging:stage data.splits:load_sentences",
    "tokenizer": "models.loading:load_tokenizer",
    "model": "models.loading:load_model",
    "token ids": "data.splits:tokenize_all",
    "optimizer and strategy": (
        "training.optimizer:build_optimizer distributed.strategies:prepare training.optimizer:build_schedule"
    ),
    "plan and loaders": (
        "data.batch_plan:plan_batches data.collation:evaluation_loaders checkpoints.checkpointer:Checkpointer.__init__"
    ),
    "run folder": (
        "runs.run_folder:RunFolder.lock runs.run_folder:RunFolder.begin utils.atomic_file:write_text "
        "utils.atomic_file:write_json tracking.environment:describe_environment "
        "checkpoints.free_space:require_free_space utils.logs:log_to_file "
        "distributed.stop_requests:StopRequests.watch"
    ),
    "tracker": "tracking.tracker:Tracker.__init__",
}
Span = tuple[str, float, float]  # part, and its beginning and end by the clock that all processes share


def main() -> None:
    """Measure, print the figures, and write them to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    figures = measure(arguments.rounds)
    print(json.dumps(figures, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure(rounds: int) -> dict[str, Any]:
    """Time whole starts, with and without token ids in the cache by turns. Returns the figures."""
    starts: dict[str, list[dict[str, float]]] = {"no_token_ids_in_cache": [], "token_ids_in_cache": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        call = "import pathlib, sys, throughput; throughput.write_inputs(pathlib.Path(sys.argv[1]))"
        run_python(call, folder)  # not here, where a model's memory would be kept from the starts
        start(folder)
        for _ in range(rounds):
            shutil.rmtree(folder / "cache")
            for seconds in starts.values():
                seconds.append(start(folder))
    return describe(starts, rounds)


def start(folder: Path) -> dict[str, float]:
    """Start a run in a new folder, with whatever is in the cache. Returns the seconds by part."""
    flags = ["--model_name_or_path", folder / "model", "--output_dir", folder / "run", "--overwrite_output_dir"]
    flags += ["--train_file", folder / "train.tsv", "--validation_file", folder / "validation.tsv"]
    shutil.rmtree(folder / "run", ignore_errors=True)
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    run_python("import startup; startup.work()", time.monotonic(), report, *flags, HF_DATASETS_CACHE=folder / "cache")
    seconds: dict[str, float] = json.loads(report.read_text(encoding="utf-8"))
    return seconds


def run_python(call: str, *words: object, **variables: object) -> None:
    """Raises RuntimeError, with what the new process has said, if it fails."""
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    command = [sys.executable, "-c", call, *map(str, words)]
    done = subprocess.run(command, cwd=HERE, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{call}: exit code {done.returncode}\n{done.stderr}")


def work() -> None:
    """The new process: what train_sst2.py does as a script, in the same order, with its parts timed."""
    began = time.monotonic()
    started, report, flags = float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    from sst2.config.arguments import parse_arguments
    from sst2.distributed.stop_requests import StopRequests

    gc.disable()
    requests, settings = StopRequests().listen(), parse_arguments(flags)
    job = importlib.import_module("train_sst2")
    gc.enable()
    imported = time.monotonic()
    spans: list[Span] = []
    for part, names in PARTS.items():
        for name in names.split():
            wrap(name, part, spans)
    steps: list[tuple[float, float]] = []
    train_step = job.train_step

    def step(*arguments: Any) -> Any:
        before = time.monotonic()
        measured = train_step(*arguments)
        steps.append((before, time.monotonic()))
        if len(steps) == 2:
            marks = started, began, imported, *steps[0], steps[1][1]
            report.write_text(json.dumps(by_part(spans, *marks)), encoding="utf-8")
            os._exit(0)
        return measured

    job.train_step = step  # type: ignore[attr-defined]
    job.main(settings, requests)


def wrap(name: str, part: str, spans: list[Span]) -> None:
    """Have a function below `sst2` note its calls, by whatever name modules have imported it.

    Args:
        name: `module:function` or `module:Class.method`.
        part: to note them under.
        spans: where calls are noted.
    """
    module_name, _, path = name.partition(":")
    *classes, last = path.split(".")
    try:
        owner: Any = importlib.import_module(f"sst2.{module_name}")
        owner = functools.reduce(getattr, classes, owner)
        function = getattr(owner, last)
    except (ImportError, AttributeError):
        return
    timed = noting(function, part, spans)
    setattr(owner, last, timed)
    for module in [module for key, module in sys.modules.items() if key.partition(".")[0] in ("sst2", "train_sst2")]:
        for key in [key for key, value in vars(module).items() if value is function]:
            setattr(module, key, timed)


def noting(function: Callable[..., Any], part: str, spans: list[Span]) -> Callable[..., Any]:
    """The function, which notes its name in `part` and when it began and ended in `spans`."""

    @functools.wraps(function)
    def timed(*arguments: Any, **options: Any) -> Any:
        before = time.monotonic()
        try:
            return function(*arguments, **options)
        finally:
            spans.append((part, before, time.monotonic()))

    return timed


def by_part(
    spans: list[Span], started: float, began: float, imported: float, stepped: float, first: float, second: float
) -> dict[str, float]:
    """Seconds by part; their sum less `overlap` is `to second step`.

    Args:
        spans: the parts of the setup.
        started: when the process was started.
        began: when it was there.
        imported: when it had imported everything.
        stepped: when the first step began.
        first: when the first step had ended.
        second: when the second step had ended.
    """
    setup = [span for span in spans if span[1] < stepped]
    seconds = {"interpreter": began - started, "imports and flags": imported - began}
    parts = {part: covered(span[1:] for span in setup if span[0] == part) for part in PARTS}
    together = covered(span[1:] for span in setup)
    seconds |= parts | {"rest of setup": stepped - imported - together}
    seconds |= {"first step": first - stepped, "second step": second - first}
    return seconds | {
        "overlap": sum(parts.values()) - together,
        "to first step": first - started,
        "to second step": second - started,
    }


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of what the intervals cover together."""
    length, end = 0.0, float("-inf")
    for one, other in sorted(intervals):
        length += max(0.0, other - max(one, end))
        end = max(end, other)
    return length


def describe(starts: dict[str, list[dict[str, float]]], rounds: int) -> dict[str, Any]:
    """Medians over the rounds, and the fastest start of each kind: other work on the machine only ever adds seconds."""
    from benchmarks.throughput import circumstances  # not above: a start would count its imports

    figures: dict[str, Any] = {
        "what": "seconds from the start of the process to the end of the first and of the second optimizer step, by "
        "part; DistilBERT-base with random weights, as many sentences as SST-2 has",
        **circumstances(),
        "rounds": rounds,
    }
    for name, rounds_of_it in starts.items():
        medians = {part: round(statistics.median(each[part] for each in rounds_of_it), 3) for part in rounds_of_it[0]}
        totals = {key: medians.pop(key) for key in ("to first step", "to second step")}
        fastest = min(rounds_of_it, key=lambda each: each["to second step"])
        figures[name] = {
            "seconds_to_first_step": totals["to first step"],
            "seconds_to_second_step": totals["to second step"],
            "seconds_by_part": medians,
            "fastest_start": {part: round(second, 3) for part, second in fastest.items()},
            "seconds_to_first_step_by_round": [round(each["to first step"], 3) for each in rounds_of_it],
        }
    return figures


if __name__ == "__main__":
    main()
