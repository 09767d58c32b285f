"""What this machine, or this job's machines, can do, and what stands in the way of a run.

    sst2 doctor                                                 # here
    accelerate launch ... -m sst2.doctor --folder runs          # on all processes of a launcher, their wires included
    srun ... sst2 launch ... -m sst2.doctor

Prints one table with advice, and the verdict below it. Exit code 0, or 2 when a run would fail.
"""

from contextlib import suppress
from pathlib import Path

from sst2.config.command_line import OneLineParser
from sst2.config.launcher import is_reporting_process, process_rank
from sst2.config.settings import Settings
from sst2.distributed.doctor.disk import check_disk
from sst2.distributed.doctor.machine import check_machine, verdict
from sst2.distributed.init import init_distributed
from sst2.utils.console import say, standard_output, table
from sst2.utils.errors import EXIT_USER_ERROR, UserError, exit_codes, leave_at_once


def command_parser() -> OneLineParser:
    """The command's flags."""
    parser = OneLineParser(prog="sst2 doctor", description="What stands in the way of a run.")
    parser.add_argument("--folder", type=Path, metavar="DIR", default=Path("runs"), help="where runs will be written")
    parser.add_argument(
        "--connect_timeout", type=float, metavar="SECONDS", default=60.0, help="to wait for all processes"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Examine and print. Returns the exit code; all ranks call it, the main process prints."""
    arguments = command_parser().parse_args(argv)
    try:
        settings = Settings(connect_timeout=arguments.connect_timeout)
    except ValueError as error:
        raise UserError(str(error)) from None
    accelerator, _ = init_distributed(settings)
    checks = [*check_machine(accelerator), *check_disk(arguments.folder, accelerator)]
    if accelerator.is_main_process:
        lines = ((check.verdict, check.what, check.value, check.advice) for check in checks)
        say(table([("", "what", "found", "advice"), *lines]))
        say(f"\n{verdict(checks)}")
    return EXIT_USER_ERROR if any(check.is_fatal for check in checks) else 0


def _rank() -> int:
    """Of this process; where the variables are wrong, `main` says so."""
    with suppress(UserError):
        return process_rank()
    return 0


if __name__ == "__main__":
    with exit_codes("sst2 doctor", _rank(), is_reporting_process(), leave_at_once):
        with standard_output():
            code = main()
        if code:
            leave_at_once(code)
