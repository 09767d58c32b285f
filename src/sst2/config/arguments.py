"""The command line, and YAML files with the same names: parsed, merged, checked against the run's folder.

Nothing heavy is imported here, so that `--help` and a wrong flag answer at once.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sst2.config.command_line import FlagParser
from sst2.config.launcher_variables import is_reporting_process, process_rank
from sst2.config.settings import SAMPLE, Settings
from sst2.config.yaml_file import RESOLVED_MARK, read_config
from sst2.runs.origin import is_origin, origin
from sst2.runs.run_folder import MARK, is_run
from sst2.utils.errors import EXIT_USER_ERROR, UserError, print_error

if TYPE_CHECKING:
    from sst2.runs.run_folder import RunFolder

PROGRAM = "train_sst2.py"
OF_ONE_START = ("overwrite_output_dir", "resume_from_checkpoint", "push_to_hub", "hub_model_id")

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

    Args:
        argv: the words after the program's name; `sys.argv` if None.

    Raises:
        SystemExit: code 0 after `--help`, code 2 after one line on stderr for any mistake.
    """

    def check(settings: Settings) -> None:
        if process_rank() == 0:  # the others may start after it has begun to fill the folder
            check_run_dir(settings)

    settings = read_settings(argv, PROGRAM, "Fine-tune DistilBERT on SST-2.", go_on_with_own_run, check)
    return replace(settings, resume_from_checkpoint="auto") if _has_begun_with_it(settings) else settings


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
        description: what it does, for `--help`.
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
        values = parser.defaults | (SMOKE_RECIPE if given.get("smoke") else {}) | given
        if adapt:
            adapt(values)
        settings = Settings(**values, given=given)
        if check:
            check(settings)
        return settings
    except (UserError, ValueError, OSError) as error:
        said = str(error)
        if isinstance(error, OSError) and error.strerror:
            said = f"{error.filename} cannot be used ({error.strerror}): give another path"
        print_error(error, f"{program}: error: {said}" if is_reporting_process() else "")
        sys.exit(EXIT_USER_ERROR)


def go_on_with_own_run(values: dict[str, Any]) -> None:
    """In a batch job that may start many times: go on with the run that an earlier start of the same job has begun.

    slurm/train.sh says which job this is, and which folder the run has where no flag names one. Until the job has made
    the folder its own, `--overwrite_output_dir` and `--resume_from_checkpoint` mean what they say, at every start.

    Args:
        values: of the flags; changed in place.
    """
    job = os.environ.get("SST2_BATCH_JOB")
    if not job:
        return
    values["output_dir"] = values["output_dir"] or os.environ.get("SST2_OUTPUT_DIR")
    record = Path(os.path.expanduser(values["output_dir"] or "")) / "environment.json"
    try:
        is_own = json.loads(record.read_text(encoding="utf-8"))["variables"]["SLURM_JOB_ID"] == job
    except (OSError, ValueError, LookupError, TypeError):
        is_own = False
    if is_own or not (values["overwrite_output_dir"] or values["resume_from_checkpoint"]):
        values |= {"overwrite_output_dir": False, "resume_from_checkpoint": "auto"}


def given_yaml(settings: Settings) -> str:
    """What the flags and the file said, as YAML that `--config` reads: `config.yaml`.

    Without what belongs to one start of a run, and without anything that was worked out: with other flags beside it, it
    means what it meant.
    """
    return _to_yaml(MARK, {name: value for name, value in settings.given.items() if name not in OF_ONE_START})


def resolved_yaml(settings: Settings) -> str:
    """The value of every setting, for people and for `sst2.compare`: `resolved.yaml`."""
    values = settings.values()
    return _to_yaml(RESOLVED_MARK, {name: value for name, value in values.items() if name not in OF_ONE_START})


def write_settings(run: "RunFolder", settings: Settings) -> None:
    """Write both files, first the one that makes the folder a run's: a start that is killed in between goes on."""
    from sst2.utils.atomic_file import write_text  # heavy, as long as nobody knows that the flags are right

    write_text(run.config, given_yaml(settings))
    write_text(run.resolved, resolved_yaml(settings))


def _to_yaml(mark: str, values: dict[str, Any]) -> str:
    return f"{mark}\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}"


def _has_begun_with_it(s: Settings) -> bool:
    """Whether the run in the folder is the one that began with the checkpoint of another run that is named again."""
    if s.resume_from_checkpoint in (None, "auto"):
        return False
    return is_origin(Path(str(s.resume_from_checkpoint)), s.run_dir / "checkpoints")


def check_run_dir(s: Settings) -> None:
    """Whether the run may work in its folder as it is now.

    Raises:
        UserError: something is in it that must not be touched.
    """
    run_dir, resume = s.run_dir, "auto" if _has_begun_with_it(s) else s.resume_from_checkpoint
    for flag, place in (("output_dir", run_dir), ("resume_from_checkpoint", Path(resume or ""))):
        try:
            str(place).encode()
        except UnicodeEncodeError:
            raise UserError(f"--{flag} {place} is not UTF-8, as safetensors needs a folder to be: rename it") from None
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"--output_dir {run_dir} is a file: name a folder")
    if resume not in (None, "auto") and not Path(str(resume)).is_dir():
        raise UserError(f"--resume_from_checkpoint {resume} is not a folder: give a checkpoint's folder, or auto")
    if not run_dir.is_dir() or all(path.name.startswith(".") for path in run_dir.iterdir()):
        return  # hidden: what a start that was killed at once has left
    if (s.overwrite_output_dir or resume) and not (is_run(run_dir) or origin(run_dir / "checkpoints")):
        raise UserError(f"--output_dir {run_dir} holds no run, only other files: name another folder")
    if resume not in (None, "auto") and not Path(str(resume)).resolve().is_relative_to(run_dir.resolve()):
        raise UserError(f"--resume_from_checkpoint {resume} is not of the run in {run_dir}: name an empty folder")
    if not (s.overwrite_output_dir or resume):
        raise UserError(
            f"--output_dir {run_dir} is not empty: --resume_from_checkpoint auto goes on with it, "
            "--overwrite_output_dir replaces it, another --output_dir leaves it alone"
        )
