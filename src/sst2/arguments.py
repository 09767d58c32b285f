"""The command line, and YAML files with the same names: parsed, merged, checked against the run's folder.

Nothing heavy is imported here, so that `--help` and a wrong flag answer at once.
"""

import difflib
import json
import os
import sys
from argparse import ArgumentDefaultsHelpFormatter, Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers.hf_argparser import HfArgumentParser

from sst2.errors import UserError
from sst2.settings import GROUPS, SAMPLE, Settings

PROGRAM = "train_sst2.py"
MARK = f"# A run of {PROGRAM}: its settings, readable by --config"  # first line of config.yaml; tells a run's folder
OF_ONE_START = ("overwrite_output_dir", "resume_from_checkpoint", "push_to_hub", "hub_model_id")
# A flag on the command line puts aside what a file says of the other.
PUTS_ASIDE = {
    "num_train_epochs": "max_train_steps",
    "warmup_ratio": "num_warmup_steps",
    "per_device_train_batch_size": "gradient_accumulation_steps",
    "global_batch_size": "gradient_accumulation_steps",
    "gradient_accumulation_steps": "global_batch_size",
}

# What `--smoke` stands for: the embedded sample and a recipe that suits a tiny model trained from scratch.
SMOKE_RECIPE: dict[str, Any] = {
    "model_name_or_path": SAMPLE,
    "dataset_name": SAMPLE,
    "learning_rate": 1e-3,
    "num_train_epochs": 5.0,
    "warmup_ratio": 0.1,
    "logging_steps": 25,
}


def is_reporting_process() -> bool:
    """Whether this process speaks for its node (the launchers number a node's processes in LOCAL_RANK)."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def process_rank() -> int:
    """Number of this process among all of the job."""
    return int(os.environ.get("RANK", "0"))


def parse_arguments(argv: Sequence[str] | None = None) -> Settings:
    """Settings from the command line, a YAML file and the defaults, the first winning, for a run in its folder.

    Args:
        argv: the words after the program's name; `sys.argv` if None.

    Raises:
        SystemExit: code 0 after `--help`, code 2 after one line on stderr for any mistake.
    """
    # One process looks at the run's folder: the others may start after it has begun to fill it.
    check = check_run_dir if process_rank() == 0 else None
    return read_settings(argv, PROGRAM, "Fine-tune DistilBERT on SST-2.", go_on_with_own_run, check)


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
        program, description: for `--help` and messages.
        adapt: changes the values before they become settings.
        check: called with the settings; what it raises is a mistake as well.

    Raises:
        SystemExit: code 0 after `--help`, code 2 after one line on stderr for any mistake.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = _Parser(GROUPS, prog=program, description=description, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE.yaml", help="flags as YAML; the command line wins over it")
    command_line = parser.parse_args(argv)
    from_file = {} if command_line.config is None else _values_of_yaml(parser, command_line.config)
    for name, other in PUTS_ASIDE.items():
        if getattr(command_line, name) != parser.get_default(name):
            from_file.pop(other, None)
    if command_line.smoke or from_file.get("smoke"):
        parser.set_defaults(**SMOKE_RECIPE)
    parser.set_defaults(**from_file)
    values = vars(parser.parse_args(argv))
    del values["config"]
    try:  # an OSError: a path that the file system does not take
        if adapt:
            adapt(values)
        settings = Settings(**values)
        if check:
            check(settings)
        return settings
    except (UserError, ValueError, OSError) as error:
        parser.error(str(error))


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


def to_yaml(settings: Settings) -> str:
    """The settings as a YAML file that `--config` reads back, without those that belong to one start of a run."""
    lasting = {name: value for name, value in asdict(settings).items() if name not in OF_ONE_START}
    return f"{MARK}\n{yaml.safe_dump(lasting, sort_keys=False, allow_unicode=True)}"


def is_run(folder: Path) -> bool:
    """Whether a run of this project is in the folder, and its files may be replaced or continued."""
    try:
        with open(folder / "config.yaml", encoding="utf-8") as file:
            return file.readline().rstrip() == MARK
    except (OSError, UnicodeDecodeError):
        return False


class _HelpFormatter(ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: Any) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class _Parser(HfArgumentParser):
    """`HfArgumentParser` that answers a mistake with one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, formatter_class=_HelpFormatter, **kwargs)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Namespace:  # type: ignore[override]
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"{unknown[0]} is not a flag{self.closest(unknown[0])}; --help lists them all")
        return parsed

    def closest(self, word: str) -> str:
        name = word.lstrip("-").split("=")[0].replace("-", "_")
        names = {action.dest for action in self._actions}
        match = difflib.get_close_matches(name, sorted(names), n=1)
        return f", did you mean --{match[0]}?" if match else ""

    def error(self, message: str) -> NoReturn:
        if is_reporting_process():
            print(f"{self.prog}: error: {message}", file=sys.stderr)
        sys.exit(2)


def _values_of_yaml(parser: _Parser, file: str) -> dict[str, Any]:
    """The file's values, checked by the same rules as the command line's."""
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        parser.error(f"--config {file}: {error.strerror}")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        parser.error(f"--config {file} is not YAML: {' '.join(str(error).split())}")
    if not isinstance(content, dict):
        parser.error(f"--config {file} must hold lines of the form 'learning_rate: 3e-5'")
    names = {f.name for f in fields(Settings)}
    values = {}
    for name, value in content.items():
        if name not in names:
            parser.error(f"--config {file}: {name} is not a setting{parser.closest(str(name))}")
        if value is None or value == []:
            continue
        try:
            values[name] = getattr(_Quiet(GROUPS).parse_args(_as_words(name, value)), name)
        except ValueError as error:
            parser.error(f"--config {file}: {error}")
    return values


def _as_words(name: str, value: Any) -> list[str]:
    """A YAML value as it would stand on the command line."""
    if name == "label_names" and isinstance(value, list) and any(isinstance(word, bool) for word in value):
        raise ValueError("label_names: put yes and no, on and off in quotes, which YAML takes for true and false")
    if name in ("report_to", "label_names"):
        return [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    if isinstance(value, list | dict):
        raise ValueError(f"{name} takes one value, not {value}")
    if name == "mixed_precision" and value is False:  # YAML's word for no
        value = "no"
    return [f"--{name}={value}"]


class _Quiet(_Parser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def check_run_dir(s: Settings) -> None:
    """Whether the run may work in its folder as it is now.

    Raises:
        UserError: something is in it that must not be touched.
    """
    run_dir, resume = s.run_dir, s.resume_from_checkpoint
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
    if (s.overwrite_output_dir or resume) and not is_run(run_dir):
        raise UserError(f"--output_dir {run_dir} holds no run, only other files: name another folder")
    if resume not in (None, "auto") and not Path(str(resume)).resolve().is_relative_to(run_dir.resolve()):
        raise UserError(f"--resume_from_checkpoint {resume} is not of the run in {run_dir}: name an empty folder")
    if not (s.overwrite_output_dir or resume):
        raise UserError(
            f"--output_dir {run_dir} is not empty: --resume_from_checkpoint auto goes on with it, "
            "--overwrite_output_dir replaces it, another --output_dir leaves it alone"
        )
