"""Which recipe learns most from the same sentences, and in which time: measured on held-out training sentences.

    python benchmarks/recipes.py --model_name_or_path DIR --data_dir DIR --output benchmarks/results/recipes.json

DATA_DIR holds GLUE's train.tsv and dev.tsv. Each recipe differs from `baseline` in what its line below says and in
nothing else. For each seed, a tenth of train is held out, and all recipes train on the same `--sentences` of the rest,
in the same order where they can. Every run is `train_sst2.py` in a process of its own.

Differences are paired by seed: mean, standard error and p-value of a two-sided paired t-test, also after Holm's (1979)
correction for the number of recipes. The file is written after every run, and the same command goes on where it was
interrupted. `--sentences 0 --only padded` compares packed with padded batches over a whole epoch. Seconds are worth
something on an idle machine alone; the `load_average` of a run tells.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset

sys.path.insert(0, str(Path(__file__).parent.parent))  # for benchmarks

from benchmarks.recipe_figures import summarize, table
from sst2.config.settings import Settings
from sst2.data.splits import load_sentences
from sst2.distributed.devices import runs_on_cpu
from sst2.distributed.precision import choose_precision
from sst2.tracking.environment import describe_environment
from sst2.utils import console
from sst2.utils.atomic_file import write_json
from sst2.utils.errors import UserError, exit_codes

PROGRAM = "recipes.py"
WORKER = Path(__file__).with_name("recipe_worker.py")
HELD_OUT = 0.1


@dataclass(frozen=True)
class Recipe:
    """One way to train.

    Attributes:
        flags: of train_sst2.py, in place of `BASELINE`'s or beside them.
        alteration: of recipe_worker.py, for what no flag says.
        passes: over the sentences, of which there are as many times fewer: the number of steps stays.
        usable: tells of every training sentence whether it may be trained on; another one takes the place of one that
            may not.
    """

    flags: dict[str, Any] = field(default_factory=dict)
    alteration: str = "none"
    passes: int = 1
    usable: Callable[[Dataset], list[bool]] | None = None


def without_copies(data: Dataset) -> list[bool]:
    """Of each text only the first row."""
    seen: set[str] = set()
    texts = [sentence.strip() for sentence in data["sentence"]]
    return [not (text in seen or seen.add(text)) for text in texts]  # type: ignore[func-returns-value]


def without_conflicts(data: Dataset) -> list[bool]:
    """No row of a text that has both labels."""
    labels: defaultdict[str, set[int]] = defaultdict(set)
    for sentence, label in zip(data["sentence"], data["label"], strict=True):
        labels[sentence.strip()].add(label)
    return [len(labels[sentence.strip()]) == 1 for sentence in data["sentence"]]


BASELINE: dict[str, Any] = {
    "per_device_train_batch_size": 32,
    "batching": "packed",
    "learning_rate": 5e-5,
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0.06,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "mixed_precision": "auto",
}
RECIPES: dict[str, Recipe] = {
    "baseline": Recipe(),
    "padded": Recipe({"batching": "padded"}),
    "lr_2e-5": Recipe({"learning_rate": 2e-5}),
    "lr_1e-4": Recipe({"learning_rate": 1e-4}),
    "batch_16": Recipe({"per_device_train_batch_size": 16}),
    "batch_64_lr_7e-5": Recipe({"per_device_train_batch_size": 64, "learning_rate": 7e-5}),
    "batch_128_lr_1e-4": Recipe({"per_device_train_batch_size": 128, "learning_rate": 1e-4}),
    "cosine": Recipe({"lr_scheduler_type": "cosine"}),
    "constant_with_warmup": Recipe({"lr_scheduler_type": "constant_with_warmup"}),
    "no_weight_decay": Recipe({"weight_decay": 0.0}),
    "no_dropout": Recipe({"dropout": 0.0}),
    "two_passes_over_half": Recipe(passes=2),
    "ema": Recipe(alteration="ema"),
    "last_average": Recipe(alteration="last_average"),
    "constant_with_last_average": Recipe({"lr_scheduler_type": "constant_with_warmup"}, alteration="last_average"),
    "label_smoothing_0.1": Recipe({"label_smoothing": 0.1}),
    "layer_decay_0.9": Recipe(alteration="layer_decay"),
    "without_copies": Recipe(usable=without_copies),
    "without_conflicts": Recipe(usable=without_conflicts),
}


def main(argv: Sequence[str]) -> None:
    """Train what is missing in `--output`, and write the figures there after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", type=Path, required=True, metavar="DIR", help="checkpoint's folder")
    parser.add_argument("--data_dir", type=Path, required=True, metavar="DIR", help="with train.tsv and dev.tsv")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), help="these, and the baseline; default: all")
    parser.add_argument("--sentences", type=int, default=9600, help="to train on; 0: all that are not held out")
    parser.add_argument("--epochs", type=float, default=1.0, help="passes over them")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the figures; goes on with its runs")
    arguments = parser.parse_args(argv)
    names = [name for name in RECIPES if name == "baseline" or name in (arguments.only or RECIPES)]
    figures = read_or_begin(arguments)
    figures["command"] = command(arguments)
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:  # outside: whenever it is interrupted, all recipes have about the same seeds
            data = cut(arguments.data_dir, seed)
            for name in names:
                entry = entry_of(figures, name)
                if str(seed) in entry["runs"]:
                    continue
                try:
                    entry["runs"][str(seed)] = run(Path(folder), RECIPES[name], seed, data, arguments)
                except RuntimeError as error:  # one recipe may break down, and the others are still worth measuring
                    print(f"{name}, seed {seed}: {error}", file=sys.stderr, flush=True)
                    failed.append(f"{name} with seed {seed}")
                    continue
                summarize(figures["recipes"])
                write_json(arguments.output, figures)
                accuracy, seconds = (entry["runs"][str(seed)][key] for key in ("holdout_accuracy", "seconds"))
                print(f"{name}, seed {seed}: {accuracy:.4f} in {seconds:.1f} s", file=sys.stderr, flush=True)
    print(console.table(table(figures["recipes"]), markdown=True))
    if failed:
        sys.exit(f"not finished: {', '.join(failed)}")


def command(arguments: argparse.Namespace) -> str:
    """As it was given, with the names of folders only: where they lie is nobody else's business."""
    words = ["python benchmarks/recipes.py --model_name_or_path", arguments.model_name_or_path.resolve().name]
    words += ["--data_dir", arguments.data_dir.resolve().name, "--seeds", *arguments.seeds]
    words += ["--only", *arguments.only] if arguments.only else []
    words += ["--sentences", arguments.sentences, "--epochs", f"{arguments.epochs:g}"]
    return " ".join(map(str, [*words, "--output", arguments.output.name]))


def read_or_begin(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures so far.

    Raises:
        UserError: they are of other conditions, or files are missing.
    """
    conditions = describe(arguments)
    if not arguments.output.exists():
        what = "Recipes for fine-tuning on SST-2, on sentences held out of train; differences are to the baseline"
        return {"what": what, "command": "", "conditions": conditions, "baseline": BASELINE, "recipes": {}}
    try:
        figures: dict[str, Any] = json.loads(arguments.output.read_text(encoding="utf-8"))
        earlier = {**figures["conditions"], "baseline": figures["baseline"]}
        figures["recipes"].items()
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"--output {arguments.output} is no file of {PROGRAM} ({error!r}): name another") from None
    present = {**conditions, "baseline": BASELINE}
    if other := [name for name in present if present[name] != earlier.get(name)]:
        raise UserError(f"--output {arguments.output} was measured with other {' and '.join(other)}: name another file")
    return figures


def describe(arguments: argparse.Namespace) -> dict[str, Any]:
    """What runs must have in common to be compared."""
    model, data = arguments.model_name_or_path, arguments.data_dir
    files = [model / "config.json", model / "model.safetensors", data / "train.tsv", data / "dev.tsv"]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is not there: name folders with a model, and with train.tsv and dev.tsv")
    config = json.loads(files[0].read_text(encoding="utf-8"))
    shape = {name: config[name] for name in ("n_layers", "dim", "hidden_dim", "n_heads", "vocab_size")}
    precision = choose_precision("auto")[0]
    device = torch.device("cpu" if runs_on_cpu() else "cuda")
    environment = describe_environment(1, device, precision, {})
    return {
        "model": {"name": model.resolve().name, **shape, "sha256": sha256(files[1])},
        "data_sha256": {file.name: sha256(file) for file in files[2:]},
        "sentences": arguments.sentences,
        "epochs": arguments.epochs,
        "held_out": HELD_OUT,
        "machine": environment["device_name"],
        "cpu_count": environment["cpu_count"],
        "threads": environment["torch_threads"],
        "precision": precision,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def sha256(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def entry_of(figures: dict[str, Any], name: str) -> dict[str, Any]:
    """A recipe's part of the figures. Runs of what bore its name before are dropped."""
    recipe = RECIPES[name]
    definition = {"flags": recipe.flags, "alteration": recipe.alteration, "passes": recipe.passes}
    definition["usable"] = recipe.usable.__name__ if recipe.usable else "all"
    entry: dict[str, Any] | None = figures["recipes"].get(name)
    if entry is None or {key: entry.get(key) for key in definition} != definition:
        entry = figures["recipes"][name] = {**definition, "runs": {}}
    return entry


def cut(data_dir: Path, seed: int) -> dict[str, Dataset]:
    """`train` in an order of the seed's own, `holdout` and `validation`, as the job itself cuts them."""
    files = str(data_dir / "train.tsv"), str(data_dir / "dev.tsv")
    settings = Settings(
        train_file=files[0], validation_file=files[1], holdout_fraction=HELD_OUT, seed=seed, output_dir="unused"
    )
    data = load_sentences(settings)
    train = data["train"]
    # a stream of its own, beside those of the hold-out and of the epochs
    return data | {"train": train.select(np.random.default_rng([seed, 2**32 + 1]).permutation(len(train)))}


def training_sentences(train: Dataset, count: int, recipe: Recipe) -> tuple[Dataset, int]:
    """The sentences that a recipe trains on.

    The first `count`, and others in the very places of those that may not be used, while there are any: what remains
    is then visited in the same order as without the recipe.

    Returns:
        The sentences, and how many of the first `count` are not among them.
    """
    count //= recipe.passes
    usable = recipe.usable(train) if recipe.usable else [True] * len(train)
    spare = (row for row in range(count, len(train)) if usable[row])
    rows = [row if usable[row] else next(spare, None) for row in range(count)]
    return train.select(np.array([row for row in rows if row is not None])), count - sum(usable[:count])


def run(
    folder: Path, recipe: Recipe, seed: int, data: dict[str, Dataset], arguments: argparse.Namespace
) -> dict[str, float]:
    """One run in a fresh process.

    Raises:
        UserError: there are not as many sentences.
        RuntimeError: it failed.
    """
    available = len(data["train"])
    count = arguments.sentences or available
    if not recipe.passes <= count <= available:
        raise UserError(f"--sentences {count} cannot be had: give up to {available}, or 0 for all of them")
    train, left_out = training_sentences(data["train"], count, recipe)
    # The hold-out, eight times as large as dev.tsv, is the job's test split: `fit` evaluates the other by itself.
    parts = {"train": train, "validation": data["validation"], "test": data["holdout"]}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        flags = {"model_name_or_path": arguments.model_name_or_path.resolve(), "output_dir": f"{place}/run"}
        for name, part in parts.items():
            flags[f"{name}_file"] = write_tsv(Path(place) / f"{name}.tsv", part)
        flags |= {"seed": seed, "num_train_epochs": arguments.epochs * recipe.passes, **BASELINE, **recipe.flags}
        words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
        result = Path(place) / "result.json"
        launch = [sys.executable, str(WORKER), str(result), recipe.alteration, *words]
        # a cache of its own: what is tokenized here is of no later use
        variables = os.environ | {"HF_DATASETS_CACHE": str(folder / "cache")}
        done = subprocess.run(launch, env=variables, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-2000:]}")
        measured: dict[str, float] = json.loads(result.read_text(encoding="utf-8")) | {"left_out": left_out}
        return measured


def write_tsv(file: Path, data: Dataset) -> Path:
    """Write sentences and labels as `--train_file` takes them. Returns `file`."""
    rows = [f"{sentence}\t{label}\n" for sentence, label in zip(data["sentence"], data["label"], strict=True)]
    file.write_text("sentence\tlabel\n" + "".join(rows), encoding="utf-8")
    return file


if __name__ == "__main__":
    with exit_codes(PROGRAM):
        main(sys.argv[1:])
