"""Put runs side by side: what differs in their settings, what they reached, and whether that is more than chance.

    python -m sst2.compare runs/*
    python -m sst2.compare runs/* --baseline runs/first --output runs/comparison

Prints one table of runs and one of configurations, in which runs that differ by their seed alone stand together.
Against a baseline of several seeds, runs of the same seed are compared one by one as well.
`--output DIR` writes comparison.md, comparison.png, and each table as csv: runs, configurations, pairs.
"""

import csv
import sys
from io import StringIO
from pathlib import Path

from sst2.config.command_line import OneLineParser
from sst2.data.csv_cells import to_cell
from sst2.evaluation.comparison import Comparison, Table
from sst2.evaluation.run_results import Run, read_run
from sst2.runs.run_folder import is_run
from sst2.utils.atomic_file import write_text
from sst2.utils.console import say, standard_output, table
from sst2.utils.errors import UserError, exit_codes

PROGRAM = "python -m sst2.compare"


def main(argv: list[str] | None = None) -> None:
    """Raises UserError: a folder is no run, a file in it cannot be read, or nothing has finished."""
    parser = OneLineParser(prog=PROGRAM, description="Put runs side by side.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    parser.add_argument("--baseline", type=Path, metavar="RUN", help="run whose configuration the others are tested on")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write the tables and a plot to")
    arguments = parser.parse_args(argv)
    if missing := [folder for folder in arguments.runs if not folder.exists()]:
        raise UserError(f"{missing[0]} does not exist: give folders of runs, such as runs/*")
    folders = list({folder.resolve(): folder for folder in arguments.runs if is_run(folder)}.values())
    if not folders:
        raise UserError(f"{arguments.runs[0]} holds no run: give folders with a config.yaml, such as runs/*")
    runs = [read_run(folder) for folder in folders]
    baseline = _baseline(arguments.baseline, runs)
    if not any(run.is_finished for run in runs):
        raise UserError(f"none of {len(runs)} runs has finished, {runs[0].name} for one: there is no metrics.json")

    comparison = Comparison(runs, baseline)
    tables, remarks = comparison.tables(), comparison.remarks()
    if without := [str(folder) for folder in arguments.runs if not is_run(folder)]:
        remarks.append(f"No run there, or none that has begun: {', '.join(without)}.")
    text = "\n".join([*(f"{table(rows, markdown=True)}\n" for rows in tables.values()), *remarks, ""])
    say(text)
    if arguments.output:
        write(arguments.output, text, tables, comparison)


def _baseline(folder: Path | None, runs: list[Run]) -> Run | None:
    """The run that others are tested against. It is put before the runs if it is not among them."""
    if folder is None:
        return None
    if not is_run(folder):
        raise UserError(f"--baseline {folder} holds no run: give a folder with a config.yaml")
    for run in runs:
        if Path(run.name).resolve() == folder.resolve():
            return run
    runs.insert(0, read_run(folder))
    return runs[0]


def write(folder: Path, text: str, tables: dict[str, Table], comparison: Comparison) -> None:
    """Write the text, each table as csv, and a plot.

    Raises:
        UserError: the folder cannot be written.
    """
    from sst2.tracking.plots import plot_accuracy

    finished = [(comparison.label(run) or run.name, run.metrics) for run in comparison.runs if run.metrics]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "comparison.md", text)
        (folder / "pairs.csv").unlink(missing_ok=True)  # there may be none this time
        for name, rows in tables.items():
            write_text(folder / f"{name}.csv", as_csv(rows))
        plot_accuracy(folder / "comparison.png", *map(list, zip(*finished, strict=True)))
    except OSError as error:
        raise UserError(f"--output {folder} cannot be written ({error.strerror}): name another folder") from None


def as_csv(rows: Table) -> str:
    """The table as csv in which a spreadsheet calculates nothing."""
    stream = StringIO()
    csv.writer(stream, lineterminator="\n").writerows([map(to_cell, row) for row in rows])
    return stream.getvalue()


if __name__ == "__main__":
    with exit_codes(PROGRAM), standard_output():
        main(sys.argv[1:])
