"""All settings of a run, checked: what its flags say, and every check that needs no data."""

import importlib.util
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sst2.config.class_names import require_names, require_weights
from sst2.config.flag_groups import (
    DATA_FILES,
    LABEL_NAMES,
    NAMES,
    SAMPLE,
    TRACKERS,
    DataArguments,
    DryRunArguments,
    EvaluationArguments,
    ModelArguments,
    RunArguments,
    TrainingArguments,
)
from sst2.utils.text_files import problem_of

MOST_PROFILED = 20  # steps: some megabytes of JSON each, which are read in again, and opened by a browser


@dataclass
class Settings(DryRunArguments, RunArguments, EvaluationArguments, TrainingArguments, DataArguments, ModelArguments):
    """All flags in one place, checked.

    Attributes:
        label_names: of the classes 0, 1 and so on; empty until the data is read, if no flag names them.
        given: what the command line and the YAML file say, by name, and nothing else.

    Raises:
        ValueError: a value that cannot work, named by its flag, with the way out.
    """

    given: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def values(self) -> dict[str, Any]:
        """The value of every flag by name."""
        return {name: getattr(self, name) for name in NAMES}

    def __post_init__(self) -> None:
        for name, value in self.values().items():
            if value == "":
                raise ValueError(f"--{name} is empty: give a value, or leave the flag out")
            if isinstance(value, str) and "\0" in value:
                raise ValueError(f"--{name} has a null character in it, which no name has: leave that out")
        places = ("output_dir", "resume_from_checkpoint", "stop_below_median", "model_name_or_path", "dataset_name")
        for name in (*places, *DATA_FILES):
            if getattr(self, name) is not None:
                setattr(self, name, os.path.expanduser(getattr(self, name)))
        if self.dataset_name is None and not any(getattr(self, name) for name in DATA_FILES):
            self.dataset_name = "nyu-mll/glue"
        if self.dataset_name == "nyu-mll/glue" and self.dataset_config_name is None:
            self.dataset_config_name = "sst2"
        is_sst2 = (self.dataset_name, self.dataset_config_name) == ("nyu-mll/glue", "sst2")
        if not self.label_names and (self.smoke or is_sst2):
            self.label_names = list(LABEL_NAMES)
        if self.output_dir is None:
            self.output_dir = default_output_dir(self.model_name_or_path, self.smoke, self.seed)
        self.report_to = _trackers(self.report_to)
        _check_ranges(self)
        _check_combinations(self)
        _check_columns(self)
        require_weights(self.class_weights, self.label_names)
        _check_files(self)

    @property
    def run_dir(self) -> Path:
        """Folder of the run."""
        return Path(str(self.output_dir))

    @property
    def profiled_steps(self) -> range:
        """The optimizer steps of `--profile_steps`, counted from 1."""
        first, _, last = (self.profile_steps or "1:0").partition(":")
        return range(int(first), int(last) + 1)


def default_output_dir(model_name_or_path: str, smoke: bool, seed: int) -> str:
    """Folder of a run that no flag names one for."""
    model = Path(os.path.expanduser(model_name_or_path)).name or "model"
    return f"runs/{'smoke' if smoke else model}-seed{seed}"


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
    _require(0 <= s.label_smoothing < 1, "label_smoothing", s.label_smoothing, "give a share from 0 to below 1")
    _require(s.dropout is None or 0 <= s.dropout < 1, "dropout", s.dropout, "give a probability from 0 to below 1")
    _require(0 <= s.holdout_fraction < 1, "holdout_fraction", s.holdout_fraction, "give a share from 0 to below 1")
    _require(s.max_length >= 3, "max_length", s.max_length, "give at least 3: [CLS], one token, [SEP]")
    _require(0 <= s.seed < 2**31, "seed", s.seed, "give a number from 0 to 2147483647")
    _require(0 < s.step_timeout < 1e6, "step_timeout", s.step_timeout, "give seconds above 0, such as 300")
    _require(0 < s.connect_timeout < 1e6, "connect_timeout", s.connect_timeout, "give seconds above 0, such as 300")
    if s.profile_steps is not None:
        is_range = re.fullmatch("[0-9]{1,9}:[0-9]{1,9}", s.profile_steps) and s.profiled_steps
        way_out = f"give the first and the last step, such as 100:105, {MOST_PROFILED} steps at most"
        has_few = is_range and s.profiled_steps.start >= 1 and len(s.profiled_steps) <= MOST_PROFILED
        _require(bool(has_few), "profile_steps", s.profile_steps, way_out)
    price = 0 if s.price_per_hour is None else s.price_per_hour
    _require(0 <= price < 1e6, "price_per_hour", s.price_per_hour, "give the price of an hour, such as 2.5")
    _require(s.checkpoints_total_limit >= 2, "checkpoints_total_limit", s.checkpoints_total_limit, "keep at least 2")


def _check_columns(s: Settings) -> None:
    if s.sentence_column == s.label_column:
        raise ValueError(f"--sentence_column and --label_column are both {s.label_column}: name two columns")
    if not s.label_names:
        return
    s.label_names = [name.strip() for name in s.label_names]
    require_names(s.label_names)
    if s.smoke and tuple(s.label_names) != LABEL_NAMES:
        raise ValueError("--smoke trains on the embedded sample: drop --label_names, or drop --smoke")


def _require(condition: bool, name: str, value: object, way_out: str) -> None:
    if not condition:
        raise ValueError(f"--{name} {value} cannot work: {way_out}")


def _check_combinations(s: Settings) -> None:
    files = [name for name in DATA_FILES if getattr(s, name)]
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
    if s.kernels == "triton" and s.batching == "padded":
        raise ValueError("--kernels triton is for packed batches: drop it, or drop --batching padded")
    for name in ("json", "price_per_hour"):
        if getattr(s, name) and not s.dry_run:
            raise ValueError(f"--{name} needs --dry_run beside it")
    if s.hub_model_id and not s.push_to_hub:
        raise ValueError("--hub_model_id needs --push_to_hub beside it")


def _trackers(names: list[str]) -> list[str]:
    """What `--report_to` stands for: the words `all` and `none` as in transformers."""
    if names == ["all"]:
        return [tracker for tracker in sorted(TRACKERS) if importlib.util.find_spec(tracker)]
    if names == ["none"]:
        return []
    for tracker in names:
        if tracker in ("all", "none"):
            raise ValueError(f"--report_to {' '.join(names)} contradicts itself: give {tracker} alone, or names alone")
        if tracker not in TRACKERS:
            known = ", ".join(sorted(TRACKERS))
            raise ValueError(f"--report_to {tracker} is unknown: give some of {known}, or all, or none")
        if importlib.util.find_spec(tracker) is None:
            raise ValueError(f"--report_to {tracker} needs its package: pip install {tracker.replace('_', '-')}")
    return list(dict.fromkeys(names))


def _check_files(s: Settings) -> None:
    for name in DATA_FILES:
        file = getattr(s, name)
        if file is None:
            continue
        if problem := problem_of(file):
            raise ValueError(f"--{name} {file} {problem}")
    for name in ("model_name_or_path", "dataset_name"):
        value = getattr(s, name) or ""
        if name == "model_name_or_path" and s.resume_from_checkpoint:
            continue  # which may have all that is needed of it
        if is_path(value) and not Path(value).is_dir():
            raise ValueError(f"--{name} {value} does not exist as a folder")
    if s.stop_below_median is not None and not Path(s.stop_below_median).is_dir():
        raise ValueError(f"--stop_below_median {s.stop_below_median} does not exist as a folder: name that of the runs")


def is_path(name: str) -> bool:
    """Whether a name can only be a path, not one on the hub."""
    return name.startswith(("/", "./", "../", "~")) or name.count("/") > 1
