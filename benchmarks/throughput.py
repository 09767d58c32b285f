"""How fast this job trains, against a plain loop on the same machine in the same run.

    python benchmarks/throughput.py --rounds 5 --output benchmarks/results/throughput.json

The plain loop is written after the transformers example without a Trainer: stock model, DataCollatorWithPadding,
DataLoader, accelerate; batches padded to their longest sentence, or to 128 tokens. This job is `train_step` of
train_sst2.py with `--batching packed`. All train DistilBERT-base with random weights on sentences of SST-2's lengths
(benchmarks/data/sst2_lengths.json) and take turns: each is a process of its own that rests while another one works.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # for train_sst2.py

LENGTHS = Path(__file__).parent / "data" / "sst2_lengths.json"
SENTENCES, EPOCHS = 67_349, 3  # of SST-2, and of the usual recipe
WARM_UP = 8  # steps of each process before it is timed
Step = Callable[[], tuple[int, int]]  # takes one optimizer step; returns its sentences and their tokens
Maker = Callable[[Path, int], Step]  # of inputs and batch size
Rounds = dict[str, list[tuple[float, int, int]]]
Peaks = dict[str, list[float]]
Memory = dict[str, float]


def main() -> None:
    """Measure, print the figures, and write them to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps of each in a round")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--only", nargs="+", choices=sorted(VARIANTS), help="some of the ways to train")
    parser.add_argument("--profile", type=Path, metavar="DIR", help="write a trace of this job's steps, and a table")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder))
        if arguments.profile:
            profile(Path(folder), arguments.batch_size, arguments.profile)
            return
        makers = {name: VARIANTS[name] for name in arguments.only or VARIANTS}
        figures = describe(*measure(Path(folder), makers, arguments), arguments.rounds)
    print(json.dumps(figures, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def write_inputs(folder: Path) -> None:
    """DistilBERT-base with random weights, and sentences of SST-2's lengths, as files that all read."""
    import torch
    from transformers import DistilBertConfig, DistilBertModel

    from sst2.data.sample import sample_sentences, sample_tokenizer

    torch.manual_seed(0)
    tokenizer = sample_tokenizer()
    DistilBertModel(DistilBertConfig()).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    words = sorted({word for sentence in sample_sentences("train")[0] for word in sentence.split() if word.isalpha()})
    words = [word for word in words if len(tokenizer.tokenize(word)) == 1]
    generator = np.random.default_rng(0)
    histogram = json.loads(LENGTHS.read_text(encoding="utf-8"))
    for split, limit in (("train", None), ("validation", 64)):
        lengths = np.repeat([*map(int, histogram[split])], [*histogram[split].values()])
        generator.shuffle(lengths)
        lines = [
            f"{' '.join(generator.choice(words, size=max(1, length - 2)))}\t{generator.integers(2)}\n"
            for length in lengths[:limit]
        ]
        (folder / f"{split}.tsv").write_text("sentence\tlabel\n" + "".join(lines), encoding="utf-8")


def plain(folder: Path, batch_size: int, precision: str, padding: str) -> Step:
    """A loop as it is usually written."""
    import torch
    from accelerate import Accelerator
    from datasets import Dataset
    from torch.utils.data import DataLoader
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        default_data_collator,
        get_scheduler,
    )

    from sst2.distributed.devices import runs_on_cpu

    accelerator = Accelerator(mixed_precision=precision, cpu=runs_on_cpu())
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=2, dtype=torch.float32)
    lines = (folder / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    sentences, labels = zip(*(line.split("\t") for line in lines), strict=True)
    options: dict[str, Any] = {"padding": "max_length"} if padding == "128" else {}
    encoded = tokenizer(list(sentences), truncation=True, max_length=128, return_token_type_ids=False, **options)
    data = Dataset.from_dict({**encoded, "labels": [*map(int, labels)]})
    collator = default_data_collator if padding == "128" else DataCollatorWithPadding(tokenizer)
    loader = DataLoader(data, shuffle=True, collate_fn=collator, batch_size=batch_size)
    decayed = [weight for name, weight in model.named_parameters() if not name.endswith(("bias", "LayerNorm.weight"))]
    exempt = [weight for name, weight in model.named_parameters() if name.endswith(("bias", "LayerNorm.weight"))]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": exempt, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-5)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=100, num_training_steps=10_000)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    model.train()

    def batches() -> Iterator[dict[str, Any]]:
        while True:
            yield from loader

    endless = batches()

    def step() -> tuple[int, int]:
        batch = next(endless)
        loss = model(**batch).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        return len(batch["labels"]), int(batch["attention_mask"].sum())

    return step


def this_job(folder: Path, batch_size: int, precision: str, batching: str) -> Step:
    """The job itself, set up as by its command line."""
    from sst2.config.arguments import parse_arguments
    from sst2.distributed.stop_requests import StopRequests
    from sst2.runs.run_folder import RunFolder
    from train_sst2 import setup, train_step

    files = ["--train_file", folder / "train.tsv", "--validation_file", folder / "validation.tsv"]
    flags = ["--model_name_or_path", folder / "model", *files, "--output_dir", tempfile.mkdtemp(dir=folder)]
    flags += ["--per_device_train_batch_size", batch_size, "--mixed_precision", precision, "--batching", batching]
    settings = parse_arguments([*map(str, flags), "--max_train_steps", "100000"])
    trainer = setup(settings, StopRequests(), RunFolder(settings.run_dir))

    def step() -> tuple[int, int]:
        indices = trainer.plan.indices(trainer.state.step)
        train_step(trainer)
        return len(indices), int(trainer.splits["train"].lengths(indices).sum())

    return step


VARIANTS: dict[str, Maker] = {
    "plain_fp32": partial(plain, precision="no", padding="longest"),
    "plain_bf16": partial(plain, precision="bf16", padding="longest"),
    "plain_fp32_padded_to_128": partial(plain, precision="no", padding="128"),
    "plain_bf16_padded_to_128": partial(plain, precision="bf16", padding="128"),
    "this_job_fp32_padded": partial(this_job, precision="no", batching="padded"),
    "this_job_fp32_packed": partial(this_job, precision="no", batching="packed"),
    "this_job_bf16_padded": partial(this_job, precision="bf16", batching="padded"),
    "this_job_bf16_packed": partial(this_job, precision="bf16", batching="packed"),
}


def work(connection: Connection, make: Maker, folder: Path, batch_size: int) -> None:
    """A process of its own: takes as many steps as it is told, and says how long they took."""
    import torch

    step = make(folder, batch_size)
    for _ in range(WARM_UP):  # of different lengths; the allocator and the caches know them then
        step()
    connection.send("ready")
    while steps := connection.recv():
        synchronize(torch)
        started = time.perf_counter()
        counts = [step() for _ in range(steps)]
        synchronize(torch)
        connection.send((time.perf_counter() - started, *map(sum, zip(*counts, strict=True))))
    on_gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    connection.send(peak / 2**20)
    os._exit(0)


def synchronize(torch: Any) -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(folder: Path, makers: dict[str, Maker], arguments: argparse.Namespace) -> tuple[Rounds, Peaks, Memory]:
    """Have all ways to train take turns.

    Args:
        folder: of `write_inputs`.
        makers: of their steps, by name; called each in a process of its own.
        arguments: with `rounds`, `steps` and `batch_size`.

    Returns:
        By name: for each round its seconds, sentences and tokens; FLOP/s of large matrix products by precision, for
        each round; peak memory in MiB.
    """
    import torch

    at_once = torch.cuda.is_available()  # where cores do the work, starting processes would slow each other down
    context = multiprocessing.get_context("spawn")
    ends: dict[str, Connection] = {}
    for name, make in makers.items():
        ends[name], other = context.Pipe()
        context.Process(target=work, args=(other, make, folder, arguments.batch_size), daemon=True).start()
        other.close()  # else nobody would hear of its end
        if not at_once:
            assert ends[name].recv() == "ready"
    for end in ends.values() if at_once else ():
        assert end.recv() == "ready"
    rounds: Rounds = {name: [] for name in makers}
    peaks: Peaks = {"float32": [], "bfloat16": []}
    for _ in range(arguments.rounds):
        for name, end in ends.items():
            end.send(arguments.steps)
            rounds[name].append(end.recv())
        for dtype, rates in peaks.items():
            rates.append(peak(dtype))
    memory = {}
    for name, end in ends.items():
        end.send(0)
        memory[name] = end.recv()
    return rounds, peaks, memory


def peak(dtype: str) -> float:
    """FLOP/s of large matrix products, the most that a step could reach."""
    import torch

    from sst2.training.flops import matrix_peak

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return matrix_peak(device, getattr(torch, dtype), seconds=1.0, size=8192 if device.type == "cuda" else 2048)


def circumstances() -> dict[str, Any]:
    """Where and with what figures were measured."""
    import torch
    import transformers

    from sst2.distributed.devices import processor

    return {
        "command": f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip(),
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} x {processor()}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "threads": torch.get_num_threads(),
    }


def describe(rounds: Rounds, peaks: Peaks, memory: Memory, count: int) -> dict[str, Any]:
    """Medians over the rounds; ratios are of each round, so that a noisy moment strikes both sides."""
    from transformers import DistilBertConfig

    from sst2.training.flops import flop_per_token

    base = flop_per_token(DistilBertConfig())  # whose defaults are DistilBERT-base
    speeds = {name: [sentences / seconds for seconds, sentences, _ in taken] for name, taken in rounds.items()}
    figures: dict[str, Any] = {
        "what": "training throughput, DistilBERT-base with random weights, sentences of SST-2's lengths",
        **circumstances(),
        "rounds": count,
        "matrix_peak_gflops": {dtype: statistics.median(rates) / 1e9 for dtype, rates in peaks.items()},
        "formula": "model FLOP of a step: 3 * 2 * (4 d^2 + 2 d h) * layers for each real token, no padding, all of the "
        "last layer; attention scores, under 1 % at these lengths, are left out",
    }
    for name, taken in rounds.items():
        precision = "bfloat16" if "bf16" in name else "float32"
        flops = [base * tokens / seconds for seconds, _, tokens in taken]
        figures[name] = {
            "sentences_per_second": statistics.median(speeds[name]),
            "tokens_per_second": statistics.median(tokens / seconds for seconds, _, tokens in taken),
            "model_gflops": statistics.median(flops) / 1e9,
            "share_of_matrix_peak": statistics.median(flops) / statistics.median(peaks[precision]),
            "seconds_for_three_epochs_at_this_speed": EPOCHS * SENTENCES / statistics.median(speeds[name]),
            "peak_memory_mib": memory[name],
            "sentences_per_second_by_round": speeds[name],
        }
    for name, own in speeds.items():
        for other, theirs in speeds.items():
            if name.startswith("this_job") and other.startswith("plain"):
                figures.setdefault("ratios", {})[f"{name} / {other}"] = ratio(own, theirs)
    return figures


def ratio(own: list[float], theirs: list[float]) -> dict[str, Any]:
    """Median, and each round, of one speed over another."""
    ratios = [one / two for one, two in zip(own, theirs, strict=True)]
    return {"median": statistics.median(ratios), "by_round": ratios}


def profile(folder: Path, batch_size: int, output: Path) -> None:
    """Where the time of a step goes, operator by operator."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    step = this_job(folder, batch_size, "bf16", "packed")
    on_gpu = torch.cuda.is_available()
    for _ in range(100 if on_gpu else 3):  # until all shapes are recorded
        step()
    with profiler(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        for _ in range(5):
            step()
    output.mkdir(parents=True, exist_ok=True)
    recorded.export_chrome_trace(str(output / "trace.json"))
    order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    table = recorded.key_averages().table(sort_by=order, row_limit=40)
    (output / "operators.txt").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
