"""The command line: one dataclass per group of flags, YAML files of the same names, and every check that needs no data.

Nothing heavy is imported here, so that `--help` and a wrong flag answer at once. Each field's help names its unit.
"""

import difflib
import importlib.util
import os
import sys
from argparse import ArgumentDefaultsHelpFormatter, Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from transformers.hf_argparser import HfArgumentParser

TRACKERS = {"aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"}
FILE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
SAMPLE = "sample"
PROGRAM = "train_sst2.py"
Precision = Literal["no", "fp16", "bf16", "auto"]

# What `--smoke` stands for: the embedded sample and a recipe that suits a tiny model trained from scratch.
SMOKE_RECIPE: dict[str, Any] = {
    "model_name_or_path": SAMPLE,
    "dataset_name": SAMPLE,
    "learning_rate": 1e-3,
    "num_train_epochs": 5.0,
    "warmup_ratio": 0.1,
    "logging_steps": 25,
}


def flag(default: Any, help: str, metavar: str | None = None) -> Any:
    """A dataclass field whose metadata `HfArgumentParser` hands to `add_argument`."""
    metadata = {"help": help} | ({"metavar": metavar} if metavar else {})
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ModelArguments:
    _argument_group_name = "model"
    model_name_or_path: str = flag(
        "distilbert/distilbert-base-uncased", "hub name or folder of a DistilBERT checkpoint (safetensors)", "NAME|DIR"
    )
    model_revision: str = flag("main", "branch, tag or commit of the model on the hub", "REV")
    dropout: float | None = flag(
        None, "probability that replaces the checkpoint's dropout everywhere: hidden states, attention, head", "P"
    )


@dataclass
class DataArguments:
    _argument_group_name = "data"
    dataset_name: str | None = flag(
        None,
        "hub name, or a folder written by datasets' save_to_disk; default: nyu-mll/glue, if no file is given",
        "NAME|DIR",
    )
    dataset_config_name: str | None = flag(None, "configuration of the hub data set (sst2 for nyu-mll/glue)", "NAME")
    dataset_revision: str = flag("main", "branch, tag or commit of the data set on the hub", "REV")
    train_file: str | None = flag(
        None, "training sentences in place of the hub's: csv, tsv, json lines or parquet with sentence, label", "FILE"
    )
    validation_file: str | None = flag(None, "validation sentences, same formats", "FILE")
    test_file: str | None = flag(None, "test sentences, same formats; without labels they are only predicted", "FILE")
    max_length: int = flag(128, "tokens per sentence at most, with [CLS] and [SEP]; longer ones are cut", "TOKENS")
    max_train_samples: int | None = flag(None, "train on the first N sentences", "N")
    max_eval_samples: int | None = flag(None, "evaluate on the first N sentences of each split", "N")
    holdout_fraction: float = flag(
        0.0, "share of the training sentences, drawn by the seed, that is held out to select the model on", "SHARE"
    )


@dataclass
class TrainingArguments:
    _argument_group_name = "training"
    per_device_train_batch_size: int = flag(32, "sentences in one forward pass of one device", "N")
    global_batch_size: int | None = flag(
        None, "sentences in one optimizer step over all devices; the accumulation follows from it", "N"
    )
    gradient_accumulation_steps: int | None = flag(
        None, "forward passes of each device in one optimizer step; 1 unless --global_batch_size says otherwise", "N"
    )
    learning_rate: float = flag(2e-5, "peak learning rate of AdamW", "LR")
    weight_decay: float = flag(0.01, "AdamW's decoupled weight decay, not applied to biases and LayerNorm", "X")
    num_train_epochs: float = flag(3.0, "passes over the training sentences", "EPOCHS")
    max_train_steps: int | None = flag(None, "optimizer steps; wins over --num_train_epochs", "STEPS")
    lr_scheduler_type: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
    ] = flag("linear", "shape of the learning rate over optimizer steps, one of %(choices)s", "NAME")
    warmup_ratio: float = flag(0.06, "share of the optimizer steps over which the learning rate rises", "SHARE")
    num_warmup_steps: int | None = flag(None, "optimizer steps of warm-up; wins over --warmup_ratio", "STEPS")
    max_grad_norm: float = flag(1.0, "global L2 norm that gradients are clipped to; 0 does not clip", "NORM")
    mixed_precision: Precision | None = flag(
        None, "no, fp16, bf16, or auto for what the device does well; default: as the launcher says", "MODE"
    )
    seed: int = flag(42, "of the order of sentences, the new head and dropout", "N")


@dataclass
class EvaluationArguments:
    _argument_group_name = "evaluation and selection"
    per_device_eval_batch_size: int = flag(64, "sentences in one forward pass of one device", "N")
    eval_steps: int | None = flag(None, "optimizer steps between evaluations; default: once an epoch", "STEPS")
    load_best_model_at_end: bool = flag(False, "export the most accurate evaluated model instead of the last")
    early_stopping_patience: int | None = flag(
        None, "stop after this many evaluations in a row without a better accuracy", "N"
    )


@dataclass
class RunArguments:
    _argument_group_name = "run"
    output_dir: str | None = flag(None, "folder of the run; default: runs/MODEL-seedSEED", "DIR")
    overwrite_output_dir: bool = flag(False, "replace the run that is in the folder")
    resume_from_checkpoint: str | None = flag(
        None, "go on from a checkpoint: its folder, or auto for the run's newest (a fresh start if none)", "auto|DIR"
    )
    logging_steps: int = flag(50, "optimizer steps between two logged points", "STEPS")
    log_sample_ids: bool = flag(False, "write the row numbers of every step's sentences to samples.jsonl")
    checkpointing_steps: int | None = flag(None, "optimizer steps between checkpoints; default: at the end", "STEPS")
    checkpoints_total_limit: int = flag(2, "checkpoints kept, 2 at least; the best is kept besides", "N")
    report_to: list[str] = flag(["tensorboard"], "trackers of accelerate besides TensorBoard", "TRACKER")
    push_to_hub: bool = flag(False, "upload the exported model when all is done")
    hub_model_id: str | None = flag(None, "repository to upload to; default: the run's name in your account", "NAME")
    smoke: bool = flag(False, "embedded sample and tiny model: no network, under a minute on a CPU")


GROUPS = (ModelArguments, DataArguments, TrainingArguments, EvaluationArguments, RunArguments)


@dataclass
class Settings(RunArguments, EvaluationArguments, TrainingArguments, DataArguments, ModelArguments):
    """All flags in one place, checked.

    Raises:
        ValueError: a value that cannot work, named by its flag, with the way out.
    """

    def __post_init__(self) -> None:
        if self.dataset_name is None and not (self.train_file or self.validation_file or self.test_file):
            self.dataset_name = "nyu-mll/glue"
        if self.dataset_name == "nyu-mll/glue" and self.dataset_config_name is None:
            self.dataset_config_name = "sst2"
        if self.output_dir is None:
            model = Path(self.model_name_or_path).name or "model"
            self.output_dir = f"runs/{'smoke' if self.smoke else model}-seed{self.seed}"
        _check_ranges(self)
        _check_combinations(self)
        _check_files(self)

    @property
    def run_dir(self) -> Path:
        return Path(str(self.output_dir))


def is_reporting_process() -> bool:
    """Whether this process speaks for its node (the launchers number a node's processes in LOCAL_RANK)."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def parse_arguments(argv: Sequence[str] | None = None) -> Settings:
    """Settings from the command line, a YAML file and the defaults, the first winning.

    Args:
        argv: the words after the program's name; `sys.argv` if None.

    Raises:
        SystemExit: code 0 after `--help`, code 2 after one line on stderr for any mistake.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = _Parser(GROUPS, prog=PROGRAM, description="Fine-tune DistilBERT on SST-2.", allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE.yaml", help="flags as YAML; the command line wins over it")
    command_line = parser.parse_args(argv)
    from_file = _values_of_yaml(parser, command_line.config) if command_line.config else {}
    if command_line.smoke or from_file.get("smoke"):
        parser.set_defaults(**SMOKE_RECIPE)
    parser.set_defaults(**from_file)
    values = vars(parser.parse_args(argv))
    del values["config"]
    try:
        settings = Settings(**values)
        # One process looks at the run's folder: the others may start after it has begun to fill it.
        if os.environ.get("RANK", "0") == "0":
            _check_run_dir(settings)
        return settings
    except ValueError as error:
        parser.error(str(error))


def to_yaml(settings: Settings) -> str:
    """The settings as a YAML file that `--config` reads back."""
    return yaml.safe_dump(asdict(settings), sort_keys=False, allow_unicode=True)


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
        words = [str(word) for word in (value if isinstance(value, list) else [value])]
        try:
            values[name] = getattr(_Quiet(GROUPS).parse_args([f"--{name}", *words]), name)
        except ValueError as error:
            parser.error(f"--config {file}: {error}")
    return values


class _Quiet(_Parser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _check_ranges(s: Settings) -> None:
    at_least_one = (
        "max_train_samples max_eval_samples per_device_train_batch_size per_device_eval_batch_size global_batch_size "
        "gradient_accumulation_steps max_train_steps eval_steps early_stopping_patience logging_steps "
        "checkpointing_steps"
    )
    for name in at_least_one.split():
        _require(getattr(s, name) is None or getattr(s, name) >= 1, name, getattr(s, name), "give at least 1")
    _require(0 < s.learning_rate < 1, "learning_rate", s.learning_rate, "give a value between 0 and 1, such as 2e-5")
    _require(0 <= s.weight_decay < 1, "weight_decay", s.weight_decay, "give a value from 0 to 1, such as 0.01")
    _require(0 < s.num_train_epochs < 10_000, "num_train_epochs", s.num_train_epochs, "give a number above 0")
    _require(0 <= s.warmup_ratio <= 1, "warmup_ratio", s.warmup_ratio, "give a share from 0 to 1")
    _require((s.num_warmup_steps or 0) >= 0, "num_warmup_steps", s.num_warmup_steps, "give 0 or more")
    _require(0 <= s.max_grad_norm < float("inf"), "max_grad_norm", s.max_grad_norm, "give 0 (no clipping) or more")
    _require(s.dropout is None or 0 <= s.dropout < 1, "dropout", s.dropout, "give a probability from 0 to below 1")
    _require(0 <= s.holdout_fraction < 1, "holdout_fraction", s.holdout_fraction, "give a share from 0 to below 1")
    _require(s.max_length >= 3, "max_length", s.max_length, "give at least 3: [CLS], one token, [SEP]")
    _require(0 <= s.seed < 2**32, "seed", s.seed, "give a number from 0 to 4294967295")
    _require(s.checkpoints_total_limit >= 2, "checkpoints_total_limit", s.checkpoints_total_limit, "keep at least 2")


def _require(condition: bool, name: str, value: object, way_out: str) -> None:
    if not condition:
        raise ValueError(f"--{name} {value} cannot work: {way_out}")


def _check_combinations(s: Settings) -> None:
    files = [name for name in ("train_file", "validation_file", "test_file") if getattr(s, name)]
    if s.smoke and (files or s.dataset_name != SAMPLE):
        given = f"--{files[0]}" if files else "--dataset_name"
        raise ValueError(f"--smoke trains on the embedded sample: drop {given}, or drop --smoke")
    if files and s.dataset_name is not None:
        raise ValueError(f"--dataset_name and --{files[0]} both name the data: give one")
    if not s.smoke and SAMPLE in (s.model_name_or_path, s.dataset_name):
        raise ValueError("the embedded sample is asked for with --smoke, not by name")
    if files and s.train_file is None:
        raise ValueError(f"--{files[0]} needs --train_file beside it")
    if s.train_file and not s.validation_file and not s.holdout_fraction:
        raise ValueError("--train_file needs --validation_file beside it, or --holdout_fraction 0.1 to cut one from it")
    if s.overwrite_output_dir and s.resume_from_checkpoint:
        raise ValueError("--overwrite_output_dir and --resume_from_checkpoint contradict each other: give one")
    if s.hub_model_id and not s.push_to_hub:
        raise ValueError("--hub_model_id needs --push_to_hub beside it")
    for tracker in s.report_to:
        if tracker not in TRACKERS:
            raise ValueError(f"--report_to {tracker} is unknown: give some of {', '.join(sorted(TRACKERS))}")
        if importlib.util.find_spec(tracker) is None:
            raise ValueError(f"--report_to {tracker} needs its package: pip install {tracker.replace('_', '-')}")


def _check_files(s: Settings) -> None:
    for name in ("train_file", "validation_file", "test_file"):
        file = getattr(s, name)
        if file is None:
            continue
        if not Path(file).is_file():
            raise ValueError(f"--{name} {file} {'is a folder' if Path(file).is_dir() else 'does not exist'}")
        if Path(file).suffix not in FILE_SUFFIXES:
            raise ValueError(f"--{name} {file} must end in one of {' '.join(FILE_SUFFIXES)}")
    for name in ("model_name_or_path", "dataset_name"):
        value = getattr(s, name) or ""
        looks_like_a_path = value.startswith(("/", "./", "../", "~")) or value.count("/") > 1
        if looks_like_a_path and not Path(value).is_dir():
            raise ValueError(f"--{name} {value} does not exist as a folder")


def _check_run_dir(s: Settings) -> None:
    run_dir, resume = s.run_dir, s.resume_from_checkpoint
    if run_dir.exists() and not run_dir.is_dir():
        raise ValueError(f"--output_dir {run_dir} is a file: name a folder")
    if resume not in (None, "auto") and not Path(str(resume)).is_dir():
        raise ValueError(f"--resume_from_checkpoint {resume} is not a folder: give a checkpoint's folder, or auto")
    if not run_dir.is_dir() or not any(run_dir.iterdir()):
        return
    if s.overwrite_output_dir and not (run_dir / "config.yaml").is_file():
        raise ValueError(f"--overwrite_output_dir: {run_dir} holds no run, only other files: name another folder")
    if resume not in (None, "auto") and not Path(str(resume)).resolve().is_relative_to(run_dir.resolve()):
        raise ValueError(f"--resume_from_checkpoint {resume} is not of the run in {run_dir}: name an empty folder")
    if not (s.overwrite_output_dir or resume):
        raise ValueError(
            f"--output_dir {run_dir} is not empty: --resume_from_checkpoint auto goes on with it, "
            "--overwrite_output_dir replaces it, another --output_dir leaves it alone"
        )
