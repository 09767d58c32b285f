"""A run that has finished: started again, it is left as it is, with all that its user has made of it since."""

import json

from accelerate import Accelerator

from sst2.errors import FinishedError
from sst2.model_folder import WEIGHTS, push_to_hub
from sst2.ranks import on_main
from sst2.run_folder import RunFolder
from sst2.sealed_folder import describe_file
from sst2.settings import Settings
from sst2.training_state import TrainingState


def leave_if_finished(accelerator: Accelerator, run: RunFolder, settings: Settings, state: TrainingState) -> None:
    """End a start that would do again what is done. All ranks call it.

    Args:
        settings: with everything that the flags left open filled in.
        state: of the checkpoint that the start goes on from; a new one where the run keeps none any more.

    Raises:
        FinishedError: the run has finished and its model is whole; nothing was touched.
    """
    total_steps = settings.max_train_steps
    assert total_steps is not None
    if settings.resume_from_checkpoint is None:
        return
    if state.step and not state.is_over(total_steps, settings.early_stopping_patience):
        return  # an earlier checkpoint was named, to go another way from there
    if not on_main(accelerator, lambda: is_finished(run)):
        return
    if settings.push_to_hub:
        on_main(accelerator, lambda: push_to_hub(run.model, settings.hub_model_id or run.path.name))
    raise FinishedError(f"the run in {run.path} has finished already: metrics {run.metrics}, model {run.model}")


def is_finished(run: RunFolder) -> bool:
    """Whether there is `metrics.json`, which is written last, and the model whose weights it names is whole."""
    try:
        metrics = json.loads(run.metrics.read_text(encoding="utf-8"))
        for name in ("config.json", "tokenizer.json"):
            json.loads((run.model / name).read_text(encoding="utf-8"))
        return describe_file(run.model / WEIGHTS)["sha256"] == metrics["model_sha256"]
    except (OSError, ValueError, LookupError, TypeError):
        return False
