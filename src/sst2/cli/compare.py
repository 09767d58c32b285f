"""Put runs side by side: what differs in their settings, what they reached, and whether that is more than chance.

    sst2 compare runs/*
    sst2 compare runs/* --baseline runs/first --output runs/comparison

Prints a table of runs and one of configurations, whose runs differ by their seed alone, as wide as the terminal.
Runs that are missing or have not finished are lines that say so. Against a baseline of several seeds, runs of the same
seed are compared one by one as well. `--output DIR` writes all columns to comparison.md, a plot to comparison.png, and
each table as csv: runs, configurations, pairs. docs/compare.md explains tables, statistics and files.
"""

import sys
import textwrap
from pathlib import Path

from sst2.config.command_line import OneLineParser
from sst2.evaluation.comparison import Comparison, common_parent
from sst2.evaluation.run_results import Run, find_run
from sst2.runs.run_folder import is_run
from sst2.utils.atomic_file import write_text
from sst2.utils.console import say, standard_output, terminal_width
from sst2.utils.errors import UserError, exit_codes

PROGRAM = "sst2 compare"


def command_parser() -> OneLineParser:
    """The command's flags."""
    parser = OneLineParser(prog=PROGRAM, description="Put runs side by side.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    parser.add_argument("--baseline", type=Path, metavar="RUN", help="run whose configuration the others are tested on")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write the tables and a plot to")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Raises UserError: no run is there, or none has finished; or the output cannot be written."""
    arguments = command_parser().parse_args(argv)
    given = list({folder.resolve(): folder for folder in arguments.runs}.values())
    others = [folder for folder in given if _is_other(folder)]
    runs = [find_run(folder) for folder in given if folder not in others]
    baseline = _baseline(arguments.baseline, runs)
    if not any(map(is_run, given)):
        why = (
            "holds no run: give folders with a config.yaml"
            if given[0].exists()
            else "does not exist: give folders of runs"
        )
        raise UserError(f"{given[0]} {why}, such as runs/*")

    comparison = Comparison(runs, baseline)
    remarks = comparison.remarks()
    if others:
        remarks.append(f"No runs, and left out: {', '.join(map(str, others))}.")
    say(as_text(comparison, remarks, terminal_width()))
    if not any(run.is_finished for run in runs):
        one = next(run for run in runs if is_run(Path(run.name)))
        raise UserError(
            f"none of {len(runs)} runs has finished, {one.name} for one is {one.status}{one.note and ': '}{one.note}"
        )
    if arguments.output:
        write(arguments.output, comparison, remarks)


def _is_other(folder: Path) -> bool:
    """Whether something is there that is no run and will be none, as a comparison's folder in `runs/*`."""
    if is_run(folder) or not folder.exists():
        return False
    return not folder.is_dir() or any(not path.name.startswith(".") for path in folder.iterdir())


def _baseline(folder: Path | None, runs: list[Run]) -> Run | None:
    """The run that others are tested against. It is put before the runs if it is not among them."""
    if folder is None:
        return None
    for run in runs:
        if Path(run.name).resolve() == folder.resolve():
            return run
    if not is_run(folder):
        raise UserError(f"--baseline {folder} holds no run: give a folder with a config.yaml")
    runs.insert(0, find_run(folder))
    return runs[0]


def as_text(comparison: Comparison, remarks: list[str], width: int) -> str:
    """Tables and remarks for a terminal of that width. Columns that it has no room for are named."""
    parts, left_out = [_where(comparison)] * bool(_where(comparison)), []
    for name, table in comparison.tables().items():
        text, missing = table.fitted(width)
        parts.append(f"{text}\n")
        left_out += [f"{', '.join(missing)} ({name})"] * bool(missing)
        if name == "configurations" and (settings := [one for one in missing if one in comparison.differing]):
            lines = [f"{group.number}: {comparison.label(group, settings)}" for group in comparison.configurations]
            parts += [_wrapped(line, width, "   ") for line in lines] + [""]
    if left_out:
        remarks = [*remarks, f"No room for {'; '.join(left_out)}: --output DIR writes all columns."]
    return "\n".join([*parts, *(_wrapped(remark, width) for remark in remarks)])


def _wrapped(text: str, width: int, indent: str = "") -> str:
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def as_markdown(comparison: Comparison, remarks: list[str]) -> str:
    """Tables, with all columns, and remarks."""
    tables = [f"{table.markdown()}\n" for table in comparison.tables().values()]
    return "\n\n".join(filter(None, [_where(comparison).rstrip(), "\n".join(tables).rstrip(), *remarks])) + "\n"


def _where(comparison: Comparison) -> str:
    parent = common_parent([run.name for run in comparison.runs])
    return f"Runs in {parent}:\n" if parent else ""


def write(folder: Path, comparison: Comparison, remarks: list[str]) -> None:
    """Write the text, each table as csv, and a plot.

    Raises:
        UserError: the folder cannot be written.
    """
    from sst2.tracking.comparison_plot import plot_comparison

    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "comparison.md", as_markdown(comparison, remarks))
        (folder / "pairs.csv").unlink(missing_ok=True)  # there may be none this time
        for name, table in comparison.tables().items():
            write_text(folder / f"{name}.csv", table.csv())
        plot_comparison(folder / "comparison.png", comparison)
    except OSError as error:
        raise UserError(f"--output {folder} cannot be written ({error.strerror}): name another folder") from None


if __name__ == "__main__":
    with exit_codes(PROGRAM), standard_output():
        main(sys.argv[1:])
