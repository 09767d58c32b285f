"""The argument MODEL of `predict` and `export`: a run, an exported folder, or a name on the hub."""

import os
from pathlib import Path

from sst2.runs.run_folder import RunFolder, is_run
from sst2.utils.errors import UserError

MODEL_HELP = "folder of a run, an exported model's folder, or a hub name"


def model_name(name: str) -> str:
    """The model's folder of a run, and any other name as it is.

    Raises:
        UserError: the run has no model, or a folder that is meant is not there.
    """
    folder = Path(os.path.expanduser(name))
    if is_run(folder):
        model = RunFolder(folder).model
        if not model.is_dir():
            raise UserError(f"MODEL {name} is a run that has not finished: it has no model yet")
        return str(model)
    looks_like_a_path = name.startswith(("/", "./", "../", "~")) or name.count("/") > 1
    if not folder.is_dir() and (looks_like_a_path or _holds_runs(folder.parent)):
        raise UserError(f"MODEL {name} does not exist as a folder")
    return str(folder)


def _holds_runs(folder: Path) -> bool:
    """Whether it is a folder of runs, and none that is merely called as an organization on the hub is."""
    return folder != Path() and folder.is_dir() and any(map(is_run, folder.iterdir()))
