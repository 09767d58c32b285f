"""Fine-tune DistilBERT on SST-2, on a laptop's CPU, one GPU or many.

    accelerate launch train_sst2.py                # DistilBERT on SST-2 from the hub
    python train_sst2.py --smoke                   # the embedded sample: no network, under a minute

The story of a run: `setup` loads and prepares, `fit` trains, `evaluate` measures, `finish` writes and exports.
"""

import gc

from sst2.distributed.stop_requests import StopRequests

if __name__ == "__main__":  # a signal is caught, and a wrong flag answered, before the seconds that imports take
    gc.disable()  # imports make objects to keep: looking for garbage among them would take half a second more
    REQUESTS = StopRequests().listen()
    from sst2.config.arguments import parse_arguments

    SETTINGS = parse_arguments()

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object, set_seed
from torch.nn import functional as F
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from sst2.checkpoints.base_model import BaseModel, checkpoint_for_base_model
from sst2.checkpoints.checkpointer import Checkpointer
from sst2.checkpoints.folders import import_checkpoints, newest_checkpoint
from sst2.checkpoints.free_space import require_free_space
from sst2.checkpoints.resume_compatibility import saved_precision
from sst2.checkpoints.training_state import TrainingState
from sst2.config.arguments import PROGRAM, check_run_dir, write_settings
from sst2.config.launcher_variables import is_reporting_process, process_rank
from sst2.config.settings import Settings
from sst2.data.batch_plan import Passes, forward_size, micro_batches, plan_batches, split_by_tokens
from sst2.data.collation import collate, evaluation_loaders
from sst2.data.splits import Split, load_sentences, tokenize_all
from sst2.data.staging import stage
from sst2.distributed.agreement import require_agreement
from sst2.distributed.init import connect
from sst2.distributed.ranks import run_on_main
from sst2.distributed.strategies import prepare
from sst2.distributed.watchdog import Watchdog
from sst2.evaluation.predictions import in_order_of_rows, in_words, write_predictions
from sst2.models.export import export_model, rehearse_export
from sst2.models.loading import load_model, load_tokenizer
from sst2.models.model_card import model_card
from sst2.models.upload import push_to_hub
from sst2.runs.run_folder import RunFolder
from sst2.tracking.environment import describe_environment
from sst2.tracking.external_trackers import start_trackers
from sst2.tracking.tracker import Tracker
from sst2.training.cuda_graphs import cuda_graph_runner
from sst2.training.finished import leave_if_finished
from sst2.training.optimizer import build_optimizer, build_schedule
from sst2.training.step_metrics import StepMetrics
from sst2.training.trainer import Job
from sst2.utils.atomic_file import write_json
from sst2.utils.errors import OF_TRAINING, StopRequestedError, exit_codes, leave_at_once, local_errors
from sst2.utils.logs import log_to_file

logger = logging.getLogger("sst2.train")


def main(settings: Settings, requests: StopRequests) -> None:
    with RunFolder(settings.run_dir) as run, setup(settings, requests, run) as job:
        try:
            fit(job)
            finish(job)
        except StopRequestedError as stop:
            job.tracker.note_end(job.state.step, f"stopped by {stop}")
            checkpoint(job)
            job.settle()
            place = newest_checkpoint(job.run.checkpoints)
            raise StopRequestedError(f"stopped by {stop}: --resume_from_checkpoint auto goes on from {place}") from None


def setup(settings: Settings, requests: StopRequests, run: RunFolder) -> Job:
    """Load and check everything, then claim the run's folder: a mistake of the user leaves nothing behind."""
    accelerator, precision = connect(settings, partial(saved_precision, settings))
    watchdog = Watchdog(settings.step_timeout)
    checkpoint_of_run = run_on_main(accelerator, lambda: checkpoint_for_base_model(settings))
    with local_errors(), ThreadPoolExecutor(max_workers=1) as beside:
        local = stage(settings, checkpoint_of_run, requests.raise_if_stopped)
        sentences, tokenizer = load_sentences(local), load_tokenizer(local)
        tokenizing = beside.submit(tokenize_all, sentences, tokenizer, settings, requests.raise_if_stopped)
        set_seed(settings.seed)  # every rank draws the same new head
        model = load_model(local, tokenizer, with_weights=checkpoint_of_run is None)
        splits = tokenizing.result()
    base = BaseModel.of(model, tokenizer, checkpoint_of_run)
    run_on_main(accelerator, lambda: rehearse_export(settings, base.config, tokenizer))
    set_seed(settings.seed, device_specific=True)  # and dropout of its own
    settings = replace(settings, mixed_precision=precision)
    require_agreement(accelerator, settings, base.fingerprint, splits)
    settings, plan = plan_batches(settings, len(splits["train"]), accelerator.num_processes)
    strategy = prepare(accelerator, model, build_optimizer(model, settings), settings.gradient_compression == "bf16")
    schedule = build_schedule(strategy.optimizer, settings)
    loaders = evaluation_loaders(splits, settings, tokenizer.pad_token_id, accelerator)
    checkpoints = Checkpointer(run.checkpoints, accelerator, strategy, schedule, base, settings, splits)
    run_on_main(accelerator, partial(run.lock, requests.raise_if_stopped))
    run_on_main(accelerator, lambda: check_run_dir(settings))  # again: another job may have worked in it until now
    place = run_on_main(accelerator, lambda: checkpoints.find(settings.resume_from_checkpoint))
    state = checkpoints.load(place) if place else TrainingState()
    leave_if_finished(accelerator, run, settings, state)
    require_free_space(run.path, run.checkpoints, checkpoints.bytes_to_write(place, state))
    trackers = start_trackers(accelerator, settings, run, requests.raise_if_stopped)
    if accelerator.is_main_process:
        run.begin(settings.overwrite_output_dir)
        import_checkpoints(place, run.checkpoints, state.step, state.best_step)
        write_settings(run, settings)  # it marks a run, which has its checkpoints by now
        log_to_file(run.log)
        ranks, device = accelerator.num_processes, accelerator.device
        write_json(run.environment, describe_environment(ranks, device, precision, strategy.describe()))
        requests.watch(run.path)
    tracker = Tracker(accelerator, run, trackers, state, "holdout" if "holdout" in splits else "validation")
    logger.info("%d steps of %d sentences, %d an epoch", plan.total_steps, plan.global_batch_size, plan.steps_per_epoch)
    meter = StepMetrics(accelerator, strategy.waiting, state.skipped_in_a_row)
    prepared = (loaders, plan, base.config, strategy, schedule, state, meter, checkpoints, requests)
    graphs = cuda_graph_runner(strategy, base.config, settings, plan.global_batch_size, splits["train"].lengths)
    return Job(settings, accelerator, run, tokenizer, splits, *prepared, watchdog, tracker, graphs)


def fit(job: Job) -> None:
    """Train until all steps are done, or until evaluations have stopped to improve."""
    settings, state, total = job.settings, job.state, job.plan.total_steps
    heed(job)
    bar = tqdm(total=total, initial=state.step, unit="step", disable=job.hides_bars)
    with bar, logging_redirect_tqdm([logging.getLogger("sst2")]):
        while not job.is_over:
            if not job.is_evaluation_due:  # it is when a run was stopped between a step and its evaluation
                measured = train_step(job)
                bar.update()
                if state.step == total or state.step % settings.logging_steps == 0:
                    bar.set_postfix_str(log_training(job, measured))
                job.watchdog.start()
                heed(job, after_step=True)
            is_best = job.is_evaluation_due and select(job)
            checkpoint_due = settings.checkpointing_steps and state.step % settings.checkpointing_steps == 0
            if checkpoint_due or job.is_over or (is_best and settings.load_best_model_at_end):
                checkpoint(job)


def heed(job: Job, after_step: bool = False) -> None:
    """Between two steps, and between two batches of an evaluation: do what was asked, all ranks at once."""
    job.log_checkpoints()
    wishes = job.agree(after_step)
    if wishes.failed:
        raise job.checkpoints.failure()
    if wishes.save:
        checkpoint(job)
    if wishes.stop:
        raise StopRequestedError(wishes.stop)


def checkpoint(job: Job) -> None:
    """Save the run as it is; its files are written while training goes on."""
    job.sync_to_host()
    started = time.perf_counter()
    job.settle()
    job.watchdog.at(f"the checkpoint after step {job.state.step}")
    job.tracker.flush()
    job.checkpoints.save(job.state, started)


def train_step(job: Job) -> dict[str, Any]:
    """One optimizer step on the mean loss over its sentences, wherever they lie. Returns its rate and gradient norm.

    On a GPU it is only on its way then: the host waits for none but those that it records, so that it is ahead.
    """
    started = time.perf_counter()
    job.enter("data")
    settings, train, rank = job.settings, job.splits["train"], job.accelerator.process_index
    rows = job.plan.rows(job.state.step)
    hands = split_by_tokens(rows, train.lengths, job.accelerator.num_processes)
    passes = [
        (collate(train, part, job.tokenizer.pad_token_id, settings.batching), weight)
        for part, weight in micro_batches(hands, rank, forward_size(settings, job.strategy.device))
    ]
    take = partial(learn, job, len(rows))
    if job.graphs and len(rows) == job.graphs.batch_size:
        passes = job.graphs.fill(passes)
        job.enter("graph")
        loss_sum, grad_norm = job.graphs.step(passes, take)
    else:
        loss_sum, grad_norm = take(passes)

    measured = {"learning_rate": job.schedule.get_last_lr()[0], "grad_norm": grad_norm}
    job.schedule.step()
    job.meter.phases.end()
    if settings.log_sample_ids:
        job.tracker.log_samples(job.state.step + 1, gather_object(hands[rank].tolist()))
    job.count_step(hands, passes, loss_sum, grad_norm, time.perf_counter() - started)
    return measured


def learn(job: Job, num_sentences: int, passes: Passes) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of a step, pass by pass, and AdamW's step on it. Returns the losses' sum and the gradient's norm."""
    strategy, loss_sum = job.strategy, torch.zeros((), device=job.strategy.device)
    strategy.model.train()
    for number, (batch, weight) in enumerate(passes, start=1):
        job.enter("data", number)
        here = batch.to(strategy.device)
        job.enter("forward", number)
        with strategy.forward_pass(is_last=number == len(passes)):
            logits = strategy.model(**here.inputs).logits
            loss = weight * F.cross_entropy(logits.float(), here.labels, reduction="sum")
            job.enter("backward", number)
            # Gradients are averaged over ranks: times the world size, they are the mean over the step's sentences.
            strategy.backward(loss * job.accelerator.num_processes / num_sentences)
        loss_sum += loss.detach()
    job.enter("optimizer")
    return loss_sum, strategy.update(job.settings.max_grad_norm)


def log_training(job: Job, measured: dict[str, Any]) -> str:
    """Log the means since the last logged point. Returns a line for the progress bar."""
    values = job.pop_averages() | {name: float(value) for name, value in measured.items()}
    job.tracker.log("train", job.state.step, values)
    line = f"loss {values['loss']:.4f}, {values['sentences_per_second']:.0f} sentences/s"
    logger.info("step %d: %s, learning rate %.3g", job.state.step, line, values["learning_rate"])
    return line


def select(job: Job) -> bool:
    """Evaluate during training; remember whether this is the best model so far. Returns whether it is."""
    state, split = job.state, job.selection_split
    job.sync_to_host()  # else the evaluation would wait for steps that are still on their way
    metrics, logits = job.last_evaluation = evaluate(job, split)
    job.tracker.log(split.name, state.step, metrics)
    job.tracker.show(split, state.step, logits, state.seconds)
    logger.info("step %d: %s", state.step, in_words(metrics, split.name))
    return state.count_evaluation(metrics["accuracy"], metrics["loss"])


@torch.no_grad()  # not inference_mode: strategies keep what they gather for it, and train with it
def evaluate(job: Job, split: Split) -> tuple[dict[str, Any], np.ndarray]:
    """Classify every sentence of a split once, on all ranks.

    Returns:
        The metrics (none if the split has no labels) and the logits, (sentences, 2), in the order of the split.

    Raises:
        RuntimeError: a sentence was not counted exactly once.
    """
    job.strategy.model.eval()
    rows, logits = [], []
    for batch in tqdm(job.loaders[split.name], f"evaluating {split.name}", leave=False, disable=job.hides_bars):
        job.watchdog.at(f"the evaluation on {split.name} after step {job.state.step}")
        heed(job)
        gathered = job.accelerator.gather_for_metrics((batch.rows, job.strategy.model(**batch.inputs).logits.float()))
        job.watchdog.start()
        rows.append(gathered[0].cpu())
        logits.append(gathered[1].cpu())
    ordered = in_order_of_rows(torch.cat(rows).numpy(), torch.cat(logits).numpy(), len(split))
    if not np.isfinite(ordered).all():
        raise job.diverged(f"the model gives {split.name} logits that are not finite")
    if not split.is_labelled:
        return {}, ordered
    from sst2.evaluation.metrics import SentimentMetric  # half a second that the first step does not wait for

    return SentimentMetric().compute(predictions=ordered, references=split.labels, lengths=split.lengths), ordered


def finish(job: Job) -> None:
    """Final metrics and predictions, the exported model, and a few lines on where they are."""
    settings, run = job.settings, job.run
    job.settle()
    step, selected = job.load_final_model()
    evaluated = {name: job.known_evaluation(name, step) or evaluate(job, job.splits[name]) for name in job.loaders}
    for split, (scores, logits) in evaluated.items():
        if scores and split != job.selection_split.name:  # that one has its point from the last evaluation
            job.tracker.log(split, step, scores)
        job.tracker.show(job.splits[split], step, logits)
    weights = job.strategy.weights()
    job.watchdog.stop()
    if not job.accelerator.is_main_process:
        return
    name = job.reported_split.name
    metrics = job.final_metrics({split: scores for split, (scores, _) in evaluated.items()}, step, selected)
    card = model_card(settings, metrics, len(job.splits["train"]))
    expected = evaluated[name][1] if settings.mixed_precision == "no" else None
    trained = job.model_config, weights, job.tokenizer, job.reported_split.sentences
    metrics["model_sha256"] = export_model(*trained, card, run.model, settings.max_length, expected)
    write_predictions(run.predictions, [(job.splits[split], logits) for split, (_, logits) in evaluated.items()])
    job.tracker.log_hparams(settings.values(), name, step, metrics)
    write_json(run.metrics, metrics)  # last: it says that the run has finished
    job.tracker.note_end(step, f"finished: {in_words(metrics, name)}")
    logger.info("final: %s", in_words(metrics, name))
    logger.info("metrics %s, model %s, curves: tensorboard --logdir %s", run.metrics, run.model, run.path.parent)
    if settings.push_to_hub:
        logger.info("uploaded to %s", push_to_hub(run.model, settings.hub_model_id or run.path.name))


if __name__ == "__main__":
    gc.enable()
    with exit_codes(PROGRAM, process_rank(), is_reporting_process(), leave_at_once, OF_TRAINING), REQUESTS.stopping():
        main(SETTINGS, REQUESTS)
