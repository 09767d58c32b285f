"""Seconds of a whole job, from `accelerate launch` to the exported model, by what they are spent on.

    python benchmarks/whole_job.py --output whole_job.json

Three epochs on sentences of SST-2's lengths, DistilBERT-base with random weights, batch 32, bf16: what it learns means
nothing. Each moment counts for one part: the function that was called last. The host asks a GPU for steps ahead of
time; what it waits for at their end counts as `steps`, too.
"""

import argparse
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # for train_sst2.py and benchmarks

from benchmarks.startup import PARTS, Span, noting, wrap

HERE = Path(__file__).resolve().parent
LATER_PARTS = {
    "captures": "training.steps.cuda_graphs:Graph.__init__",
    "steps": "training.trainer:Trainer.sync_to_host",
    "checkpoints": "training.trainer:Trainer.wait_for_checkpoint",
    "export": "training.results:write_results",
}
SCRIPT_PARTS = {
    "setup": "rest of setup",
    "fit": "rest of fit",
    "finalize": "rest of finalize",
    "train_step": "steps",
    "evaluate": "evaluations",
    "save_checkpoint": "checkpoints",
}


def main() -> None:
    """Measure, print the figures, and write them to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--small", action="store_true", help="a tiny model: a trial of the benchmark, not a figure")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        figures = measure(Path(folder), arguments)
    print(json.dumps(figures, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the job once, with nothing in its caches. Returns the figures."""
    import torch

    from benchmarks.throughput import circumstances, write_inputs

    write_inputs(folder, small=arguments.small, validation_sentences=None)
    configuration = "single_gpu" if torch.cuda.is_available() else "single_cpu"
    report, run = folder / "report.json", folder / "run"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [f"{HERE.parent}/accelerate_configs/{configuration}.yaml", str(HERE / "whole_job.py"), "--work"]
    flags = [
        "--model_name_or_path",
        folder / "model",
        "--train_file",
        folder / "train.tsv",
        "--mixed_precision",
        "bf16",
    ]
    flags += ["--validation_file", folder / "validation.tsv", "--output_dir", run]
    flags += ["--per_device_train_batch_size", arguments.batch_size, "--num_train_epochs", arguments.epochs]
    environment = os.environ | {"HF_DATASETS_CACHE": str(folder / "cache")}
    started = time.monotonic()
    words = [*command, str(started), str(report), *map(str, flags)]
    done = subprocess.run(words, env=environment, check=False, capture_output=True, text=True)
    ended = time.monotonic()
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}\n{done.stderr}")
    seconds, last = json.loads(report.read_text(encoding="utf-8"))
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return {
        "what": "seconds of a whole job, by part; random weights, sentences of SST-2's lengths",
        **circumstances(),
        "small": arguments.small,
        "batch_size": arguments.batch_size,
        "epochs": arguments.epochs,
        "steps": metrics["step"],
        "seconds": ended - started,
        "seconds_by_part": {**seconds, "end": ended - last},
        "seconds_that_metrics_json_gives_steps": metrics["seconds"],
        "sentences_per_second_in_steps": metrics["sentences_per_second"],
    }


def work() -> None:
    """The job's process: what train_sst2.py does as a script, in the same order, with its parts timed."""
    began = time.monotonic()
    started, report, flags = float(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]
    from sst2.config.arguments import parse_arguments
    from sst2.distributed.stop_requests import StopRequests

    gc.disable()
    requests, settings = StopRequests().listen(), parse_arguments(flags)
    job = importlib.import_module("train_sst2")
    gc.enable()
    spans: list[Span] = [("launcher", started, began), ("imports and flags", began, time.monotonic())]
    for part, names in (PARTS | LATER_PARTS).items():
        for name in names.split():
            wrap(name, part, spans)
    for name, part in SCRIPT_PARTS.items():
        setattr(job, name, noting(getattr(job, name), part, spans))
    job.main(settings, requests)
    last = time.monotonic()
    report.write_text(json.dumps([by_latest(spans, started, last), last]), encoding="utf-8")
    from sst2.utils.errors import leave_at_once

    leave_at_once(0)


def by_latest(spans: Sequence[Span], first: float, last: float) -> dict[str, float]:
    """Seconds by part, each moment for the span that began last of those that it is in; their sum is `last` - `first`.

    Args:
        spans: part, begin and end.
        first: when time begins to count; what no span covers is `rest`.
        last: when it ends.
    """
    seconds = dict.fromkeys((part for part, *_ in spans), 0.0) | {"rest": 0.0}
    edges = sorted({first, last, *(moment for _, *both in spans for moment in both if first < moment < last)})
    waiting = sorted(spans, key=lambda span: span[1], reverse=True)
    active: list[Span] = []
    for begin, end in pairwise(edges):
        while waiting and waiting[-1][1] <= begin:
            active.append(waiting.pop())
        active = [span for span in active if span[2] > begin]
        part = max(active, key=lambda span: span[1])[0] if active else "rest"
        seconds[part] += end - begin
    return seconds


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work()
    else:
        main()
