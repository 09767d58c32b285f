"""Fine-tune DistilBERT on SST-2, on a laptop's CPU, one GPU or many.

    accelerate launch train_sst2.py                # DistilBERT on SST-2 from the hub
    python train_sst2.py --smoke                   # the embedded sample: no network, under a minute

The story of a run: `setup` loads and prepares or resumes, `fit` trains and validates, `finalize` evaluates and exports.
"""

import gc

from sst2.distributed.stop_requests import StopRequests

if __name__ == "__main__":  # a signal is caught, and a wrong flag answered, before the seconds that imports take
    gc.disable()  # imports make objects to keep: looking for garbage among them would take half a second more
    STOP_REQUESTS = StopRequests().listen()
    from sst2.config.arguments import PROGRAM, parse_arguments

    SETTINGS = parse_arguments()

import logging
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from sst2.config.settings import Settings
from sst2.data.batch_plan import max_micro_batch_size, micro_batch_indices, plan_batches, split_by_tokens
from sst2.data.collation import MicroBatches
from sst2.data.splits import Split
from sst2.distributed.ranks import exit_codes_of_rank
from sst2.evaluation.predictions import in_split_order, in_words
from sst2.evaluation.selection import score_of
from sst2.runs.run_folder import RunFolder
from sst2.training.dry_run.command import dry_run
from sst2.training.dry_run.rehearsal import TrainingLoop
from sst2.training.results import write_results
from sst2.training.resume import resume_or_start
from sst2.training.setup import init_processes, load_assets, prepare_training
from sst2.training.step_metrics import progress
from sst2.training.steps.runner import Step
from sst2.training.trainer import Evaluation, Trainer
from sst2.utils.console import Progress
from sst2.utils.errors import StopRequestedError

logger = logging.getLogger("sst2.train")


def main(settings: Settings, stop_requests: StopRequests) -> None:
    """Train, evaluate and export.

    Args:
        settings: from the command line.
        stop_requests: signals and files by which somebody asks for a checkpoint, or for a checkpoint and the end.

    Raises:
        StopRequestedError: the run was asked to stop, and has saved.
        UserError: something cannot be read, written or used.
    """
    with RunFolder(settings.run_dir) as run, setup(settings, stop_requests, run) as trainer:
        if settings.dry_run:
            loop = TrainingLoop(train_step, check_stop_requests, log_training, validate, save_checkpoint, finalize)
            dry_run(trainer, loop)
            return
        try:
            fit(trainer)
            finalize(trainer)
        except StopRequestedError as stop:
            trainer.tracker.note_end(trainer.state.step, str(stop))
            save_checkpoint(trainer)  # nothing is written where this state is saved already
            trainer.wait_for_checkpoint()
            stop.checkpoint = trainer.newest_checkpoint  # from which the next start goes on
            raise


def setup(settings: Settings, stop_requests: StopRequests, run: RunFolder) -> Trainer:
    """Load and check everything, then start the run, or resume it where `--resume_from_checkpoint` says so.

    The run's folder is written to when all is loaded and checked: a mistake of the user leaves nothing behind. A stop
    during setup has nothing to save.
    """
    accelerator, settings, watchdog = init_processes(settings)
    assets, settings = load_assets(accelerator, settings, stop_requests.raise_if_stopped)
    settings, plan = plan_batches(settings, len(assets.splits["train"]), accelerator.num_processes)
    strategy, schedule = prepare_training(accelerator, assets.model, settings)
    return resume_or_start(
        run=run,
        accelerator=accelerator,
        settings=settings,
        assets=assets,
        plan=plan,
        strategy=strategy,
        schedule=schedule,
        stop_requests=stop_requests,
        watchdog=watchdog,
    )


def fit(trainer: Trainer) -> None:
    """Train until all steps are done, evaluations have stopped improving, or those of other runs are better."""
    settings, state, total = trainer.settings, trainer.state, trainer.plan.total_steps
    check_stop_requests(trainer)
    bar = tqdm(total=total, initial=state.step, unit="step", disable=trainer.hides_bars)
    with bar, logging_redirect_tqdm([logging.getLogger("sst2")]):
        while not trainer.is_over:
            if not trainer.is_evaluation_due:  # it is when a run was stopped between a step and its evaluation
                with trainer.profiler.step(state.step + 1):  # for --profile_steps
                    metrics = train_step(trainer)
                bar.update()
                if state.step == total or state.step % settings.logging_steps == 0:
                    bar.set_postfix_str(log_training(trainer, metrics))
                trainer.watchdog.step_done()
                check_stop_requests(trainer, after_step=True)
            is_best = trainer.is_evaluation_due and validate(trainer)
            checkpoint_due = settings.checkpointing_steps and state.step % settings.checkpointing_steps == 0
            if checkpoint_due or trainer.is_over or (is_best and settings.load_best_model_at_end):
                save_checkpoint(trainer)


def check_stop_requests(trainer: Trainer, after_step: bool = False) -> None:
    """Between two steps, and between two batches of an evaluation: save, stop or go on, all ranks alike.

    Args:
        trainer: of this rank.
        after_step: whether the time that this takes belongs to training; else it is an evaluation's.

    Raises:
        StopRequestedError: somebody has asked for the end.
    """
    trainer.log_checkpoint_times()
    flags = trainer.reduce_stop_flags(after_step)
    if flags.save:
        save_checkpoint(trainer)
    if flags.stop:
        raise StopRequestedError(f"stopped by {flags.stop}")


def save_checkpoint(trainer: Trainer) -> None:
    """Save the run as it is; its files are written while training goes on."""
    trainer.sync_to_host()
    started = time.perf_counter()
    trainer.wait_for_checkpoint()
    trainer.watchdog.set_activity(f"the checkpoint after step {trainer.state.step}")
    trainer.tracker.flush()
    trainer.checkpointer.save(trainer.state, started)


def train_step(trainer: Trainer) -> dict[str, Any]:
    """One optimizer step on the mean loss of sentences that are divided among the ranks.

    On a GPU this returns before the step has run; only a step that is being captured is waited for. Returns the step's
    learning rate and gradient norm.
    """
    started = time.perf_counter()
    trainer.start_phase("data")
    train, rank = trainer.splits["train"], trainer.accelerator.process_index
    indices = trainer.plan.indices(trainer.state.step)  # of all ranks, by the step alone: nothing to restore on resume
    shards = split_by_tokens(indices, train.lengths(indices), trainer.accelerator.num_processes)
    most_sentences = max_micro_batch_size(trainer.settings, trainer.strategy.device)
    step = Step(
        micro_batches=micro_batch_indices(shards, rank, most_sentences),
        divisor=trainer.loss.weight_of(train.labels[indices]),
        loss_weight=trainer.loss.weight_of(train.labels[shards[rank]]),
    )
    # Eagerly, or replayed as CUDA graphs; the ranks share their gradients between the two, or with the last backward.
    grad_norm, padded_tokens = trainer.step_runner.run(
        step, partial(forward_backward_step, trainer), partial(optimizer_step, trainer)
    )

    metrics = {"learning_rate": trainer.schedule.get_last_lr()[0], "grad_norm": grad_norm}
    trainer.schedule.step()
    if trainer.settings.log_sample_ids:  # what each rank says that it has taken
        trainer.tracker.log_samples(trainer.state.step + 1, gather_object(shards[rank].tolist()))
    trainer.count_step(shards, padded_tokens, started)
    return metrics


def forward_backward_step(trainer: Trainer, micro_batches: MicroBatches, divisor: float | torch.Tensor) -> torch.Tensor:
    """The gradient of a step, micro-batch by micro-batch.

    All ranks run the same number of micro-batches: one that is short of sentences runs a filler with loss weight 0. The
    `divisor` makes the losses of all ranks a mean: the number of the step's sentences, or the sum of their weights.

    Returns:
        The sum of this rank's losses, () float32.
    """
    strategy, loss_sum = trainer.strategy, torch.zeros((), device=trainer.strategy.device)
    strategy.model.train()
    for number, (batch, loss_weight) in enumerate(micro_batches, start=1):
        trainer.start_phase("data", number)
        on_device = batch.to(strategy.device)
        trainer.start_phase("forward", number)
        with strategy.accumulate(sync=number == len(micro_batches)):
            logits = strategy.model(**on_device.inputs).logits
            loss = loss_weight * trainer.loss(logits, on_device.labels)
            trainer.start_phase("backward", number)
            # Gradients are averaged over ranks: times the world size, they are the mean over the step's sentences.
            strategy.backward(loss * trainer.accelerator.num_processes / divisor)
        loss_sum += loss.detach()
    return loss_sum


def optimizer_step(trainer: Trainer) -> torch.Tensor:
    """AdamW's step on the gradient, clipped, if it is finite. Returns the gradient norm of all ranks, () float32."""
    trainer.start_phase("optimizer")
    return trainer.strategy.clip_and_step(trainer.settings.max_grad_norm)


def log_training(trainer: Trainer, metrics: dict[str, Any]) -> str:
    """Log averages since the last logged point, and the last step's metrics. Returns a line for the progress bar."""
    values = trainer.pop_averages() | {name: float(value) for name, value in metrics.items()}
    trainer.tracker.log("train", trainer.state.step, values)
    line = f"loss {values['loss']:.4f}, {values['sentences_per_second']:.0f} sentences/s"
    how_far = progress(trainer.state.step, trainer.plan.total_steps, trainer.begun)
    logger.info("step %s: %s, learning rate %.3g", how_far, line, values["learning_rate"])
    return line


def validate(trainer: Trainer) -> bool:
    """Evaluate during training; remember whether this is the best model so far. Returns whether it is."""
    state, split = trainer.state, trainer.selection_split
    trainer.sync_to_host()  # else the evaluation would wait for steps that are still on their way
    metrics, logits = trainer.last_evaluation = evaluate(trainer, split)
    is_best = state.count_evaluation(score_of(metrics, trainer.settings.metric_for_best_model), metrics["loss"])
    trainer.tracker.log(split.name, state.step, metrics | trainer.best_so_far)
    trainer.tracker.show(split, state.step, logits, state.seconds)
    logger.info("step %d: %s", state.step, in_words(metrics, split.name))
    state.is_hopeless = trainer.is_below_median()
    return is_best


@torch.no_grad()  # not inference_mode: FSDP2 and ZeRO keep the weights that they gather here, and train with them
def evaluate(trainer: Trainer, split: Split) -> Evaluation:
    """Classify every sentence of a split once, on all ranks.

    Returns:
        The metrics (none if the split has no labels) and the logits, (sentences, classes) float32, in its order.

    Raises:
        RuntimeError: a sentence was not counted exactly once.
    """
    model, gather = trainer.strategy.model, trainer.accelerator.gather_for_metrics
    model.eval()
    indices, logits = [], []
    for batch in Progress(
        trainer.loaders[split.name],
        f"evaluating {split.name}",
        unit=" batches",
        leave=False,
        hidden=not trainer.accelerator.is_main_process,
    ):
        trainer.watchdog.set_activity(f"the evaluation on {split.name} after step {trainer.state.step}")
        check_stop_requests(trainer)
        gathered = gather((batch.indices, model(**batch.inputs).logits.float()))
        trainer.watchdog.step_done()
        indices.append(gathered[0].cpu())
        logits.append(gathered[1].cpu())
    ordered = in_split_order(torch.cat(indices).numpy(), torch.cat(logits).numpy(), len(split))
    if not np.isfinite(ordered).all():
        raise trainer.diverged(f"the model gives {split.name} logits that are not finite")
    if not split.is_labeled:
        return {}, ordered
    from sst2.evaluation.metrics import ClassificationMetric  # half a second that the first step does not wait for

    metric = ClassificationMetric(split.label_names, with_macro_f1=trainer.settings.metric_for_best_model == "f1_macro")
    return metric.compute(predictions=ordered, references=split.labels, lengths=split.lengths()), ordered


def finalize(trainer: Trainer) -> None:
    """Evaluate the final model on every split but `train`, then export it and write what the run has come to.

    A stop during these evaluations writes no checkpoint: the last step's is there, whichever model is loaded.
    """
    trainer.wait_for_checkpoint()
    step, selected = trainer.load_final_model()
    evaluations = {
        name: trainer.known_evaluation(name, step) or evaluate(trainer, trainer.splits[name])
        for name in trainer.loaders
    }
    for name, (metrics, logits) in evaluations.items():
        if metrics and name != trainer.selection_split.name:  # that one has its point from the last evaluation
            trainer.tracker.log(name, step, metrics)
        trainer.tracker.show(trainer.splits[name], step, logits)
    weights = trainer.strategy.weights()  # which all ranks gather
    trainer.watchdog.stop()
    if trainer.accelerator.is_main_process:
        write_results(trainer, evaluations, weights, step, selected)


if __name__ == "__main__":
    gc.enable()
    with exit_codes_of_rank(PROGRAM), STOP_REQUESTS.stop_explains_errors():
        main(SETTINGS, STOP_REQUESTS)
