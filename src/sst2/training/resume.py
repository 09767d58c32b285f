"""Resume or start: the run's folder is claimed, and the checkpoint loaded that the run goes on from."""

import logging
import os
from dataclasses import replace
from functools import partial

from accelerate import Accelerator
from torch.optim.lr_scheduler import LRScheduler

from sst2.checkpoints.checkpointer import Checkpointer
from sst2.checkpoints.folders import abandon_later, import_checkpoints
from sst2.checkpoints.free_space import require_free_space
from sst2.checkpoints.training_state import TrainingState
from sst2.config.arguments import write_settings
from sst2.config.output_dir import check_run_dir
from sst2.config.settings import Settings
from sst2.data.batch_plan import BatchPlan
from sst2.data.collation import evaluation_loaders
from sst2.distributed.ranks import run_on_main
from sst2.distributed.stop_requests import StopRequests
from sst2.distributed.strategies.strategy import Strategy
from sst2.distributed.watchdog import Watchdog
from sst2.runs.run_folder import RunFolder
from sst2.tracking.environment import describe_environment
from sst2.tracking.external_trackers import start_trackers
from sst2.tracking.tracker import Tracker
from sst2.training.finished import leave_if_finished
from sst2.training.setup import Assets
from sst2.training.trainer import Trainer
from sst2.utils.atomic_file import write_json
from sst2.utils.logs import log_to_file

logger = logging.getLogger(__name__)


def resume_or_start(
    *,
    run: RunFolder,
    accelerator: Accelerator,
    settings: Settings,
    assets: Assets,
    plan: BatchPlan,
    strategy: Strategy,
    schedule: LRScheduler,
    stop_requests: StopRequests,
    watchdog: Watchdog,
) -> Trainer:
    """Lock the folder, load the checkpoint that the run goes on from, and only then write there. All ranks call it.

    A dry run is refused what the run would be refused, and then writes to a folder that `run.release` removes.

    Returns:
        The trainer, whose state, weights and schedule are those of the checkpoint, or of step 0.

    Raises:
        FinishedError: there is nothing left to do.
        UserError: the folder, the checkpoint, the disk or a tracker cannot be used; nothing was written.
    """
    splits, base_model = assets.splits, assets.base_model
    checkpointer = Checkpointer(run.checkpoints, accelerator, strategy, schedule, base_model, settings, splits)
    run_on_main(accelerator, partial(run.lock, stop_requests.raise_if_stopped))
    run_on_main(accelerator, lambda: check_run_dir(settings))  # again: another job may have worked in it until now
    checkpoint = run_on_main(accelerator, lambda: checkpointer.find(settings.resume_from_checkpoint))
    state = checkpointer.load(checkpoint) if checkpoint else TrainingState()
    leave_if_finished(accelerator, run, settings, state)
    require_free_space(run.path, run.checkpoints, checkpointer.bytes_to_write(checkpoint, state))
    if settings.dry_run:
        run = RunFolder(run_on_main(accelerator, run.make_scratch))
        checkpointer.folder, checkpoint = run.checkpoints, None  # nothing is copied there
        settings = replace(settings, report_to=[], push_to_hub=False, hub_model_id=None)
    trackers = start_trackers(accelerator, settings, run, stop_requests.raise_if_stopped)
    if accelerator.is_main_process:
        run.begin(settings.overwrite_output_dir)
        import_checkpoints(checkpoint, run.checkpoints, state.step, state.best_step)
        if settings.resume_from_checkpoint != "auto":  # which may only have passed over what cannot be read now
            abandon_later(checkpoint, run.checkpoints)
        write_settings(run, settings)  # it marks a run, which has its checkpoints by now
        if not settings.dry_run:  # an open file would keep a network disk from removing the folder
            log_to_file(run.log)
        precision = str(settings.mixed_precision)
        facts = describe_environment(accelerator.num_processes, accelerator.device, precision, strategy.describe())
        write_json(run.environment, facts)
        stop_requests.watch(run.path)
    if "SLURM_JOB_ID" in os.environ and not (settings.checkpointing_steps or settings.dry_run):
        logger.warning("no --checkpointing_steps: after a lost node or a kill, this job begins at step 0 again")
    logger.info("%d steps of %d sentences, %d an epoch", plan.total_steps, plan.global_batch_size, plan.steps_per_epoch)
    return Trainer(
        settings=settings,
        accelerator=accelerator,
        run=run,
        tokenizer=assets.tokenizer,
        splits=splits,
        loaders=evaluation_loaders(splits, settings, assets.tokenizer.pad_token_id, accelerator),
        plan=plan,
        model_config=base_model.config,
        strategy=strategy,
        schedule=schedule,
        state=state,
        checkpointer=checkpointer,
        stop_requests=stop_requests,
        watchdog=watchdog,
        tracker=Tracker(
            accelerator, run, trackers, state, "holdout" if "holdout" in splits else "validation", settings.label_names
        ),
    )
