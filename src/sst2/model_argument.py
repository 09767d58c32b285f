"""What the commands beside the run's have in common: mistakes in one line, and where a trained MODEL lies."""

import argparse
import difflib
import os
from pathlib import Path
from typing import Any, NoReturn

from sst2.arguments import is_run
from sst2.errors import UserError
from sst2.run_folder import RunFolder

MODEL_HELP = "folder of a run, an exported model's folder, or a hub name"


class OneLineParser(argparse.ArgumentParser):
    """Leaves it to `exit_codes` to say what is wrong with the flags, and takes no abbreviations of them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        kind, _, unknown = message.partition("unrecognized arguments: ")
        if not kind and unknown:
            flag = unknown.split()[0].split("=")[0]  # what follows may be a token
            close = difflib.get_close_matches(flag, self._option_string_actions, n=1)
            message = f"{flag} is not a flag" + (f", did you mean {close[0]}?" if close else "")
        raise UserError(f"{message}; --help lists all flags")


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
    """Whether it is a folder of runs, and none that is merely called as an organisation on the hub is."""
    return folder != Path(".") and folder.is_dir() and any(map(is_run, folder.iterdir()))
