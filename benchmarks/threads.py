"""Training on a CPU with one thread and with all, alone and beside a busy program: how waiting threads behave.

    python benchmarks/threads.py --output benchmarks/results/threads.json

Threads that have done their part of an operation wait for the others: they spin, so that the next operation begins at
once, or they let go of their core, so that somebody else can use it. OpenMP spins unless told otherwise, which
collapses when another program takes a core: the thread that holds up all others does not get one. `sst2` has its
threads spin briefly, and trains small models with one. Every process trains with `train_step`, waits while another one
works, and takes a turn in each round, alone and beside programs that keep half of the cores busy.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.throughput import circumstances, ratio, this_job, write_inputs

SHAPES = {  # layers, width, width of the feed-forward part, heads; sentences of a step
    "smoke": (2, 64, 256, 4, 32),
    "small": (4, 256, 1024, 4, 32),
    "base": (6, 768, 3072, 12, 8),
}
SPINNING = {"GOMP_SPINCOUNT": "300000"}  # libgomp's default without OMP_WAIT_POLICY
BRIEFLY = {"GOMP_SPINCOUNT": "10000"}  # as the package sets it
Speeds = dict[tuple[str, str, str], list[float]]  # shape, way to wait, neighbor: sentences/s by round


def main() -> None:
    """Measure, print the figures, and write them to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.8, help="that each trains in a round, alone and beside")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=[*SHAPES], help="of DistilBERT")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        before = os.getloadavg()[0]
        speeds = measure(Path(folder), arguments)
    figures = describe(speeds, arguments, before)
    print(json.dumps(figures, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure(folder: Path, arguments: argparse.Namespace) -> Speeds:
    """Have all shapes, with one thread and with all, spinning for long and briefly, take turns on 2,000 sentences."""
    cores = len(os.sched_getaffinity(0))
    ways = {"1 thread": (1, BRIEFLY), "spinning": (cores, SPINNING), "spinning briefly": (cores, BRIEFLY)}
    (folder / "base").mkdir()
    write_inputs(folder / "base")
    lines = (folder / "base" / "train.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "base" / "train.tsv").write_text("".join(lines[:2001]), encoding="utf-8")
    ends: dict[tuple[str, str], Connection] = {}
    for shape in arguments.shapes:
        if shape != "base":
            write_shape(folder / "base", folder / shape, SHAPES[shape])
        for way, (threads, variables) in ways.items():
            ends[shape, way] = start(folder / shape, threads, SHAPES[shape][-1], variables)
    speeds: Speeds = {}
    for _ in range(arguments.rounds):
        for neighbor, busy in (("alone", 0), ("beside", max(1, cores // 2))):
            for (shape, way), end in ends.items():
                with programs(busy):
                    end.send(arguments.seconds)
                    speeds.setdefault((shape, way, neighbor), []).append(end.recv())
    for end in ends.values():
        end.send(0)
    return speeds


def write_shape(base: Path, folder: Path, shape: tuple[int, ...]) -> None:
    """The inputs of `base` with a DistilBERT of another shape, with random weights."""
    import torch
    from transformers import DistilBertConfig, DistilBertModel

    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    layers, width, inner, heads, _ = shape
    torch.manual_seed(0)
    config = DistilBertConfig(n_layers=layers, dim=width, hidden_dim=inner, n_heads=heads)
    DistilBertModel(config).save_pretrained(folder / "model")


def start(folder: Path, threads: int, batch_size: int, variables: dict[str, str]) -> Connection:
    """Start a process that trains, with its own variables of OpenMP. Returns the end to talk to it when it is ready."""
    context = multiprocessing.get_context("spawn")
    own, other = context.Pipe()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    before = dict(os.environ)
    try:
        os.environ.clear()
        os.environ.update(kept | variables | {"OMP_NUM_THREADS": str(threads)})
        context.Process(target=work, args=(other, folder, batch_size), daemon=True).start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    other.close()
    assert own.recv() == "ready"
    return own


def work(connection: Connection, folder: Path, batch_size: int) -> None:
    """A process of its own: trains for as long as it is told, and says how many sentences a second that were."""
    step = partial(this_job, precision="no", batching="packed")(folder, batch_size)
    for _ in range(3):
        step()
    connection.send("ready")
    while seconds := connection.recv():
        started, sentences = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            sentences += step()[0]
        connection.send(sentences / (time.perf_counter() - started))
    os._exit(0)


@contextmanager
def programs(count: int) -> Iterator[None]:
    """Other programs that each keep a core busy."""
    busy = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for program in busy:
            program.kill()
            program.wait()


def describe(speeds: Speeds, arguments: argparse.Namespace, load: float) -> dict[str, Any]:
    """Medians over the rounds; ratios are of each round, so that a noisy moment strikes both sides."""
    figures: dict[str, Any] = {
        "what": "training throughput on a CPU in sentences/s, float32, with one thread and all cores' threads, which "
        "spin for long or briefly while they wait; alone and beside one busy program for every two cores",
        **circumstances(),
        "load_before": round(load, 2),
        "rounds": arguments.rounds,
    }
    for shape in arguments.shapes:
        layers, width, inner, _, batch_size = SHAPES[shape]
        figures[shape] = {"layers": layers, "width": width, "feed_forward_width": inner, "batch_size": batch_size}
        for neighbor in ("alone", "beside"):
            of_way = {way: speeds[shape, way, neighbor] for way in ("1 thread", "spinning", "spinning briefly")}
            figures[shape][neighbor] = {
                way: {"median": round(statistics.median(own)), "by_round": [round(speed) for speed in own]}
                for way, own in of_way.items()
            } | {
                f"{way} / spinning": ratio(of_way[way], of_way["spinning"]) for way in ("1 thread", "spinning briefly")
            }
    return figures


if __name__ == "__main__":
    main()
