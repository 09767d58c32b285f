"""What the commands that take a trained MODEL have in common: mistakes in one line, and where the model lies."""

import argparse
import os
from pathlib import Path
from typing import NoReturn

from sst2.arguments import is_run
from sst2.errors import UserError
from sst2.run_folder import RunFolder

MODEL_HELP = "folder of a run, an exported model's folder, or a hub name"


class OneLineParser(argparse.ArgumentParser):
    """Leaves it to `exit_codes` to say what is wrong with the flags."""

    def error(self, message: str) -> NoReturn:
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
    is_meant = (
        name.startswith(("/", "./", "../", "~"))
        or name.count("/") > 1
        or (len(folder.parts) > 1 and folder.parent.is_dir())
    )
    if not folder.is_dir() and is_meant:
        raise UserError(f"MODEL {name} does not exist as a folder")
    return str(folder)
