"""The card of an exported model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sst2.config.class_names import in_words, order_of_classes
from sst2.config.flag_groups import DEFAULT_MODEL, LABEL_NAMES, SAMPLE
from sst2.config.settings import Settings, is_path

# Those of two classes, then those of more; a card has the ones that there are.
METRICS = (
    "accuracy precision recall f1 f1_macro f1_weighted precision_macro recall_macro matthews roc_auc loss ece"
).split()
OF_LOSS: dict[str, Any] = {"class_weights": ["none"], "label_smoothing": 0.0}  # told where they are not these


def model_card(settings: Settings, metrics: dict[str, Any], train_count: int, architecture: str = "DistilBERT") -> str:
    """The card: what it was trained on and how, its metrics with their interval, how it was selected, how to use it."""
    low, high = metrics["accuracy_ci95"]
    model, dataset = _public_name(settings.model_name_or_path), _dataset_name(settings)
    is_sentiment = tuple(settings.label_names) == LABEL_NAMES
    count = "two" if len(settings.label_names) == 2 else len(settings.label_names)
    what = "the sentiment of sentences" if is_sentiment else f"sentences of {count} classes"
    header = ["---", "library_name: transformers", "pipeline_tag: text-classification"]
    tag = architecture.lower()
    header += [f"tags: [sentiment-analysis, {tag}, sst2]" if is_sentiment else f"tags: [{tag}]"]
    if settings.model_name_or_path in (DEFAULT_MODEL, SAMPLE):
        header += ["license: apache-2.0"]  # other checkpoints have licenses of their own
    if _is_on_hub(settings.model_name_or_path):
        header += [f"base_model: {model}"]
    if _is_on_hub(settings.dataset_name):
        header += [f"datasets: [{dataset}]"]
    values = [f"| {name} | {metrics[name]:.4f} |" for name in METRICS if metrics.get(name) is not None]
    recipe = [f"| optimizer steps | {metrics['step']} of {settings.max_train_steps} |"]
    recipe += [f"| epochs | {metrics['epoch']:.2f} |"]
    recipe += [
        f"| {name} | {getattr(settings, name)} |"
        for name in (
            "global_batch_size learning_rate lr_scheduler_type num_warmup_steps "
            "weight_decay max_grad_norm max_length mixed_precision seed"
        ).split()
    ]
    for name, default in OF_LOSS.items():
        if (value := getattr(settings, name)) != default:
            recipe += [f"| {name} | {' '.join(value) if isinstance(value, list) else value} |"]
    sections = [
        "\n".join([*header, "---", f"# {settings.run_dir.name}"]),
        f"{architecture} for {what}: {in_words(settings.label_names, 'or')}. Fine-tuned from {model}.",
        "```python\nfrom transformers import pipeline",
        'pipeline("text-classification", "PATH_OR_NAME_OF_THIS_MODEL")'
        f'("{example_sentence(settings.label_names)}")\n```',
        "## Data",
        f"{dataset}: trained on {train_count} sentences, evaluated on {metrics['count']} ({metrics['split']}).",
        "## Evaluation",
        f"On {metrics['count']} {metrics['split']} sentences, each counted once. 95 % interval of the accuracy "
        f"(Wilson): {low:.4f} to {high:.4f}. Checkpoint: {metrics['checkpoint']}, {metrics['selected']}.",
        "\n".join(["| metric | value |", "|---|---|", *values]),
        *_table_of_classes(metrics.get("per_class", {})),
        "## Training",
        "\n".join(["| setting | value |", "|---|---|", *recipe]),
    ]
    return "\n\n".join(sections) + "\n"


def example_sentence(label_names: Sequence[str]) -> str:
    """What a card classifies to show the model's use: never a sentence of the data, which may be private."""
    return "a gripping, funny film" if order_of_classes(label_names, LABEL_NAMES) else "a sentence of your own"


def _table_of_classes(per_class: dict[str, dict[str, float]]) -> list[str]:
    """What is known of each of more than two classes; nothing otherwise."""
    lines = [
        f"| {_cell(name)} | {values['precision']:.4f} | {values['recall']:.4f} | {values['f1']:.4f} | "
        f"{values['support']} |"
        for name, values in per_class.items()
    ]
    header = ["| class | precision | recall | F1 | sentences |", "|---|---|---|---|---|"]
    return ["\n".join([*header, *lines])] if lines else []


def _cell(name: str) -> str:
    """The name of a class as a cell of a table."""
    return " ".join(name.split()).replace("|", "\\|")


def placeholder_metrics(label_names: Sequence[str]) -> dict[str, Any]:
    """Metrics with every name that a card has, for one that is written before there are any."""
    names = [*METRICS, "count", "split", "step", "epoch", "checkpoint", "selected"]
    of_class = dict.fromkeys(("precision", "recall", "f1", "support"), 0.0)
    several = {"per_class": dict.fromkeys(label_names, of_class)} if len(label_names) > 2 else {}
    return dict.fromkeys(names, 0) | {"accuracy_ci95": (0, 1)} | several


def _dataset_name(settings: Settings) -> str:
    if settings.smoke:
        return "the project's generated sample"
    return Path(settings.train_file).name if settings.train_file else _public_name(str(settings.dataset_name))


def _is_on_hub(name: str | None) -> bool:
    return name not in (None, SAMPLE) and not Path(str(name)).exists() and not is_path(str(name))


def _public_name(name: str) -> str:
    """A hub name as it is; of a folder only the last part, or that of a run, since a card is published."""
    if name == SAMPLE:
        return "a tiny DistilBERT with random weights"
    if not (Path(name).exists() or is_path(name)):
        return name
    place = Path(name).resolve()
    return f"the model of the run {place.parent.name}" if place.name == "model" else place.name
