"""`sst2 NAME`: all commands by one name. Each is `python -m sst2.NAME` as well, and `sst2 train` is train_sst2.py.

Nothing heavy is imported here, so that `sst2 --help` answers at once. Tab completion is a script for the shell, which
starts no Python: `sst2 --print_completion bash` writes it, from the parsers of all commands.
"""

import argparse
import difflib
import importlib
import importlib.util
import runpy
import sys

from sst2 import __version__
from sst2.utils.errors import EXIT_USER_ERROR, print_line

COMMANDS = {
    "train": "fine-tune a model on one process: train_sst2.py",
    "launch": "start train_sst2.py on several processes or machines, as accelerate launch does",
    "predict": "classify sentences by a model",
    "export": "write a model as ONNX, compared with torch's",
    "compare": "put runs side by side, with tests of their differences",
    "sweep": "search settings, here or on SLURM, and test the best against a baseline",
    "prefetch": "download, check and tokenize what a run reads, for machines without a network",
    "doctor": "say what this machine, or a job's machines, can do",
}
# Where the flags of a command are, unless they are a run's; launch has those of `accelerate launch`.
_PARSERS = {
    "predict": ("sst2.inference.predict.command", "command_parser"),
    "export": ("sst2.inference.onnx_export.command", "command_parser"),
    "compare": ("sst2.cli.compare", "command_parser"),
    "sweep": ("sst2.cli.sweep", "command_parser"),
    "doctor": ("sst2.cli.doctor", "command_parser"),
    "launch": ("accelerate.commands.launch", "launch_command_parser"),
}
_SHELLS = ("bash", "zsh", "tcsh")
_PATHS = ("FILE", "FILE.yaml", "DIR", "NAME|DIR", "auto|DIR", "RUN", "MODEL", "SPACE")  # what they stand for in help


def main() -> None:
    """Run the command that the first word names, with the words after it.

    Raises:
        SystemExit: with the command's exit code; 2 if there is no such command.
    """
    words = sys.argv[1:]
    if words and words[0] in COMMANDS:
        run(*words)
    elif words and not words[0].startswith("-"):
        near = difflib.get_close_matches(words[0], COMMANDS, n=1)
        guess = f", did you mean {near[0]}?" if near else ":"
        print_line(f"sst2: error: {words[0]} is no command{guess} sst2 --help lists all")
        sys.exit(EXIT_USER_ERROR)
    else:
        arguments = _parser().parse_args(words or ["--help"])
        if arguments.print_completion:
            print(completion(arguments.print_completion))


def run(command: str, *words: str) -> None:
    """Run a command in this process, as Python runs a module or a script."""
    if command != "train":
        sys.argv = [f"sst2 {command}", *words]
        runpy.run_module(f"sst2.{command}", run_name="__main__")
        return
    script = importlib.util.find_spec("train_sst2")
    assert script is not None
    assert script.origin is not None
    sys.argv = [script.origin, *words]
    runpy.run_path(script.origin, run_name="__main__")


def parser_of(command: str) -> argparse.ArgumentParser:
    """The flags of a command; most take seconds of imports."""
    if command in _PARSERS:
        module, function = _PARSERS[command]
        parser: argparse.ArgumentParser = getattr(importlib.import_module(module), function)()
        return parser
    from sst2.config.run_flags import FlagParser

    return FlagParser(f"sst2 {command}", COMMANDS[command])


def completion(shell: str) -> str:
    """A script by which a shell completes commands, flags, choices and paths."""
    import shtab

    from sst2.config.command_line import names_of

    parser, commands = _parsers()
    for name, help in COMMANDS.items():
        command = commands.add_parser(name, help=help, parents=[parser_of(name)], conflict_handler="resolve")
        for action in command._actions:  # which argparse has no public name for
            action.option_strings = names_of(action)
            if action.metavar in _PATHS or (name == "launch" and _is_path(action.dest)):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell))


def _is_path(name: str) -> bool:
    """Whether a flag of `accelerate launch` takes one: its help has no word for what stands behind a flag."""
    return name == "training_script" or name.endswith(("_file", "_dir", "_path", "hostfile"))


def _parser() -> argparse.ArgumentParser:
    parser, commands = _parsers()
    for name, help in COMMANDS.items():
        commands.add_parser(name, help=help)
    return parser


def _parsers() -> tuple[argparse.ArgumentParser, "argparse._SubParsersAction[argparse.ArgumentParser]"]:
    """The parser, and what takes one for each command."""
    parser = argparse.ArgumentParser(
        prog="sst2",
        usage="sst2 NAME ...",
        description="Fine-tune DistilBERT on SST-2, or another encoder on other texts.",
        epilog="sst2 NAME --help says more. First steps: sst2 doctor, then sst2 train --smoke.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sst2 {__version__}")
    parser.add_argument(
        "--print_completion", metavar="SHELL", choices=_SHELLS, help="a script for tab completion in %(choices)s"
    )
    return parser, parser.add_subparsers(title="commands", metavar="NAME")


if __name__ == "__main__":
    main()
