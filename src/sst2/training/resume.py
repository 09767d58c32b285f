"""Resume or start: the run's folder is claimed, and the checkpoint loaded that the run goes on from."""

from functools import partial

from accelerate import Accelerator

from sst2.checkpoints.checkpointer import Checkpointer
from sst2.checkpoints.folders import import_checkpoints
from sst2.checkpoints.free_space import require_free_space
from sst2.checkpoints.training_state import TrainingState
from sst2.config.arguments import write_settings
from sst2.config.output_dir import check_run_dir
from sst2.config.settings import Settings
from sst2.distributed.ranks import run_on_main
from sst2.distributed.stop_requests import StopRequests
from sst2.distributed.strategies.strategy import Strategy
from sst2.runs.run_folder import RunFolder
from sst2.tracking.environment import describe_environment
from sst2.tracking.external_trackers import ExternalTrackers, start_trackers
from sst2.training.finished import leave_if_finished
from sst2.utils.atomic_file import write_json
from sst2.utils.logs import log_to_file


def resume_or_start(
    run: RunFolder,
    accelerator: Accelerator,
    settings: Settings,
    checkpointer: Checkpointer,
    strategy: Strategy,
    stop_requests: StopRequests,
) -> tuple[TrainingState, ExternalTrackers]:
    """Lock the folder, load the checkpoint that the run goes on from, and only then write there. All ranks call it.

    Args:
        run: folder of the run, which the main process locks here.
        accelerator: of this rank.
        settings: with everything that the flags left open filled in.
        checkpointer: loads the checkpoint.
        strategy: takes over its weights.
        stop_requests: looked at while waiting.

    Returns:
        The state that training begins with, and the trackers beside TensorBoard, started.

    Raises:
        FinishedError: there is nothing left to do.
        UserError: the folder, the checkpoint, the disk or a tracker cannot be used; nothing was written.
    """
    run_on_main(accelerator, partial(run.lock, stop_requests.raise_if_stopped))
    run_on_main(accelerator, lambda: check_run_dir(settings))  # again: another job may have worked in it until now
    checkpoint = run_on_main(accelerator, lambda: checkpointer.find(settings.resume_from_checkpoint))
    state = checkpointer.load(checkpoint) if checkpoint else TrainingState()
    leave_if_finished(accelerator, run, settings, state)
    require_free_space(run.path, run.checkpoints, checkpointer.bytes_to_write(checkpoint, state))
    trackers = start_trackers(accelerator, settings, run, stop_requests.raise_if_stopped)
    if accelerator.is_main_process:
        run.begin(settings.overwrite_output_dir)
        import_checkpoints(checkpoint, run.checkpoints, state.step, state.best_step)
        write_settings(run, settings)  # it marks a run, which has its checkpoints by now
        log_to_file(run.log)
        precision = str(settings.mixed_precision)
        facts = describe_environment(accelerator.num_processes, accelerator.device, precision, strategy.describe())
        write_json(run.environment, facts)
        stop_requests.watch(run.path)
    return state, trackers
