"""The command line, and YAML files with the same names: parsed, merged, checked against the run's folder.

Nothing heavy is imported here, so that `--help` and a wrong flag answer at once.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import yaml

from sst2.config.flag_groups import NAMES, SAMPLE
from sst2.config.launcher import is_reporting_process, job_id, process_rank
from sst2.config.output_dir import check_run_dir, go_on_with_own_run, has_begun_with_it
from sst2.config.run_flags import FlagParser
from sst2.config.settings import Settings
from sst2.config.yaml_file import RESOLVED_MARK, read_config
from sst2.runs.run_folder import MARK, OF_JOB
from sst2.utils.errors import EXIT_USER_ERROR, UserError, print_error

if TYPE_CHECKING:
    from sst2.runs.run_folder import RunFolder

PROGRAM = "train_sst2.py"
OF_DRY_RUN = ("dry_run", "json", "price_per_hour")
OF_ONE_START = "overwrite_output_dir resume_from_checkpoint push_to_hub hub_model_id profile_steps".split()
OF_ONE_START += OF_DRY_RUN

# What `--smoke` stands for: the embedded sample and a recipe that suits a tiny model trained from scratch.
SMOKE_RECIPE: dict[str, Any] = {
    "model_name_or_path": SAMPLE,
    "dataset_name": SAMPLE,
    "learning_rate": 1e-3,
    "num_train_epochs": 5.0,
    "warmup_ratio": 0.1,
    "logging_steps": 25,
}


def parse_arguments(argv: Sequence[str] | None = None) -> Settings:
    """Settings from the command line, a YAML file and the defaults, the first winning, for a run in its folder.

    Raises:
        SystemExit: code 0 after `--help`, code 2 after one line on stderr for any mistake.
    """

    def check(settings: Settings) -> None:
        if process_rank() == 0:  # the others may start after it has begun to fill the folder
            check_run_dir(settings)

    settings = read_settings(argv, PROGRAM, "Fine-tune DistilBERT on SST-2.", go_on_with_own_run, check)
    return replace(settings, resume_from_checkpoint="auto") if has_begun_with_it(settings) else settings


def read_settings(
    argv: Sequence[str] | None,
    program: str,
    description: str,
    adapt: Callable[[dict[str, Any]], None] | None = None,
    check: Callable[[Settings], object] | None = None,
) -> Settings:
    """Settings for any program that takes the flags of a run.

    Args:
        argv: the words after the program's name; `sys.argv` if None.
        program: its name, for `--help` and messages.
        description: for `--help`.
        adapt: changes the values before they become settings.
        check: called with the settings; what it raises is a mistake as well.

    Raises:
        SystemExit: code 0 after `--help`, code 2 after one line on stderr for any mistake.
    """
    parser = FlagParser(program, description)
    try:  # an OSError: a path that the file system does not take
        given = parser.given(sys.argv[1:] if argv is None else argv)
        file = given.pop("config", None)
        given = ({} if file is None else read_config(parser, file, given)) | given
        settings = settings_of(parser, given, adapt)
        if check:
            check(settings)
        return settings
    except (UserError, ValueError, OSError) as error:
        said = str(error)
        if isinstance(error, OSError) and error.strerror:
            said = f"{error.filename} cannot be used ({error.strerror}): give another path"
        print_error(error, f"{program}: error: {said}" if is_reporting_process() else "")
        sys.exit(EXIT_USER_ERROR)


def settings_of(
    parser: FlagParser, given: dict[str, Any], adapt: Callable[[dict[str, Any]], None] | None = None
) -> Settings:
    """Settings from the values that are given, over those of `--smoke` and the defaults. `adapt` changes them before.

    Raises:
        ValueError: a value that cannot work.
    """
    defaults = {name: parser.get_default(name) for name in NAMES}
    values = defaults | (SMOKE_RECIPE if given.get("smoke") else {}) | given
    if adapt:
        adapt(values)
    return Settings(**values, given=given)


def given_yaml(settings: Settings) -> str:
    """What the flags and the file said, as YAML that `--config` reads: `config.yaml`.

    Without what belongs to one start of a run, and without anything that was worked out: with other flags beside it, it
    means what it meant. A comment names the job, if it is one that may start many times.
    """
    mark = f"{MARK}\n{OF_JOB}{job_id()}" if job_id() else MARK
    return _to_yaml(mark, {name: value for name, value in settings.given.items() if name not in OF_ONE_START})


def resolved_yaml(settings: Settings) -> str:
    """The value of every setting, for people and for `sst2 compare`: `resolved.yaml`."""
    values = settings.values()
    return _to_yaml(RESOLVED_MARK, {name: value for name, value in values.items() if name not in OF_ONE_START})


def write_settings(run: "RunFolder", settings: Settings) -> None:
    """Write both files, first the one that makes the folder a run's: a start that is killed in between goes on."""
    from sst2.utils.atomic_file import write_text  # heavy, as long as nobody knows that the flags are right

    write_text(run.config, given_yaml(settings))
    write_text(run.resolved, resolved_yaml(settings))


def _to_yaml(mark: str, values: dict[str, Any]) -> str:
    return f"{mark}\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}"
