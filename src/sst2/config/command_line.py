"""The command line of all commands: mistakes in one line with a suggestion, no abbreviations.

Nothing heavy is imported here, so that `--help` and a wrong flag answer at once.
"""

import argparse
import difflib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, NoReturn

from sst2.utils.errors import UserError


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: Any) -> str | None:
        says_nothing = action.default is None or action.default is False or action.default == []
        return action.help if says_nothing else super()._get_help_string(action)


class OneLineParser(argparse.ArgumentParser):
    """A parser without abbreviations of flags, whose mistakes are a `UserError` of one line.

    Args:
        other_names: what an unknown flag is called here, by its name.
        options: of `argparse.ArgumentParser`.
    """

    def __init__(self, *, other_names: Mapping[str, str] = MappingProxyType({}), **options: Any) -> None:
        self._other_names = other_names
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **options)

    def hint(self, word: str) -> str:
        """What an unknown flag may have meant: after a comma, or nothing."""
        flags = [action.dest for action in self._actions if action.option_strings]
        return flag_hint(word, flags, self._other_names)

    def print_help(self, file: Any = None) -> None:
        """Print the help, also to a reader that goes: no mistake, as later versions of argparse have it."""
        with suppress(OSError):
            super().print_help(file)

    def error(self, message: str) -> NoReturn:
        """Raises UserError, where argparse would print its usage and end the process."""
        raise UserError(mistake_in_words(message, self.hint))


def mistake_in_words(message: str, hint: Callable[[str], str]) -> str:
    """What argparse says of a mistake, on one line, where a flag is unknown with what `hint` says of it."""
    kind, _, unknown = message.partition("unrecognized arguments: ")
    if not kind and unknown:
        flag = (unknown.split() or [repr(unknown)])[0].split("=")[0]  # what follows may be a token
        message = f"{flag} is not a flag{hint(flag)}"
    return f"{message}; --help lists all flags"


def flag_hint(word: str, flags: Sequence[str], other_names: Mapping[str, str] = MappingProxyType({})) -> str:
    """What an unknown flag may have meant, of the flags that there are or by its name elsewhere: after a comma."""
    name = word.lstrip("-").replace("-", "_")
    if name in other_names:
        return f", here it is {other_names[name]}"
    match = difflib.get_close_matches(name, flags, n=1)
    return f", did you mean --{match[0]}?" if match else ""
