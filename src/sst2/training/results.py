"""What a run leaves behind: metrics.json, predictions.csv, the exported model and its card."""

import logging
from collections.abc import Mapping
from typing import Any

import torch

from sst2.checkpoints.folders import checkpoint_name
from sst2.evaluation.predictions import final_in_words, in_words, write_predictions
from sst2.models.architecture import display_name
from sst2.models.export import Export
from sst2.models.model_card import model_card
from sst2.models.upload import push_to_hub
from sst2.training.trainer import Evaluation, Trainer
from sst2.utils.atomic_file import write_json

logger = logging.getLogger(__name__)


def write_results(
    trainer: Trainer,
    evaluations: Mapping[str, Evaluation],
    weights: dict[str, torch.Tensor],
    step: int,
    selected: str,
) -> None:
    """Export the model and write what it has come to; `metrics.json` last. For the main process.

    Args:
        trainer: has trained.
        evaluations: of the final model, by split.
        weights: of the final model by name, float32.
        step: after which it had these weights.
        selected: how it was chosen, in words.

    Raises:
        RuntimeError: the exported model, reloaded, gives other logits.
        UserError: the upload fails.
    """
    settings, run, splits = trainer.settings, trainer.run, trainer.splits
    split = trainer.reported_split
    metrics = _final_metrics(trainer, evaluations, step, selected)
    metrics["model_sha256"] = Export(
        config=trainer.model_config,
        weights=weights,
        tokenizer=trainer.tokenizer,
        sentences=split.sentences,
        card=model_card(settings, metrics, len(splits["train"]), display_name(trainer.model_config)),
        max_length=settings.max_length,
        expected=evaluations[split.name][1] if settings.mixed_precision == "no" else None,
    ).write(run.model)
    write_predictions(run.predictions, [(splits[name], logits) for name, (_, logits) in evaluations.items()])
    write_json(run.metrics, metrics)  # last: it says that the run has finished
    trainer.tracker.note_end(step, f"finished: {in_words(metrics, split.name)}")
    logger.info("final: %s", final_in_words(metrics))
    logger.info("all metrics: %s", run.metrics)
    if "per_class" in metrics:
        logger.info("figures of each class: %s", run.model / "README.md")
    logger.info("model: %s", run.model)
    logger.info("curves: tensorboard --logdir %s", run.path.parent)
    if settings.push_to_hub:
        logger.info("uploaded to %s", push_to_hub(run.model, settings.hub_model_id or run.path.name))


def _final_metrics(trainer: Trainer, evaluations: Mapping[str, Evaluation], step: int, selected: str) -> dict[str, Any]:
    """What `metrics.json` holds."""
    split, state = trainer.reported_split.name, trainer.state
    metrics = evaluations[split][0] | {
        "split": split,
        "step": step,
        "epoch": step / trainer.plan.steps_per_epoch,
        "seconds": round(state.seconds, 3),
        "sentences_per_second": round(state.sentences / state.seconds, 2),
        "checkpoint": f"checkpoints/{checkpoint_name(step)}",
        "selected": selected,
    }
    if trainer.rank_times is not None or state.slow_ranks:
        metrics["slow_ranks"] = state.slow_ranks
    others = {name: evaluations[name][0] for name in ("holdout", "test") if name != split and name in evaluations}
    stopped = {"stopped": "worse than the median of other runs"} if state.is_hopeless else {}
    return metrics | stopped | {name: values for name, values in others.items() if values}
