"""YAML files of flags by name, whose values are taken as they are written: those of `--config`, and of sweeps.

Nothing heavy is imported here, so that `--help` and a wrong flag answer at once.
"""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from sst2.config.flag_groups import NAMES
from sst2.config.run_flags import FlagParser
from sst2.utils.errors import UserError

RESOLVED_MARK = "# Every setting of a run, with what was worked out; config.yaml holds what was asked for"
# A flag on the command line overrides what a file says of the other: the two cannot hold at once.
OVERRIDES = {
    "num_train_epochs": "max_train_steps",
    "warmup_ratio": "num_warmup_steps",
    "global_batch_size": "gradient_accumulation_steps",
    "gradient_accumulation_steps": "global_batch_size",
}
_LONGEST_QUOTE = 100  # characters of a value, or of a library's message


class _Null(str):
    """YAML's word for nothing, as it was written: null, ~ or no word at all."""


class _AsWritten(yaml.BaseLoader):
    """Every scalar is its text: YAML 1.1 reads 1.10 as 1.1, 010 as 8 and no as false."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in set(names):
            if names.count(name) > 1:
                raise ValueError(f"{_quote(name)} stands there twice: leave one")
        return super().construct_mapping(node, deep)


_NULL = "tag:yaml.org,2002:null"
_AsWritten.add_implicit_resolver(_NULL, re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_AsWritten.add_constructor(_NULL, lambda _, node: _Null(node.value))


def read_config(parser: FlagParser, file: str, given: Collection[str] = ()) -> dict[str, Any]:
    """The settings that a file gives, checked by the same rules as the command line's.

    What it says against the flags that are `given` on the command line is left out.

    Raises:
        UserError: the file cannot be read, is not YAML, or has a name or a value that cannot be.
    """
    with mistakes_of(f"--config {file}"):
        content = Path(file).read_bytes()
        if content.decode("utf-8", errors="replace").startswith(RESOLVED_MARK):
            raise ValueError("it holds what was worked out for one run: give the config.yaml beside it")
        return values_of(parser, as_written(content), given)


@contextmanager
def mistakes_of(file: str) -> Iterator[None]:
    """Around the reading of a YAML file: whatever is wrong with it becomes one line that begins with its name.

    Raises:
        UserError: it cannot be read, is not YAML, or is refused by an error of the two kinds that say why.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeError, RecursionError) as error:
        raise UserError(f"{file} is not YAML: {_quote(' '.join(str(error).split()), 300)}") from None
    except (UserError, ValueError) as error:
        raise UserError(f"{file}: {error}") from None


def as_written(content: bytes) -> dict[str, Any]:
    """What a YAML file holds, by name: text, and lists and dicts of it.

    Raises:
        ValueError: it is something else than names and values, or a name stands there twice.
        yaml.YAMLError: it is not YAML.
    """
    settings = yaml.load(content, _AsWritten)  # which makes nothing but text, lists and dicts
    if not isinstance(settings, dict):
        raise ValueError("it must hold lines of the form 'learning_rate: 3e-5'")
    return settings


def values_of(parser: FlagParser, settings: dict[str, Any], given: Collection[str] = ()) -> dict[str, Any]:
    """The values of flags as they are written, without those that are left open or contradict the `given` flags.

    Raises:
        UserError, ValueError: a name or a value that cannot be.
    """
    values = {name: value for name, written in settings.items() if (value := value_of(parser, name, written)) != []}
    for name in given:
        values.pop(OVERRIDES.get(name, ""), None)
    return values


def value_of(parser: FlagParser, name: str, written: Any) -> Any:
    """What a flag's type makes of a value as it is written; an empty list where it is left open.

    Raises:
        UserError, ValueError: there is no such flag, or it takes no such value.
    """
    if name not in NAMES:
        raise ValueError(f"{_quote(name)} is not a setting{parser.hint(name)}")
    action = parser.action(name)
    if isinstance(written, _Null) and (not written or not isinstance(action.default, str)):
        return []
    takes_several = action.nargs == "+"
    words = written if takes_several and isinstance(written, list) else [written]
    if not all(isinstance(word, str) for word in words):
        raise ValueError(f"{name} takes {'words' if takes_several else 'one value'}, not a list or a mapping there")
    if isinstance(action.default, bool):
        words = [{"on": "true", "off": "false"}.get(word.lower(), word) for word in words]
    values = [parser.given([f"--{name}={word}"])[name] for word in words]
    return [word for value in values for word in value] if takes_several else values[0]


def _quote(text: str, longest: int = _LONGEST_QUOTE) -> str:
    return text if len(text) <= longest else f"{text[:longest]}…"
