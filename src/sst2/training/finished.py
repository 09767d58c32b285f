"""A finished run that is started again: it is left as it is, with all that its user has made of it since."""

from dataclasses import replace

import yaml
from accelerate import Accelerator

from sst2.checkpoints.training_state import TrainingState
from sst2.config.arguments import resolved_yaml
from sst2.config.settings import Settings
from sst2.distributed.ranks import run_on_main
from sst2.models.upload import push_to_hub
from sst2.runs.run_folder import RunFolder, is_finished
from sst2.utils.errors import FinishedError, UserError


def leave_if_finished(accelerator: Accelerator, run: RunFolder, settings: Settings, state: TrainingState) -> None:
    """End a start that would do again what is done. All ranks call it.

    The state is that of the checkpoint that the start goes on from; a new one where the run keeps none any more.

    Raises:
        FinishedError: the run has finished with these settings and its model is whole; nothing was touched.
        UserError: it has finished with others, and there is no checkpoint from which to do anything else.
    """
    if run_on_main(accelerator, lambda: _is_done(run, settings, state)):
        raise FinishedError(f"the run in {run.path} has finished already: metrics {run.metrics}, model {run.model}")


def _is_done(run: RunFolder, settings: Settings, state: TrainingState) -> bool:
    """Whether there is nothing left to do but the upload, which is done here. For the main process.

    It alone decides: the flags of a start, which ranks may have been given differently, must not part them.
    """
    if settings.resume_from_checkpoint is None:
        return False
    total_steps = settings.max_train_steps
    assert total_steps is not None
    if state.step and not state.is_over(total_steps, settings.early_stopping_patience):
        return False  # an earlier checkpoint was named, to go another way from there
    finished, same = is_finished(run), has_settings(run, settings)
    if not finished or (state.step and not same):
        return False  # it may be about another file to evaluate; the model stays as it is
    if not same:
        raise UserError(
            f"--output_dir {run.path}: its run has finished with other settings, and has no checkpoint to go on from: "
            "name another --output_dir, or replace it with --overwrite_output_dir"
        )
    if settings.push_to_hub and not settings.dry_run:
        push_to_hub(run.model, settings.hub_model_id or run.path.name)
    return True


def has_settings(run: RunFolder, settings: Settings) -> bool:
    """Whether `resolved.yaml` says the same, wherever the folder is."""
    try:
        saved = yaml.safe_load(run.resolved.read_text(encoding="utf-8"))
        is_same: bool = saved == yaml.safe_load(resolved_yaml(replace(settings, output_dir=saved["output_dir"])))
        return is_same
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        return False
