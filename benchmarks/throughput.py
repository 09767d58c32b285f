"""How fast this job trains, against what else a user could run, on the same machine in the same run.

    python benchmarks/throughput.py --rounds 5 --steps 50 --output benchmarks/results/throughput.json

The plain loop is written after the transformers example without a Trainer: stock model, DataCollatorWithPadding,
DataLoader, accelerate; batches padded to their longest sentence, or to 128 tokens. The strongest that a user could pick
instead is transformers' Trainer, with batches grouped by length, compiled or not: benchmarks/trainer_baseline.py has
both. This job is `train_step` of train_sst2.py with `--batching packed`. All train DistilBERT-base with random weights,
or `--model`, on sentences of SST-2's lengths (benchmarks/data/sst2_lengths.json) and take turns: each is a process of
its own that rests while another one works.

Speeds are compared by real tokens, since batches grouped by length differ in their tokens. `--steps` of a multiple of
5 gives every round the same share of long and short ones. Compiling, and capturing CUDA graphs, is over when the steps
of `--warm_up` are, whose seconds are reported apart.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # for benchmarks and train_sst2.py

from benchmarks.trainer_baseline import Sampling, plain, trainer
from benchmarks.turns import Maker, Step, Turns, add_arguments, measure

LENGTHS = Path(__file__).parent / "data" / "sst2_lengths.json"
MODELS = ("distilbert", "bert", "modernbert")
SENTENCES, EPOCHS = 67_349, 3  # of SST-2, and of the usual recipe


def main() -> None:
    """Measure, print the figures, and write them to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=5, steps=10)
    parser.add_argument("--only", nargs="+", choices=sorted(VARIANTS), help="some of the ways to train")
    parser.add_argument("--model", choices=MODELS, default=MODELS[0], help="of base size; default: %(default)s")
    parser.add_argument("--output", type=Path, help="JSON file for the figures, written after each round")
    arguments = parser.parse_args()

    def keep(turns: Turns) -> None:
        figures = describe(turns, arguments)
        if arguments.output:
            arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # killed processes may still close files
        write_inputs(Path(folder), small=arguments.small, model=arguments.model)
        makers = {name: VARIANTS[name] for name in arguments.only or DEFAULTS}
        for name in [name for name in makers if arguments.small and "compiled" in name]:
            make: Any = VARIANTS[name]
            makers[name] = partial(make, backend="aot_eager")  # a compiler would take a minute
        turns = measure(Path(folder), makers, arguments, keep)
    print(json.dumps(describe(turns, arguments), indent=2))
    if turns.failed:
        sys.exit(f"failed: {', '.join(turns.failed)}")


def write_inputs(
    folder: Path, small: bool = False, validation_sentences: int | None = 64, model: str = MODELS[0]
) -> None:
    """A model of base size with random weights, and sentences of SST-2's lengths, as files that all read.

    Args:
        folder: gets `model`, `train.tsv` and `validation.tsv`.
        small: a tiny model and few sentences, to try a benchmark.
        validation_sentences: None for all.
        model: one of `MODELS`.
    """
    import torch
    from transformers import AutoModel

    from sst2.data.sample import sample_sentences, sample_tokenizer

    torch.manual_seed(0)
    tokenizer = sample_tokenizer()
    AutoModel.from_config(model_config(model, small)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    words = sorted({word for sentence in sample_sentences("train")[0] for word in sentence.split() if word.isalpha()})
    words = [word for word in words if len(tokenizer.tokenize(word)) == 1]
    generator = np.random.default_rng(0)
    histogram = json.loads(LENGTHS.read_text(encoding="utf-8"))
    for split, limit in (("train", 2000 if small else None), ("validation", 32 if small else validation_sentences)):
        lengths = np.repeat([*map(int, histogram[split])], [*histogram[split].values()])
        generator.shuffle(lengths)
        lines = [
            f"{' '.join(generator.choice(words, size=max(1, length - 2)))}\t{generator.integers(2)}\n"
            for length in lengths[:limit]
        ]
        (folder / f"{split}.tsv").write_text("sentence\tlabel\n" + "".join(lines), encoding="utf-8")


def model_config(model: str, small: bool) -> Any:
    """The defaults of its config, which are those of its base size; or something tiny with the same vocabulary."""
    from transformers import AutoConfig

    from sst2.models.architecture import tiny

    config = AutoConfig.for_model(model)
    return tiny(config) if small else config


def this_job(
    folder: Path, batch_size: int, precision: str, batching: str, graphs: str = "auto", kernels: str = "auto"
) -> Step:
    """The job itself, set up as by its command line."""
    import torch

    from sst2.config.arguments import parse_arguments
    from sst2.distributed.stop_requests import StopRequests
    from sst2.distributed.strategies.flat import FlatStrategy
    from sst2.models.attention import triton_works
    from sst2.runs.run_folder import RunFolder
    from train_sst2 import setup, train_step

    files = ["--train_file", folder / "train.tsv", "--validation_file", folder / "validation.tsv"]
    flags = ["--model_name_or_path", folder / "model", *files, "--output_dir", tempfile.mkdtemp(dir=folder)]
    flags += ["--per_device_train_batch_size", batch_size, "--mixed_precision", precision, "--batching", batching]
    flags += ["--cuda_graphs", graphs, "--kernels", kernels]
    settings = parse_arguments([*map(str, flags), "--max_train_steps", "100000"])
    trainer = setup(settings, StopRequests(), RunFolder(settings.run_dir))
    config = trainer.model_config
    width = config.hidden_size // config.num_attention_heads
    if kernels == "triton" and not triton_works(trainer.strategy.device, torch.bfloat16, width):
        sys.exit("these kernels do not work here")  # what would be measured has another name
    flat = trainer.strategy if isinstance(trainer.strategy, FlatStrategy) else None
    if kernels == "triton" and flat and not (flat.steps_by_kernel and flat.blocks_by_kernel):
        sys.exit("the kernels of blocks or AdamW do not work here")

    def step() -> tuple[int, int]:
        indices = trainer.plan.indices(trainer.state.step)
        train_step(trainer)
        return len(indices), int(trainer.splits["train"].lengths(indices).sum())

    return step


def variants(precision: str, name: str) -> dict[str, Maker]:
    """The ways to train in one precision, by name."""
    ways: dict[str, Maker] = {
        f"plain_{name}": partial(plain, precision=precision, padding="longest"),
        f"plain_{name}_padded_to_128": partial(plain, precision=precision, padding="128"),
        f"this_job_{name}_padded": partial(this_job, precision=precision, batching="padded"),
        f"this_job_{name}_packed": partial(this_job, precision=precision, batching="packed"),
    }
    packed = partial(this_job, precision=precision, batching="packed")
    ways[f"this_job_{name}_packed_split_graphs"] = partial(packed, graphs="yes")
    ways[f"this_job_{name}_packed_triton"] = partial(packed, kernels="triton")
    ways[f"this_job_{name}_packed_split_graphs_triton"] = partial(packed, graphs="yes", kernels="triton")
    strategies: dict[str, Sampling] = {"grouped": "group_by_length", "rebalanced": "batch_rebalance"}
    for word, sampling in strategies.items():
        way = partial(trainer, precision=precision, sampling=sampling)
        ways[f"trainer_{name}_{word}"] = way
        ways[f"trainer_{name}_{word}_compiled"] = partial(way, compiled="default")
        ways[f"trainer_{name}_{word}_compiled_graphs"] = partial(way, compiled="reduce-overhead")
    # in 16 bits and without dropout, the backward pass of torch's fused attention, the default, is slow on a CPU
    eager = partial(trainer, precision=precision, sampling="group_by_length", attention="eager")
    return ways | {f"trainer_{name}_grouped_eager": eager}


VARIANTS: dict[str, Maker] = variants("no", "fp32") | variants("bf16", "bf16")
# without those that need a GPU, and room for many graphs, or are for a CPU
DEFAULTS = [name for name in VARIANTS if not name.endswith(("graphs", "triton", "eager"))]


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


def describe(turns: Turns, arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians over the rounds; ratios are of each round, so that a noisy moment strikes both sides."""
    from sst2.models.architecture import display_name
    from sst2.training.flops import flop_per_token

    config = model_config(arguments.model, arguments.small)
    per_token = flop_per_token(config)
    histogram = json.loads(LENGTHS.read_text(encoding="utf-8"))["train"]
    all_tokens = EPOCHS * sum(int(length) * count for length, count in histogram.items())
    peaks = {dtype: statistics.median(rates) for dtype, rates in turns.peaks.items() if rates}
    model = "a tiny model, for a trial alone" if arguments.small else f"{display_name(config)}-base with random weights"
    figures: dict[str, Any] = {
        "what": f"training throughput, {model}, sentences of SST-2's lengths",
        **circumstances(),
        "batch_size": arguments.batch_size,
        "rounds": len(next(iter(turns.rounds.values()))),
        "steps_of_a_round": arguments.steps,
        "matrix_peak_gflops": {dtype: rate / 1e9 for dtype, rate in peaks.items()},
        "formula": "model FLOP of a step: 3 * 2 * (4 d^2 + 2 d h) * layers for each real token, no padding, all of the "
        "last layer; attention scores, under 1 % at these lengths, are left out",
    }
    speeds = {name: [each.tokens / each.seconds for each in rounds] for name, rounds in turns.rounds.items() if rounds}
    for name, by_round in speeds.items():
        rounds, warm_up, speed = turns.rounds[name], turns.warm_up[name], statistics.median(by_round)
        step_seconds = statistics.median(each.seconds for each in rounds) / arguments.steps
        figures[name] = {
            "sentences_per_second": statistics.median(each.sentences / each.seconds for each in rounds),
            "tokens_per_second": speed,
            "step_milliseconds": 1000 * step_seconds,
            "model_gflops": per_token * speed / 1e9,
            "share_of_matrix_peak": per_token * speed / peaks["bfloat16" if "bf16" in name else "float32"],
            "seconds_for_three_epochs_at_this_speed": all_tokens / speed,
            "warm_up_seconds": warm_up.seconds,
            "warm_up_seconds_beyond_its_steps": warm_up.seconds - arguments.warm_up * step_seconds,
            "graphs_compiled_before_and_in_the_rounds": [warm_up.compiled, rounds[-1].compiled - warm_up.compiled],
            "peak_memory_mib": rounds[-1].memory_mib,
            "tokens_per_second_by_round": by_round,
            "tokens_per_cpu_second_by_round": [each.tokens / each.cpu_seconds for each in rounds],
        }
    work = {name: figures[name]["tokens_per_cpu_second_by_round"] for name in speeds}
    figures["ratios_by_cpu_seconds"] = ratios(work)["ratios"]
    return figures | ratios(speeds) | ({"failed": turns.failed} if turns.failed else {})


def ratios(speeds: dict[str, list[float]]) -> dict[str, Any]:
    """Of this job's speeds over the others', and which of those in the same precision is the fastest."""
    own = [name for name in speeds if name.startswith("this_job")]
    others = [name for name in speeds if not name.startswith("this_job")]
    found: dict[str, Any] = {
        "ratios": {f"{name} / {other}": ratio(speeds[name], speeds[other]) for name in own for other in others}
    }
    for precision in ("fp32", "bf16"):
        if rivals := [name for name in others if f"_{precision}" in name]:
            best = max(rivals, key=lambda name: statistics.median(speeds[name]))
            found[f"strongest_baseline_{precision}"] = best
    return found


def ratio(own: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Median, and each round, of one speed over another, for as many rounds as both have."""
    ratios = [one / two for one, two in zip(own, theirs, strict=False)]
    return {"median": statistics.median(ratios), "by_round": ratios}


if __name__ == "__main__":
    main()
