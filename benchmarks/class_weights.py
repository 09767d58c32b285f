"""What `--class_weights balanced` is worth on five classes, one of which is fifty times as frequent as another.

    python benchmarks/class_weights.py --output benchmarks/results/class_weights.json

The sentences are generated: some words of their class, one of another class, and words of none. A tiny DistilBERT is
trained on them from random weights, with the weights and without, by each of the seeds. The difference is that of two
runs of one seed; its interval is Student's t over the seeds.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # for benchmarks

WORDS = {
    "sport": "match goal team player coach score league cup race win",
    "politics": "vote party law minister election senate debate treaty reform budget",
    "science": "atom cell star theory energy planet virus lab data genome",
    "business": "market bank price trade profit share loan tax firm merger",
    "arts": "film song poem stage novel museum dance opera painter choir",
}
COMMON = "the a of in with and about for new old big last next very quite some many few first late"
TRAIN = {"sport": 1000, "politics": 500, "science": 200, "business": 60, "arts": 20}
VALIDATION_TIMES = 2  # as many sentences of each class as in training, times this
FLAGS = "--num_train_epochs 5 --learning_rate 1e-3 --warmup_ratio 0.1 --logging_steps 100 --max_length 64".split()
WAYS = {"none": ["--class_weights", "none"], "balanced": ["--class_weights", "balanced"]}
COMPARED = ("f1_macro", "accuracy")


def sentence(draw: Random, topic: str) -> str:
    """Two words of the topic, one of another, and two to eight of none, in any order."""
    other = draw.choice([name for name in WORDS if name != topic])
    words = [*draw.choices(WORDS[topic].split(), k=2), draw.choice(WORDS[other].split())]
    words += draw.choices(COMMON.split(), k=draw.randint(2, 8))
    draw.shuffle(words)
    return " ".join(words)


def write_tsv(file: Path, counts: Mapping[str, int], seed: int) -> Path:
    """So many sentences of each class, shuffled."""
    draw = Random(seed)
    rows = [f"{sentence(draw, topic)}\t{topic}\n" for topic, count in counts.items() for _ in range(count)]
    draw.shuffle(rows)
    file.write_text("sentence\tlabel\n" + "".join(rows), encoding="utf-8")
    return file


def write_model(folder: Path) -> Path:
    """A tiny DistilBERT of random weights, with the sample's tokenizer."""
    import torch
    from transformers import DistilBertModel

    from sst2.data.sample import sample_config, sample_tokenizer

    tokenizer = sample_tokenizer()
    torch.manual_seed(0)
    DistilBertModel(sample_config(len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train(flags: list[object], run: Path) -> dict[str, Any]:
    """The final metrics of a run."""
    command = [sys.executable, HERE.parent / "train_sst2.py", *flags, "--output_dir", run]
    subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def differences(figures: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """By metric, how much more balanced weights have than none: mean over the pairs, and its 95 % interval."""
    from sst2.evaluation.significance import mean_interval

    found = {}
    for name in COMPARED:
        pairs = zip(figures["balanced"], figures["none"], strict=True)
        mean, deviation, interval = mean_interval([weighted[name] - plain[name] for weighted, plain in pairs])
        found[name] = {"mean": mean, "deviation": deviation, "ci95": interval}
    return found


def main() -> None:
    """Train, print the figures, and write them to `--output`."""
    from benchmarks.throughput import circumstances

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of sentences")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    counts = {topic: max(1, round(count * arguments.scale)) for topic, count in TRAIN.items()}
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        flags: list[object] = ["--model_name_or_path", write_model(folder / "model"), *FLAGS]
        flags += ["--train_file", write_tsv(folder / "train.tsv", counts, seed=0)]
        validation = {topic: VALIDATION_TIMES * count for topic, count in counts.items()}
        flags += ["--validation_file", write_tsv(folder / "dev.tsv", validation, seed=1)]
        for seed in arguments.seeds:
            for way, words in WAYS.items():
                runs[way].append(train([*flags, *words, "--seed", seed], folder / f"{way}-{seed}"))
    figures = {
        "what": "macro F1 of five classes, 50 to 1, with balanced weights of the classes in the loss and without",
        **circumstances(),
        "training_sentences": counts,
        "flags": FLAGS,
        "seeds": arguments.seeds,
        "runs": {
            way: [{name: run[name] for name in (*COMPARED, "loss", "per_class")} for run in of_way]
            for way, of_way in runs.items()
        },
        "balanced_minus_none": differences(runs),
    }
    print(json.dumps({name: value for name, value in figures.items() if name != "runs"}, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
