"""The card of an exported model."""

from pathlib import Path
from typing import Any

from sst2.config.settings import DEFAULT_MODEL, LABEL_NAMES, SAMPLE, Settings, is_path


def model_card(settings: Settings, metrics: dict[str, Any], train_count: int, architecture: str = "DistilBERT") -> str:
    """The card: what it was trained on and how, its metrics with their interval, how it was selected, how to use it."""
    low, high = metrics["accuracy_ci95"]
    model, dataset = _public_name(settings.model_name_or_path), _dataset_name(settings)
    is_sentiment = tuple(settings.label_names) == LABEL_NAMES
    what = "the sentiment of sentences" if is_sentiment else "sentences of two classes"
    header = ["---", "library_name: transformers", "pipeline_tag: text-classification"]
    tag = architecture.lower()
    header += [f"tags: [sentiment-analysis, {tag}, sst2]" if is_sentiment else f"tags: [{tag}]"]
    if settings.model_name_or_path in (DEFAULT_MODEL, SAMPLE):
        header += ["license: apache-2.0"]  # other checkpoints have licenses of their own
    if _is_on_hub(settings.model_name_or_path):
        header += [f"base_model: {model}"]
    if _is_on_hub(settings.dataset_name):
        header += [f"datasets: [{dataset}]"]
    values = [
        f"| {name} | {metrics[name]:.4f} |"
        for name in ("accuracy", "precision", "recall", "f1", "matthews", "roc_auc", "loss", "ece")
        if metrics[name] is not None
    ]
    recipe = [f"| optimizer steps | {metrics['step']} of {settings.max_train_steps} |"]
    recipe += [f"| epochs | {metrics['epoch']:.2f} |"]
    recipe += [
        f"| {name} | {getattr(settings, name)} |"
        for name in (
            "global_batch_size learning_rate lr_scheduler_type num_warmup_steps "
            "weight_decay max_grad_norm max_length mixed_precision seed"
        ).split()
    ]
    sections = [
        "\n".join([*header, "---", f"# {settings.run_dir.name}"]),
        f"{architecture} for {what}: {' or '.join(settings.label_names)}. Fine-tuned from {model}.",
        "```python\nfrom transformers import pipeline",
        'pipeline("sentiment-analysis", "PATH_OR_NAME_OF_THIS_MODEL")("a gripping, funny film")\n```',
        "## Data",
        f"{dataset}: trained on {train_count} sentences, evaluated on {metrics['count']} ({metrics['split']}).",
        "## Evaluation",
        f"On {metrics['count']} {metrics['split']} sentences, each counted once. 95 % interval of the accuracy "
        f"(Wilson): {low:.4f} to {high:.4f}. Checkpoint: {metrics['checkpoint']}, {metrics['selected']}.",
        "\n".join(["| metric | value |", "|---|---|", *values]),
        "## Training",
        "\n".join(["| setting | value |", "|---|---|", *recipe]),
    ]
    return "\n\n".join(sections) + "\n"


def _dataset_name(settings: Settings) -> str:
    if settings.smoke:
        return "the project's generated sample"
    return Path(settings.train_file).name if settings.train_file else _public_name(str(settings.dataset_name))


def _is_on_hub(name: str | None) -> bool:
    return name not in (None, SAMPLE) and not Path(str(name)).exists() and not is_path(str(name))


def _public_name(name: str) -> str:
    """A hub name as it is; of a folder only the last part, since a card is published."""
    if name == SAMPLE:
        return "a tiny DistilBERT with random weights"
    return Path(name).resolve().name if Path(name).exists() or is_path(name) else name
