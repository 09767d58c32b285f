"""Whether steps in three parts (`--cuda_graphs yes`) have the losses of one process, and how long they take.

    python benchmarks/split_steps.py --output split_steps.json

DistilBERT-base with random weights, sentences of SST-2's lengths, batch 32 over all processes, bf16, no dropout. One
process as `--cuda_graphs auto` runs it is held against one process in three parts, one with a process group of its own
(NCCL's, on a GPU), and two that share the device and talk through gloo, since NCCL refuses that. They run one after
another. On a CPU, functions take the place of graphs.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # for benchmarks and train_sst2.py

WINDOW = 10  # steps of a logged point; those of the first points are not timed
REFERENCE = "whole"
SPLIT = ["--cuda_graphs", "yes"]
# Flags, processes (0: none of a process group), and the process group's backend, None for the device's own.
WAYS: dict[str, tuple[list[str], int, str | None]] = {
    REFERENCE: ([], 0, None),
    "split": (SPLIT, 0, None),
    "split_in_a_group_of_one": (SPLIT, 1, None),
    "split_over_two": (SPLIT, 2, "gloo"),
}


def main() -> None:
    """Run, print the figures, and write them to `--output`."""
    from benchmarks.throughput import circumstances, write_inputs

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--steps", type=int, default=400, help=f"of each run; a multiple of {WINDOW}, three times it at least"
    )
    parser.add_argument("--small", action="store_true", help="a tiny model: a trial of the benchmark, not a figure")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {
        "what": "losses and times of steps in three parts, against those of one process",
        **circumstances(),
        "small": arguments.small,
        "steps": arguments.steps,
    }
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        write_inputs(folder, small=arguments.small)
        points = {name: run(folder, name, arguments.steps) for name in WAYS}
    for name, own in points.items():
        figures[name] = describe(own, points[REFERENCE])
    print(json.dumps(figures, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def run(folder: Path, name: str, steps: int) -> list[dict[str, Any]]:
    """The logged points of a run. Raises RuntimeError, with what it has said, if it fails."""
    flags, processes, backend = WAYS[name]
    words = ["--model_name_or_path", folder / "model", "--train_file", folder / "train.tsv", "--dropout", 0]
    words += ["--validation_file", folder / "validation.tsv", "--mixed_precision", "bf16", "--global_batch_size", 32]
    words += ["--max_train_steps", steps, "--eval_steps", steps, "--logging_steps", WINDOW, *flags]
    command = [sys.executable, str(HERE / "split_steps.py"), "--work", str(backend), *map(str, words)]
    started = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for rank in range(max(1, processes)):
        log = (folder / f"{name}-{rank}.log").open("wb")
        environment = os.environ | variables_of(rank, processes, port)
        place = ["--output_dir", str(folder / name)]
        started.append(subprocess.Popen([*command, *place], stdout=log, stderr=log, env=environment))
    codes = [process.wait() for process in started]
    if any(codes):
        raise RuntimeError(f"{name}: {codes}\n{(folder / f'{name}-0.log').read_text(encoding='utf-8')[-3000:]}")
    lines = map(json.loads, (folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["split"] == "train"]


def variables_of(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun would set on hosts of one process each, so that each takes the first GPU."""
    if not processes:
        return {}
    numbers = {"RANK": rank, "WORLD_SIZE": processes, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    return {name: str(number) for name, number in numbers.items()} | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "none",
    }


def work() -> None:
    """A process of a run: what train_sst2.py does as a script, with the backend that is asked for."""
    backend, words = sys.argv[2], sys.argv[3:]
    from accelerate.utils import InitProcessGroupKwargs

    from sst2.config.arguments import PROGRAM, parse_arguments
    from sst2.distributed import init
    from sst2.distributed.ranks import exit_codes_of_rank
    from sst2.distributed.stop_requests import StopRequests
    from train_sst2 import main as train

    def group(**options: Any) -> InitProcessGroupKwargs:
        return InitProcessGroupKwargs(**options | ({} if backend == "None" else {"backend": backend}))

    vars(init)["InitProcessGroupKwargs"] = group
    requests, settings = StopRequests().listen(), parse_arguments(words)
    with exit_codes_of_rank(PROGRAM), requests.stop_explains_errors():
        train(settings, requests)


def describe(points: list[dict[str, Any]], reference: list[dict[str, Any]]) -> dict[str, Any]:
    """Times of a step after the first windows, and how far the losses are from the reference's."""
    timed = points[len(points) // 3 :]
    milliseconds = [1000 * point["step_seconds"] for point in timed]
    apart = [abs(one["loss"] / other["loss"] - 1) for one, other in zip(points, reference, strict=True)]
    expected = statistics.median(1000 * point["step_seconds"] for point in reference[len(points) // 3 :])
    return {
        "step_milliseconds": statistics.median(milliseconds),
        "times_the_reference": statistics.median(milliseconds) / expected,
        "waiting_share": statistics.median(point["waiting_share"] for point in timed),
        "padding_share": statistics.median(point["padding_share"] for point in timed),
        "relative_difference_of_losses": {"first": apart[0], "largest": max(apart)},
        "losses": [point["loss"] for point in points],
    }


if __name__ == "__main__":
    work() if sys.argv[1:2] == ["--work"] else main()
