"""Strong and weak scaling over the processes of one host, measured, and held against the model of docs/performance.md.

    python benchmarks/scaling.py --output benchmarks/results/scaling.json

Strong: the same sentences a step, shared by more processes. Weak: the same sentences for each process. Each run is
`train_sst2.py` on a model of DistilBERT-base's size with random weights, over gloo, each process on a core of its own.
All runs take turns, several rounds in one go.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from sst2.data.sample import sample_sentences, sample_tokenizer
from sst2.distributed.devices import processor

SCRIPT = Path(__file__).parent.parent / "train_sst2.py"
STEPS, WARM_UP = 10, 3  # of each run; the first ones are not counted
BUCKET_BYTES = 25 << 20  # of DistributedDataParallel
BACKWARD_SHARE = (
    2 / 3
)  # of a step's arithmetic: the backward pass has two matrix products for each of the forward one's
BANDWIDTH_PROBE = """
import os, statistics, time, torch
from torch import distributed
distributed.init_process_group("gloo")
for count in (1, int(os.environ["COUNT"])):
    numbers, seconds = torch.ones(count), []
    for _ in range(8):
        distributed.barrier()
        began = time.perf_counter()
        distributed.all_reduce(numbers)
        seconds.append(time.perf_counter() - began)
    if distributed.get_rank() == 0:
        print(statistics.median(seconds[2:]))
distributed.barrier()
os._exit(0)
"""


def all_reduce_seconds(num_bytes: float, ranks: int, bandwidth: float, latency: float) -> float:
    """The faster of two ways to add up over all ranks, as NCCL chooses.

    A ring (Patarasuk and Yuan, 2009) takes 2 (n - 1) turns, each of which sends one n-th of the data. A double binary
    tree (Sanders, Speck and Träff, 2009) sends all of it up and down, with one message for each of its levels.

    Args:
        num_bytes: that each rank has.
        ranks: number of ranks.
        bandwidth: of the slowest wire, bytes per second.
        latency: of one message, seconds.
    """
    ring = 2 * (ranks - 1) * (latency + num_bytes / ranks / bandwidth)
    tree = 2 * (math.ceil(math.log2(ranks)) * latency + num_bytes / bandwidth)
    return min(ring, tree)


def predicted_step_seconds(
    compute: float,
    gradient_bytes: float,
    last_bytes: float,
    ranks: int,
    bandwidth: float,
    latency: float,
    hidden: float,
) -> float:
    """Seconds of one step of data-parallel training.

    Args:
        compute: of one rank's share of the sentences alone.
        gradient_bytes: that are sent in all, bucket by bucket, as the backward pass gets them done.
        last_bytes: of the bucket that is done last, and so is hidden behind nothing: that of the word embeddings.
        ranks: number of ranks.
        bandwidth: of the slowest wire, bytes per second.
        latency: of one message, seconds.
        hidden: share of the backward pass behind which sending can hide; 0 where it takes the same processor.
    """
    buckets = max(1, round(gradient_bytes / BUCKET_BYTES))
    earlier = all_reduce_seconds(gradient_bytes - last_bytes, ranks, bandwidth, latency * max(1, buckets - 1))
    last = all_reduce_seconds(last_bytes, ranks, bandwidth, latency)
    return compute + max(0.0, earlier - hidden * BACKWARD_SHARE * compute) + last


def main() -> None:
    """Measure, print the figures, and write them to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="at most; default: one a core")
    parser.add_argument("--sentences", type=int, default=16, help="of one process, weak; of a step, strong")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument(
        "--predict", action="store_true", help="print the tables of docs/performance.md, measure nothing"
    )
    arguments = parser.parse_args()
    if arguments.predict:
        print(f"{predictions()}\n\n{strong_predictions()}")
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments)
    print(json.dumps(figures, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


# Per GPU, in bytes per second, and the latency of a message in seconds: what vendors state, nothing measured here.
LINKS = {
    "NVLink 4 (450 GB/s)": (450e9, 3e-6),
    "InfiniBand NDR (50 GB/s)": (50e9, 5e-6),
    "InfiniBand HDR (25 GB/s)": (25e9, 5e-6),
    "100 Gbit Ethernet (12.5 GB/s)": (12.5e9, 20e-6),
    "10 Gbit Ethernet (1.25 GB/s)": (1.25e9, 30e-6),
}
BASE_GRADIENTS, BASE_EMBEDDINGS = 4 * 66_955_010, 4 * (30_522 + 512 + 2) * 768  # bytes, DistilBERT-base


def predictions(compute: float = 0.02, counts: tuple[int, ...] = (8, 64, 256, 1024)) -> str:
    """Weak scaling by the model, as a markdown table of efficiencies: float32 gradients, and in bf16."""
    lines = ["| link of each GPU | " + " | ".join(f"{count} GPUs" for count in counts) + " |"]
    lines.append("|---" * (len(counts) + 1) + "|")
    for name, (bandwidth, latency) in LINKS.items():
        cells = []
        for count in counts:
            seconds = [
                predicted_step_seconds(
                    compute, BASE_GRADIENTS * size, BASE_EMBEDDINGS * size, count, bandwidth, latency, hidden=1
                )
                for size in (1, 0.5)
            ]
            cells.append(" / ".join(f"{100 * compute / value:.0f} %" for value in seconds))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


# One H100, DistilBERT-base, packed, bf16: seconds of a step of so many sentences as a CUDA graph, and how many times as
# long it takes operation by operation at the first of them (results/throughput_gpu.json, throughput_gpu_1024.json and
# ablations_gpu.json).
MEASURED = (32, 32 / 8666), (1024, 1024 / 37556)
EAGER_TIMES = 4.96
GPUS_OF_A_NODE = 8
MEMORY_BANDWIDTH = 3.35e12  # bytes per second that the vendor states for an H100; nothing measured here
# Of each parameter, by gradients that are copied to the flat buffer, rounded to bf16 and back.
FLAT_BYTES = (4 + 4) + (4 + 2) + (2 + 4)


def step_seconds(sentences: float) -> float:
    """Of one GPU, captured: a line through both measured points."""
    (few, fast), (many, slow) = MEASURED
    return fast + (slow - fast) / (many - few) * (sentences - few)


def _sent_over_nodes(num_bytes: float, ranks: int) -> float:
    """Seconds to add up over all ranks: within nodes, between those of the same place in each node, within nodes."""
    within, nodes = min(ranks, GPUS_OF_A_NODE), -(-ranks // GPUS_OF_A_NODE)
    seconds = all_reduce_seconds(num_bytes, within, *LINKS["NVLink 4 (450 GB/s)"])
    if nodes > 1:
        seconds += all_reduce_seconds(num_bytes / within, nodes, *LINKS["InfiniBand NDR (50 GB/s)"])
    return seconds


def strong_predictions(
    batches: tuple[int, ...] = (32, 256, 1024), counts: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
) -> str:
    """Strong scaling by the model, as a markdown table of milliseconds a step.

    In three parts, gradients in bf16, which nothing hides; and operation by operation under DistributedDataParallel,
    float32, which hide behind the backward pass. NVLink within a node of 8 GPUs; between nodes, an InfiniBand NDR for
    each GPU, all of which send a part of what a node sends.
    """
    lines = ["| sentences a step | " + " | ".join(f"{count} GPU{'s' * (count > 1)}" for count in counts) + " |"]
    lines.append("|---" * (len(counts) + 1) + "|")
    for batch in batches:
        cells = []
        for count in counts:
            if count > batch:
                cells.append("")
                continue
            compute = step_seconds(batch / count)
            ddp = max(EAGER_TIMES * MEASURED[0][1], compute)
            if count > 1:
                copied = FLAT_BYTES * BASE_GRADIENTS / 4 / MEMORY_BANDWIDTH
                compute += copied + _sent_over_nodes(BASE_GRADIENTS / 2, count)
                exposed = _sent_over_nodes(BASE_GRADIENTS - BASE_EMBEDDINGS, count) - BACKWARD_SHARE * ddp
                ddp += max(0.0, exposed) + _sent_over_nodes(BASE_EMBEDDINGS, count)
            cells.append(f"{1e3 * compute:.1f} / {1e3 * ddp:.0f}")
        lines.append(f"| {batch} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train in all ways by turns, and time the wires between them. Returns the figures."""
    flags, gradient_bytes, last_bytes = prepare(folder, arguments.precision)
    counts = [2**power for power in range(10) if 2**power <= arguments.processes]
    ways = {(ranks, arguments.sentences * ranks) for ranks in counts}  # weak
    ways |= {(ranks, arguments.sentences) for ranks in counts}  # strong
    ways |= {(1, arguments.sentences // ranks) for ranks in counts}  # the arithmetic of a rank's share
    seconds: dict[tuple[int, int], list[dict[str, float]]] = {way: [] for way in ways}
    wires: dict[int, list[list[float]]] = {ranks: [] for ranks in counts[1:]}
    for _ in range(arguments.rounds):
        for way in sorted(ways):
            seconds[way].append(run(folder, *way, flags))
        for ranks, measured in wires.items():
            measured.append(probe(ranks, gradient_bytes))
    step = {way: statistics.median(entry["step"] for entry in entries) for way, entries in seconds.items()}
    rows = []
    for ranks in counts[1:]:
        one, all_bytes = (statistics.median(column) for column in zip(*wires[ranks], strict=True))
        latency = one / (2 * (ranks - 1))
        bandwidth = 2 * (ranks - 1) / ranks * gradient_bytes / (all_bytes - one)
        for kind, sentences in (("strong", arguments.sentences), ("weak", arguments.sentences * ranks)):
            share = step[1, sentences // ranks]
            whole = step[1, arguments.sentences] if kind == "strong" else share
            sizes = share, gradient_bytes, last_bytes, ranks, bandwidth, latency
            rows.append(
                {
                    "scaling": kind,
                    "processes": ranks,
                    "sentences_a_step": sentences,
                    "step_seconds": step[ranks, sentences],
                    "step_seconds_of_one_process": whole,
                    "efficiency": whole / step[ranks, sentences] / (ranks if kind == "strong" else 1),
                    "waiting_share": statistics.median(entry["waiting"] for entry in seconds[ranks, sentences]),
                    "bandwidth_bytes_per_second": bandwidth,
                    "latency_seconds": latency,
                    "predicted_step_seconds_nothing_hidden": predicted_step_seconds(*sizes, hidden=0),
                    "predicted_step_seconds_all_hidden": predicted_step_seconds(*sizes, hidden=1),
                }
            )
    return {
        "what": "Step times of train_sst2.py on several processes of one host, DistilBERT-base's size, a core each",
        "command": f"python benchmarks/scaling.py --processes {arguments.processes} --sentences {arguments.sentences} "
        f"--rounds {arguments.rounds} --precision {arguments.precision}",
        "machine": processor(),
        "cpu_count": os.cpu_count(),
        "torch": torch.__version__,
        "gradient_bytes": gradient_bytes,
        "scaling": rows,
        "step_seconds": {
            f"{ranks} processes, {count} sentences": [entry["step"] for entry in entries]
            for (ranks, count), entries in sorted(seconds.items())
        },
    }


def prepare(folder: Path, precision: str) -> tuple[list[str], int, int]:
    """Model and sentences to train on. Returns the flags, and the bytes of all gradients and of the last bucket's."""
    torch.manual_seed(0)
    model = DistilBertForSequenceClassification(DistilBertConfig())
    model.save_pretrained(folder / "model")
    sample_tokenizer().save_pretrained(folder / "model")
    for split in ("train", "validation"):
        rows = [f"{text}\t{label}\n" for text, label in zip(*sample_sentences(split), strict=True)]
        (folder / f"{split}.tsv").write_text("sentence\tlabel\n" + "".join(rows))
    flags = ["--model_name_or_path", folder / "model", "--train_file", folder / "train.tsv"]
    flags += ["--validation_file", folder / "validation.tsv", "--max_eval_samples", 2, "--max_train_steps", STEPS]
    flags += ["--logging_steps", 1, "--mixed_precision", precision, "--overwrite_output_dir"]
    embeddings = model.distilbert.embeddings
    last = sum(parameter.numel() for parameter in embeddings.parameters())
    return [*map(str, flags)], 4 * model.num_parameters(), 4 * last


def run(folder: Path, ranks: int, sentences: int, flags: list[str]) -> dict[str, float]:
    """Train once. Returns medians over steps: seconds of a step, and the share of them spent waiting."""
    command = [*launcher(ranks), str(SCRIPT), *flags, "--global_batch_size", str(sentences)]
    start([*command, "--output_dir", str(folder / "run")], ranks)
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    logged = [line for line in lines if line["split"] == "train" and line["step"] > WARM_UP]
    return {
        "step": statistics.median(sentences / line["sentences_per_second"] for line in logged),
        "waiting": statistics.median(line["waiting_share"] for line in logged),
    }


def probe(ranks: int, num_bytes: int) -> list[float]:
    """Seconds of an all-reduce of one number, and of all gradients."""
    command = [*launcher(ranks), "--no-python", sys.executable, "-c", BANDWIDTH_PROBE]
    output = start(command, ranks, COUNT=str(num_bytes // 4))
    return [float(line) for line in output.split()]


def launcher(ranks: int) -> list[str]:
    """The command that starts so many ranks on this machine."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]


def start(command: list[str], cores: int, **variables: str) -> str:
    """Run on so many of the machine's cores, or a single process would take them all."""
    done = subprocess.run(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | variables,
        preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores]),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


if __name__ == "__main__":
    main()
