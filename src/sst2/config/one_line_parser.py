"""The parser of the commands beside the run's: mistakes in one line."""

import argparse
import difflib
from typing import Any, NoReturn

from sst2.utils.errors import UserError


class OneLineParser(argparse.ArgumentParser):
    """Leaves it to `exit_codes` to say what is wrong with the flags, and takes no abbreviations of them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raises UserError, where argparse would print its usage and end the process."""
        kind, _, unknown = message.partition("unrecognized arguments: ")
        if not kind and unknown:
            flag = unknown.split()[0].split("=")[0]  # what follows may be a token
            close = difflib.get_close_matches(flag, self._option_string_actions, n=1)
            message = f"{flag} is not a flag" + (f", did you mean {close[0]}?" if close else "")
        raise UserError(f"{message}; --help lists all flags")
