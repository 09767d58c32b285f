"""Fine-tune DistilBERT on SST-2, on a laptop's CPU, one GPU or many.

    accelerate launch train_sst2.py                # DistilBERT on SST-2 from the hub
    python train_sst2.py --smoke                   # the embedded sample: no network, under a minute

The story of a run, top to bottom: `setup` loads and prepares, `fit` trains, `evaluate` measures, `finish` writes the
results and exports the model.
"""

from sst2.arguments import PROGRAM, is_reporting_process, parse_arguments, to_yaml

if __name__ == "__main__":
    # A wrong flag is answered here, before the seconds that the imports below take.
    SETTINGS = parse_arguments()

import logging
import math
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch.nn import functional as F
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from sst2.batching import deal, evaluation_loaders, forward_size, pad, plan_batches, to_device
from sst2.checkpointing import (
    adopt_checkpoint,
    checkpoint_name,
    find_checkpoint,
    identity,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from sst2.data import Split, load_sentences, tokenize
from sst2.environment import (
    check_world_size,
    choose_precision,
    describe_environment,
    peak_memory_mib,
    runs_on_cpu,
    use_all_cores,
)
from sst2.errors import exit_codes
from sst2.exporting import export_model, model_card, push_to_hub, require_hub_login
from sst2.job import Job
from sst2.logs import log_to_file, start_logging
from sst2.metrics import SentimentMetric, in_order_of_rows, in_words
from sst2.modeling import load_model, load_tokenizer
from sst2.optimization import build_optimizer
from sst2.run_folder import RunFolder, write_json, write_predictions, write_text
from sst2.settings import Settings
from sst2.tracking import Tracker
from sst2.training_state import TrainingState

logger = logging.getLogger("sst2.train")

MAX_SKIPPED_STEPS = 10  # non-finite steps in a row after which the run counts as broken down


def main(settings: Settings) -> None:
    job = setup(settings)
    try:
        fit(job)
        finish(job)
    finally:
        job.tracker.close()


def setup(settings: Settings) -> Job:
    """Load and check everything, then claim the run's folder: a mistake of the user leaves nothing behind."""
    precision, reason = choose_precision(settings.mixed_precision)
    accelerator = Accelerator(
        cpu=runs_on_cpu(),
        mixed_precision=precision,
        log_with=[name for name in settings.report_to if name != "tensorboard"] or None,
    )
    start_logging(accelerator.is_main_process)
    use_all_cores()
    check_world_size(accelerator.num_processes)
    require_hub_login(settings)
    logger.info("%d x %s, precision %s: %s", accelerator.num_processes, accelerator.device, precision, reason)

    sentences = load_sentences(settings)
    tokenizer = load_tokenizer(settings)
    set_seed(settings.seed)  # every rank draws the same new head
    bare_model = load_model(settings, tokenizer)
    splits = {name: tokenize(name, data, tokenizer, settings.max_length) for name, data in sentences.items()}
    set_seed(settings.seed, device_specific=True)  # and dropout of its own

    settings = replace(settings, mixed_precision=precision)
    settings, plan = plan_batches(settings, len(splits["train"]), accelerator.num_processes)
    optimizer, schedule = build_optimizer(bare_model, settings)
    model, optimizer = accelerator.prepare(bare_model, optimizer)
    evaluated = {name: split for name, split in splits.items() if name != "train"}
    loaders = evaluation_loaders(evaluated, settings.per_device_eval_batch_size, tokenizer.pad_token_id, accelerator)

    run, state = RunFolder(settings.run_dir), TrainingState()
    if place := find_checkpoint(settings.resume_from_checkpoint, run.checkpoints):
        state = load_checkpoint(place, accelerator, bare_model, optimizer, schedule, identity(settings, splits))
        logger.info("resuming from %s", place)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        run.claim(settings.overwrite_output_dir)
        write_text(run.config, to_yaml(settings))
        log_to_file(run.log)
        if place:
            adopt_checkpoint(place, run.checkpoints, state.best_step)
        write_json(run.environment, describe_environment(accelerator.num_processes, accelerator.device, precision))
    tracker = Tracker(accelerator, run, asdict(settings), state.step)
    logger.info("%d steps of %d sentences, %d an epoch", plan.total_steps, plan.global_batch_size, plan.steps_per_epoch)
    return Job(
        settings,
        accelerator,
        run,
        tokenizer,
        splits,
        loaders,
        plan,
        bare_model,
        model,
        optimizer,
        schedule,
        state,
        tracker,
    )


def fit(job: Job) -> None:
    """Train until all steps are done, or until evaluations have stopped to improve."""
    settings, state, total = job.settings, job.state, job.plan.total_steps
    is_main = job.accelerator.is_main_process
    bar = tqdm(total=total, initial=state.step, unit="step", disable=None if is_main else True)  # None: if a terminal
    with bar, logging_redirect_tqdm([logging.getLogger("sst2")]):
        while state.step < total and not job.is_out_of_patience:
            measured = train_step(job)
            bar.update()
            is_last = state.step == total
            if is_last or state.step % settings.logging_steps == 0:
                bar.set_postfix_str(log_training(job, measured))
            evaluation_due = is_last or state.step % (settings.eval_steps or job.plan.steps_per_epoch) == 0
            is_best = evaluation_due and select(job)
            checkpoint_due = settings.checkpointing_steps and state.step % settings.checkpointing_steps == 0
            is_over = is_last or job.is_out_of_patience
            if checkpoint_due or is_over or (is_best and settings.load_best_model_at_end):
                checkpoint(job)


def train_step(job: Job) -> dict[str, float]:
    """One optimizer step on the mean loss over its sentences, wherever they lie. Returns its rate and gradient norm."""
    started = time.perf_counter()
    accelerator, settings, state, train = job.accelerator, job.settings, job.state, job.splits["train"]
    rank, world_size = accelerator.process_index, accelerator.num_processes
    rows = job.plan.rows(state.step)
    at_once = forward_size(settings.per_device_train_batch_size, accelerator.device)
    micro_batches = deal(rows, train.lengths, rank, world_size, at_once)
    loss_sum, padded_tokens = torch.zeros((), device=accelerator.device), 0
    job.model.train()
    for number, (micro_rows, weight) in enumerate(micro_batches, start=1):
        batch = to_device(pad(train, micro_rows, job.tokenizer.pad_token_id), accelerator.device)
        with nullcontext() if number == len(micro_batches) else accelerator.no_sync(job.model):
            logits = job.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            loss = weight * F.cross_entropy(logits.float(), batch["labels"], reduction="sum")
            # Gradients are averaged over ranks: times the world size, they are the mean over the step's sentences.
            accelerator.backward(loss * world_size / len(rows))
        loss_sum += loss.detach()
        padded_tokens += batch["input_ids"].numel()
    grad_norm = float(accelerator.clip_grad_norm_(job.model.parameters(), settings.max_grad_norm or math.inf))
    sums = torch.stack([loss_sum, torch.tensor(float(padded_tokens), device=accelerator.device)])
    loss_sum, padded_tokens = accelerator.reduce(sums, reduction="sum").tolist()
    measured = {"learning_rate": float(job.schedule.get_last_lr()[0]), "grad_norm": grad_norm}

    is_finite = math.isfinite(loss_sum) and math.isfinite(grad_norm)
    if is_finite or accelerator.scaler is not None:  # the fp16 loss scaler skips by itself, and learns from it
        job.optimizer.step()
    job.optimizer.zero_grad()
    job.schedule.step()
    if settings.log_sample_ids:
        own = [int(row) for micro_rows, weight in micro_batches if weight for row in micro_rows]
        job.tracker.log_samples(state.step + 1, gather_object(own))
    tokens = int(train.lengths[rows].sum())
    state.count_step(is_finite, loss_sum, len(rows), tokens, int(padded_tokens), time.perf_counter() - started)
    if state.skipped_in_a_row == MAX_SKIPPED_STEPS:
        raise job.diverged(f"loss or gradients were not finite in {MAX_SKIPPED_STEPS} steps in a row")
    return measured


def log_training(job: Job, measured: dict[str, float]) -> str:
    """Log the means since the last logged point. Returns a line for the progress bar."""
    state = job.state
    values = state.take_means() | measured
    values |= {
        "epoch": state.step / job.plan.steps_per_epoch,
        "skipped_steps": state.skipped_steps,
        "peak_memory_mib": peak_memory_mib(job.accelerator.device),
    }
    job.tracker.log("train", state.step, values)
    line = f"loss {values['loss']:.4f}, {values['sentences_per_second']:.0f} sentences/s"
    logger.info("step %d: %s, learning rate %.3g", state.step, line, values["learning_rate"])
    return line


def select(job: Job) -> bool:
    """Evaluate during training; remember whether this is the best model so far. Returns whether it is."""
    state = job.state
    split = job.selection_split
    metrics, _ = evaluate(job, split)
    job.tracker.log(split.name, state.step, metrics)
    logger.info("step %d: %s", state.step, in_words(metrics, split.name))
    return state.count_evaluation(metrics["accuracy"], metrics["loss"])


def checkpoint(job: Job) -> None:
    job.tracker.flush()
    save_checkpoint(
        job.run.checkpoints,
        job.accelerator,
        job.bare_model,
        job.optimizer,
        job.schedule,
        job.state,
        identity(job.settings, job.splits),
        job.settings.checkpoints_total_limit,
    )


@torch.inference_mode()
def evaluate(job: Job, split: Split) -> tuple[dict[str, Any], np.ndarray]:
    """Classify every sentence of a split once, on all ranks.

    Returns:
        The metrics (none if the split has no labels) and the logits, (sentences, 2), in the order of the split.

    Raises:
        RuntimeError: a sentence was not counted exactly once.
    """
    job.model.eval()
    rows, logits = [], []
    for batch in job.loaders[split.name]:
        output = job.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        gathered = job.accelerator.gather_for_metrics((batch["rows"], output.logits.float()))
        rows.append(gathered[0].cpu())
        logits.append(gathered[1].cpu())
    ordered = in_order_of_rows(torch.cat(rows).numpy(), torch.cat(logits).numpy(), len(split))
    if not np.isfinite(ordered).all():
        raise job.diverged(f"the model gives {split.name} logits that are not finite")
    if not split.is_labelled:
        return {}, ordered
    return SentimentMetric().compute(predictions=ordered, references=split.labels, lengths=split.lengths), ordered


def finish(job: Job) -> None:
    """Final metrics and predictions, the exported model, and a few lines on where they are."""
    settings, state, run = job.settings, job.state, job.run
    name = "validation" if "validation" in job.splits else "holdout"
    step, selected = state.step, "the last one"
    if settings.load_best_model_at_end and (best := job.best_saved_step) is not None:
        step = best
        selected = f"the most accurate on the {job.selection_split.name} split of all that were evaluated"
        selected += ", which flatters these figures" if job.selection_split.name == name else ""
        load_weights(run.checkpoints / checkpoint_name(step), job.bare_model)
    evaluated = {split: evaluate(job, job.splits[split]) for split in job.loaders}
    for split, (scores, _) in evaluated.items():
        if scores and split != job.selection_split.name:  # that one has its point from the last evaluation
            job.tracker.log(split, step, scores)
    if not job.accelerator.is_main_process:
        return
    metrics = evaluated[name][0] | {
        "split": name,
        "step": step,
        "epoch": step / job.plan.steps_per_epoch,
        "seconds": round(state.seconds, 3),
        "sentences_per_second": round(state.sentences / state.seconds, 2),
        "checkpoint": f"checkpoints/{checkpoint_name(step)}",
        "selected": selected,
    }
    if "test" in evaluated and job.splits["test"].is_labelled:
        metrics["test"] = evaluated["test"][0]
    card = model_card(settings, metrics, len(job.splits["train"]))
    expected = evaluated[name][1] if settings.mixed_precision == "no" else None
    sentences = job.splits[name].sentences
    export_model(job.bare_model, job.tokenizer, sentences, card, run.model, settings.max_length, expected)
    write_predictions(run.predictions, [(job.splits[split], logits) for split, (_, logits) in evaluated.items()])
    job.tracker.log_hparams(asdict(settings), name, step, metrics)
    write_json(run.metrics, metrics)
    logger.info("final: %s", in_words(metrics, name))
    logger.info("metrics %s, model %s, curves: tensorboard --logdir %s", run.metrics, run.model, run.path.parent)
    if settings.push_to_hub:
        logger.info("uploaded to %s", push_to_hub(run.model, settings.hub_model_id or run.path.name))


if __name__ == "__main__":
    with exit_codes(PROGRAM, report=is_reporting_process()):
        main(SETTINGS)
