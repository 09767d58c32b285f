"""What the host does for a captured step: microseconds of Python, without the device's work.

    python benchmarks/host_time.py --output benchmarks/results/host_time.json

`train_step` and the stop check of train_sst2.py, one process, on a CPU. Where a GPU would replay a graph, nothing is
done; inputs are copied and metrics of steps added up in a CPU's memory (not pinned), and read after as many steps as on
a GPU. Held against each other are `--cuda_graphs yes`, and `auto` as it runs on a GPU: they take turns, in processes of
their own.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # for benchmarks and train_sst2.py

from benchmarks.turns import Maker, Step, add_arguments, measure


def main() -> None:
    """Measure, print the figures, and write them to `--output`."""
    from benchmarks.throughput import circumstances, write_inputs

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=5, steps=1000)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    makers: dict[str, Maker] = {name: partial(job, graphs=graphs) for name, graphs in WAYS.items()}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        write_inputs(Path(folder), small=True)  # the model is not run
        turns = measure(Path(folder), makers, arguments)
    figures: dict[str, Any] = {
        "what": "microseconds of a host for a step whose graphs do nothing",
        **circumstances(),
        "batch_size": arguments.batch_size,
        "steps_of_a_round": arguments.steps,
    }
    for name, rounds in turns.rounds.items():
        by_round = [1e6 * each.cpu_seconds / arguments.steps for each in rounds]
        figures[name] = {"microseconds": statistics.median(by_round), "by_round": by_round}
    print(json.dumps(figures, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if turns.failed:
        sys.exit(f"failed: {', '.join(turns.failed)}")


WAYS = {"one_graph": "auto", "split_graphs": "yes"}


def job(folder: Path, batch_size: int, graphs: str) -> Step:
    """The job as on one GPU, with graphs that do nothing."""
    import torch

    from sst2.config.arguments import parse_arguments
    from sst2.distributed.stop_requests import StopRequests
    from sst2.distributed.strategies.strategy import Strategy
    from sst2.runs.run_folder import RunFolder
    from sst2.training.step_metrics import STEPS_BETWEEN_READS
    from sst2.training.steps import cuda_graphs
    from sst2.training.steps.split_graphs import SplitGraphRunner
    from train_sst2 import check_stop_requests, setup, train_step

    class EmptyGraph:
        """In place of `cuda_graphs.Graph`: it copies its inputs, and its results out."""

        def __init__(self, _: Any, batch: Any, pool: Any) -> None:
            self._batch, self.pool, self._results = batch, pool, torch.zeros(2)

        def replay(self, batch: Any) -> tuple[Any, Any]:
            for own, new in zip(self._batch.tensors(), batch.tensors(), strict=True):
                own.copy_(new)
            loss_sum, grad_norm = self._results
            return loss_sum.clone(), grad_norm.clone()

    vars(cuda_graphs).update(Graph=EmptyGraph, has_room=lambda _: True)
    type.__setattr__(Strategy, "fits_a_graph", True)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    files = ["--train_file", folder / "train.tsv", "--validation_file", folder / "validation.tsv"]
    flags = ["--model_name_or_path", folder / "model", *files, "--output_dir", tempfile.mkdtemp(dir=folder)]
    flags += ["--per_device_train_batch_size", batch_size, "--mixed_precision", "bf16", "--cuda_graphs", graphs]
    settings = parse_arguments([*map(str, flags), "--max_train_steps", "100000"])
    trainer = setup(settings, StopRequests(), RunFolder(settings.run_dir)).__enter__()
    trainer.step_metrics._every = STEPS_BETWEEN_READS
    train_step(trainer)  # which captures
    runner = trainer.step_runner
    if isinstance(runner, SplitGraphRunner):
        runner._passes = dict.fromkeys(runner._passes, lambda: None)
        runner._update = lambda: None

    def step() -> tuple[int, int]:
        indices = trainer.plan.indices(trainer.state.step)
        train_step(trainer)
        check_stop_requests(trainer, after_step=True)
        return len(indices), 0

    return step


if __name__ == "__main__":
    main()
