"""`sst2 NAME`: all commands by one name. Each is `python -m sst2.NAME` as well, and `sst2 train` is train_sst2.py.

Nothing heavy is imported here, so that `sst2 --help` answers at once.
"""

import argparse
import difflib
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
        _parser().parse_args(words or ["--help"])


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sst2",
        usage="sst2 NAME ...",
        description="Fine-tune DistilBERT on SST-2, or another encoder on other texts.",
        epilog="sst2 NAME --help says more. First steps: sst2 doctor, then sst2 train --smoke.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sst2 {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="NAME")
    for name, help in COMMANDS.items():
        commands.add_parser(name, help=help)
    return parser


if __name__ == "__main__":
    main()
