"""The command line of all commands: mistakes in one line with a suggestion, no abbreviations.

Nothing heavy is imported here, so that `--help` and a wrong flag answer at once.
"""

import argparse
import difflib
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, NoReturn

from sst2.utils.errors import UserError

_NARROW = 100  # characters: a terminal with fewer has no room for long flags beside their help


class HelpFormatter(argparse.HelpFormatter):
    """Help that names each flag once, whatever else it may be called, with its default as one would type it."""

    def __init__(self, prog: str) -> None:
        width = shutil.get_terminal_size().columns - 2
        super().__init__(prog, max_help_position=24 if width < _NARROW else 36, width=width)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        return " ".join([", ".join(names_of(action)), *[values_of(action)] * bool(values_of(action))])

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = default_of(action)
        return f"{action.help} (default: {default})" if default else action.help


def names_of(action: argparse.Action) -> list[str]:
    """What a flag is called, without the spellings with hyphens in place of underscores."""
    return [name for name in action.option_strings if "-" not in name.lstrip("-")]


def values_of(action: argparse.Action) -> str:
    """What stands behind a flag: `STEPS`, `NAME ...` or nothing."""
    if isinstance(action.default, bool) or action.nargs == 0:  # true where it stands alone
        return ""
    value = "{" + ",".join(map(str, action.choices)) + "}" if action.choices and not action.metavar else action.metavar
    return f"{value or action.dest.upper()}{' ...' if action.nargs == '+' else ''}"


def default_of(action: argparse.Action) -> str:
    """A flag's default as one would type it; nothing where its help has the word for it, or it is off."""
    default = action.default
    if default is None or default is False or default in ([], argparse.SUPPRESS):
        return ""
    if isinstance(default, float):
        return f"{default:g}".replace("e-0", "e-")
    return " ".join(map(str, default)) if isinstance(default, list) else str(default)


class OneLineParser(argparse.ArgumentParser):
    """A parser without abbreviations of flags, whose mistakes are a `UserError` of one line.

    Args:
        other_names: what an unknown flag is called here, by its name.
        options: of `argparse.ArgumentParser`.
    """

    def __init__(self, *, other_names: Mapping[str, str] = MappingProxyType({}), **options: Any) -> None:
        self._other_names = other_names
        super().__init__(allow_abbrev=False, formatter_class=HelpFormatter, **options)

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
