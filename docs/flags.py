"""Writes docs/reference.md, the tables of all flags, from the parsers of the commands.

python docs/flags.py        # writes it; a test compares what is there
"""

import argparse
from pathlib import Path

from sst2.__main__ import COMMANDS, parser_of
from sst2.config.command_line import default_of, names_of, values_of
from sst2.config.flag_groups import EXAMPLES

PAGE = Path(__file__).resolve().parent / "reference.md"
HEAD = """# Reference

<!-- written by python docs/flags.py -->

All flags of all commands, as `--help` has them. A flag with no value is off unless it is given. No default: the flag is
not set, or its text says what happens then.

## Flags of a run

Of `train_sst2.py`, `sst2 train` and `sst2 prefetch`. Hyphens may take the place of underscores; a YAML file given to
`--config` has the same names without `--`. A flag with no value also takes `true` and `false`.
"""
TAIL = """## Tab completion

A shell completes commands, flags, choices and paths of `sst2` after

```bash
sst2 --print_completion bash > ~/.local/share/bash-completion/completions/sst2
```

in its next session (the folder has to be there); zsh and tcsh take `sst2 --print_completion zsh` and `tcsh`. Run it
again after an update.

## sst2 launch

Flags of `accelerate launch`, which `sst2 launch --help` lists, then `train_sst2.py` and the flags of a run:
`sst2 launch --multi_gpu --num_processes 4 train_sst2.py --seed 1`.
"""
NO_TABLE = ("train", "prefetch", "launch")


def table(actions: list[argparse.Action]) -> str:
    """Flags and arguments, one a row."""
    rows = [
        "| flag | value | default | |",
        "|---|---|---|---|",
        *(
            f"| `{', '.join(names_of(action)) or action.metavar}` | {code(value(action))} | {code(default_of(action))} "
            f"| {text(action)} |"
            for action in actions
        ),
    ]
    return "\n".join(rows) + "\n"


def value(action: argparse.Action) -> str:
    """What may stand behind a flag."""
    if not action.option_strings:
        return "..." if action.nargs in ("+", "*") else ""
    choices = [*action.choices] if action.choices else []
    return ", ".join(map(str, choices)) if values_of(action) and choices else values_of(action)


def code(words: str) -> str:
    """Words as code within a table."""
    return f"`{words}`".replace("|", "\\|") if words else ""


def text(action: argparse.Action) -> str:
    """A flag's help, with nothing in it that Markdown would take for its own."""
    choices = ", ".join(map(str, action.choices or []))
    words = (action.help or "") % {"choices": choices, "default": default_of(action)}
    for sign in ("\\", "|", "*", "_", "<", "[", "$"):
        words = words.replace(sign, f"\\{sign}")
    return words


def actions_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """All but `--help`."""
    return [action for action in parser._actions if action.dest != "help"]


def page() -> str:
    """docs/reference.md as it should be."""
    run = parser_of("train")
    parts = [HEAD, table([action for action in actions_of(run) if action.dest == "config"])]
    for group in run._action_groups:
        if example := EXAMPLES.get(group.title or ""):
            command = f"```bash\naccelerate launch train_sst2.py {example}\n```\n"
            parts += [f"### {str(group.title).capitalize()}\n", command, table(group._group_actions)]
    for name, help in COMMANDS.items():
        if name not in NO_TABLE:
            parts += [f"## sst2 {name}\n", f"{help[0].upper()}{help[1:]}.\n", table(actions_of(parser_of(name)))]
    return "\n".join([*parts, TAIL])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
