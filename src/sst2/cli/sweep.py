"""Run trials of many settings, and test the best of them against a baseline on fresh seeds.

    sst2 sweep space.yaml                                          # here, one run after another
    sst2 sweep space.yaml -- --multi_gpu --num_processes 4         # likewise, each by sst2 launch
    sst2 sweep space.yaml --slurm -- --gpus-per-node 1             # as job arrays; what follows is sbatch's

The same command once more goes on with what has not finished. docs/sweep.md says what space.yaml may hold.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import sst2
from sst2.config.command_line import OneLineParser
from sst2.config.run_flags import FlagParser
from sst2.config.yaml_file import mistakes_of
from sst2.sweeps.folder import SweepFolder, begin, is_sweep
from sst2.sweeps.plan import read_plan
from sst2.sweeps.starts import STAGES, RunInUseError, start
from sst2.sweeps.trials import check_runs
from sst2.utils.console import flush, say, standard_output
from sst2.utils.errors import EXIT_FAILED, StopRequestedError, UserError, exit_codes, print_error

if TYPE_CHECKING:
    from sst2.sweeps.report import Report

PROGRAM = "sst2 sweep"
SAYS = "Run trials of many settings, and test the best of them against a baseline on fresh seeds"
REST = "what follows -- goes to sst2 launch, which starts each run then, or, with --slurm, to sbatch"


def command_parser() -> OneLineParser:
    """The command's flags, without what follows `--`."""
    parser = OneLineParser(prog=PROGRAM, description=f"{SAYS}; {REST}.")
    parser.add_argument("space", type=Path, metavar="SPACE", help="the plan, a YAML file, or the folder of a sweep")
    parser.add_argument("--output_dir", type=Path, metavar="DIR", help="folder of the sweep; default: runs/SPACE")
    parser.add_argument(
        "--slurm", action="store_true", help="queue the sweep as job arrays; sbatch's options follow --"
    )
    parser.add_argument(
        "--at_once", type=int, default=4, metavar="N", help="runs at the same time at most, with --slurm"
    )
    parser.add_argument("--tables", action="store_true", help="only write and print the tables as they are now")
    parser.add_argument(
        "--start", type=int, metavar="N", help="for slurm/train.sh: a run's folder and flags, a line each"
    )
    return parser


def main(argv: list[str]) -> None:
    """Run, queue or show a sweep.

    Raises:
        UserError: a mistake in the plan, of which nothing is begun then, or nothing has come of the runs.
        StopRequestedError: somebody has asked it to stop.
    """
    own, rest = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    arguments = command_parser().parse_args(own)
    flags, space = FlagParser("train_sst2.py", ""), Path(os.path.expanduser(arguments.space))
    if arguments.at_once < 1:
        raise UserError(f"--at_once {arguments.at_once} cannot work: give at least 1")
    if arguments.start is not None:
        print_start(space, arguments.start, flags)
        return
    if is_sweep(space.parent) and space.name == "sweep.yaml":
        space = space.parent
    output_dir = arguments.output_dir and Path(os.path.expanduser(arguments.output_dir))
    path = output_dir or (space if space.is_dir() else Path("runs") / space.stem)
    file = space / "sweep.yaml" if space.is_dir() else space
    if arguments.tables:
        write_tables(SweepFolder(path, flags))
        return
    plan = read_plan(file, flags)
    if plan.method == "optuna":
        from sst2.sweeps.study import require_sampler

        with mistakes_of(str(file)):
            require_sampler(plan)
    check_runs(plan, flags, file)
    project = project_folder()
    if rest and not arguments.slurm:  # sbatch checks its own, before the first job is queued
        check_launcher(rest, project / "train_sst2.py")
    sweep = begin(file, path, flags)
    if arguments.slurm:
        from sst2.sweeps.slurm import submit

        submit(sweep, project, rest, arguments.at_once, say)
        return
    from sst2.sweeps.local import run_here

    run_here(sweep, project / "train_sst2.py", rest, _say_now)
    if missing := write_tables(sweep).finals_missing:
        raise UserError(f"{missing} runs of the finals ended without a result, as they have said above")


def print_start(place: Path, number: int, flags: FlagParser) -> None:
    """The folder of a run and the words of its command line, a line each; nothing where nothing is left to do.

    Of a run that is in use, it is the folder alone.

    Args:
        place: the sweep's folder and, below it, the stage.
        number: of the run in its stage.
        flags: parser of a run's.

    Raises:
        UserError: it would come to the same again: there is no such stage, or the trials have not ended.
        StopRequestedError: another process works on the run, whose end is to be waited for.
        SystemExit: with 1, where the file system is to blame, which may work again soon.
    """
    if place.name not in STAGES:
        raise UserError(f"{place.name} is no stage of a sweep: give {' or '.join(STAGES)}")
    try:
        found = start(SweepFolder(place.parent, flags), place.name, number)
    except RunInUseError as error:
        say(str(error.folder))
        raise StopRequestedError(f"{error}: to be started again when that has ended") from None
    except (UserError, OSError) as error:
        if isinstance(error, UserError) and not isinstance(error.__context__, OSError):
            raise
        print_error(error, f"{PROGRAM}: {error}: to be started again")
        sys.exit(EXIT_FAILED)
    if found:
        run, words = found
        say("\n".join([str(run.folder), *words]))


def write_tables(sweep: SweepFolder) -> "Report":
    """Write results.md, trials.csv and finals.csv, and print the first. Returns what they are made of.

    Raises:
        UserError: the folder cannot be written.
    """
    from sst2.evaluation.tables import as_csv
    from sst2.sweeps.finals import choose
    from sst2.sweeps.report import Report
    from sst2.utils.atomic_file import write_text

    report = Report(sweep, choose(sweep) if sweep.choice.exists() else None)
    try:
        with sweep.locked():
            write_text(sweep.path / "trials.csv", as_csv(report.trials))
            if report.finals:
                write_text(sweep.path / "finals.csv", as_csv(report.finals))
            write_text(sweep.path / "results.md", report.text())
    except OSError as error:
        raise UserError(f"{sweep.path} cannot be written ({error.strerror}): make room, or see to its disk") from None
    say(report.text())
    return report


def check_launcher(options: list[str], script: Path) -> None:
    """Raises UserError: `sst2 launch` would refuse these options of every run."""
    from sst2.cli.launch import launcher_arguments

    try:
        found = launcher_arguments([*options, str(script)])
    except UserError as error:
        raise UserError(f"after --: {error}") from None
    if found.training_script != str(script):
        raise UserError(f"after --: {found.training_script} is no flag of the launcher: leave it out")


def project_folder() -> Path:
    """Where train_sst2.py is: here, or beside the package."""
    for folder in (Path(), Path(sst2.__file__).parents[2]):
        if (folder / "train_sst2.py").is_file():
            return folder.resolve()
    raise UserError("train_sst2.py is not here: start the sweep in the project's folder")


def _say_now(text: str) -> None:
    say(f"sst2 sweep: {text}")
    flush()


if __name__ == "__main__":
    with exit_codes(PROGRAM), standard_output():
        main(sys.argv[1:])
