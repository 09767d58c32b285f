"""All settings of a run: one dataclass per group of flags, and every check that needs no data.

Nothing heavy is imported here, so that `--help` and a wrong flag answer at once. Each field's help names its unit.
"""

import importlib.util
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from sst2.config.class_names import require_names, require_weights
from sst2.utils.text_files import problem_of

TRACKERS = {"aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"}
DEFAULT_MODEL = "distilbert/distilbert-base-uncased"
SAMPLE = "sample"
LABEL_NAMES = ("NEGATIVE", "POSITIVE")
DATA_FILES = ("train_file", "validation_file", "test_file")
Precision = Literal["no", "fp16", "bf16", "auto"]
Batching = Literal["packed", "padded"]
Graphs = Literal["auto", "yes", "no"]
SelectionMetric = Literal["accuracy", "f1_macro", "loss"]


def flag(default: Any, help: str, metavar: str | None = None) -> Any:
    """A dataclass field whose metadata `HfArgumentParser` hands to `add_argument`."""
    metadata = {"help": help} | ({"metavar": metavar} if metavar else {})
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ModelArguments:
    """Flags of the model that training starts from."""

    _argument_group_name = "model"
    model_name_or_path: str = flag(
        DEFAULT_MODEL,
        "hub name or folder of a checkpoint (safetensors) of an encoder: DistilBERT, BERT, RoBERTa, ModernBERT, ...",
        "NAME|DIR",
    )
    model_revision: str = flag("main", "branch, tag or commit of the model on the hub", "REV")
    dropout: float | None = flag(
        None, "probability that replaces the checkpoint's dropout everywhere: hidden states, attention, head", "P"
    )


@dataclass
class DataArguments:
    """Flags of the data: where it lies, what its columns are called, how much of it is used."""

    _argument_group_name = "data"
    dataset_name: str | None = flag(
        None,
        "hub name, or a folder written by datasets' save_to_disk; default: nyu-mll/glue, if no file is given",
        "NAME|DIR",
    )
    dataset_config_name: str | None = flag(None, "configuration of the hub data set (sst2 for nyu-mll/glue)", "NAME")
    dataset_revision: str = flag("main", "branch, tag or commit of the data set on the hub", "REV")
    train_file: str | None = flag(
        None,
        "training sentences in place of the hub's: csv, tsv, json lines or parquet with sentence, label; or compressed",
        "FILE",
    )
    validation_file: str | None = flag(None, "validation sentences, same formats", "FILE")
    test_file: str | None = flag(None, "test sentences, same formats; without labels they are only predicted", "FILE")
    sentence_column: str = flag("sentence", "column of the texts, in files and data sets", "NAME")
    label_column: str = flag("label", "column of the labels", "NAME")
    label_names: list[str] = flag(
        [],
        "the classes as the label column names them, the one that stands for 0 first; default: found in the data",
        "NAME",
    )
    max_length: int = flag(128, "tokens per sentence at most, with [CLS] and [SEP]; longer ones are cut", "TOKENS")
    max_train_samples: int | None = flag(None, "train on the first N sentences", "N")
    max_eval_samples: int | None = flag(None, "evaluate on the first N sentences of each split", "N")
    holdout_fraction: float = flag(
        0.0, "share of the training sentences, drawn by the seed, that is held out to evaluate on", "SHARE"
    )


@dataclass
class TrainingArguments:
    """Flags of the optimization: batches, learning rate, precision, seed."""

    _argument_group_name = "training"
    per_device_train_batch_size: int = flag(
        32, "sentences in one forward pass of one device; a CPU takes padded ones 8 at a time, which is faster", "N"
    )
    batching: Batching = flag(
        "packed",
        "how sentences share a forward pass: packed end to end, or padded to the longest; one of %(choices)s",
        "NAME",
    )
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
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt"] = flag(
        "linear", "shape of the learning rate over optimizer steps, one of %(choices)s", "NAME"
    )
    warmup_ratio: float = flag(0.06, "share of the optimizer steps over which the learning rate rises", "SHARE")
    num_warmup_steps: int | None = flag(None, "optimizer steps of warm-up; wins over --warmup_ratio", "STEPS")
    gradient_compression: Literal["none", "bf16"] = flag(
        "none", "what gradients are rounded to on their way between processes, one of %(choices)s", "NAME"
    )
    class_weights: list[str] = flag(
        ["none"],
        "weights of the classes in the loss: none, balanced for sentences / (classes * sentences of the class), or a "
        "number for each class in their order",
        "none|balanced|W",
    )
    label_smoothing: float = flag(0.0, "share of a label that is spread evenly over all classes in the loss", "SHARE")
    max_grad_norm: float = flag(1.0, "global L2 norm that gradients are clipped to; 0 does not clip", "NORM")
    mixed_precision: Precision | None = flag(
        None, "no, fp16, bf16, or auto for what the device does well; default: as the launcher says", "MODE"
    )
    cuda_graphs: Graphs = flag(
        "auto",
        "auto launches steps whole on one GPU in bf16, packed, in one forward pass; yes does so on several GPUs and "
        "with accumulation, which no GPU has tried yet (a CPU runs such steps as functions); one of %(choices)s",
        "NAME",
    )
    attn_implementation: Literal["auto", "triton"] = flag(
        "auto",
        "attention in packed batches: auto takes FlashAttention on a GPU in 16 bits, else padded grids; triton takes "
        "kernels for short sentences, which no GPU has tried in this form; one of %(choices)s",
        "NAME",
    )
    gradient_checkpointing: bool = flag(
        False, "compute activations again in the backward pass: less memory, one more forward pass, no CUDA graphs"
    )
    seed: int = flag(42, "of the order of sentences, the new head and dropout", "N")


@dataclass
class EvaluationArguments:
    """Flags of evaluation, and of the choice among evaluated models."""

    _argument_group_name = "evaluation and selection"
    per_device_eval_batch_size: int = flag(
        512, "sentences in one forward pass of one device; a CPU takes 64 at most", "N"
    )
    eval_steps: int | None = flag(None, "optimizer steps between evaluations; default: once an epoch", "STEPS")
    load_best_model_at_end: bool = flag(False, "export the best evaluated model instead of the last")
    early_stopping_patience: int | None = flag(
        None, "stop after this many evaluations in a row without a better --metric_for_best_model", "N"
    )
    metric_for_best_model: SelectionMetric = flag(
        "accuracy", "what makes an evaluated model the best, one of %(choices)s; the lower loss decides ties", "NAME"
    )


@dataclass
class RunArguments:
    """Flags of the run: its folder, what is logged and saved, and where it runs."""

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
    step_timeout: float = flag(
        300.0,
        "seconds after which a step that is not done prints every rank's stack; after twice as long the job gives up",
        "SECONDS",
    )
    connect_timeout: float = flag(
        300.0, "seconds to wait at the start for all processes; those that have not come are named", "SECONDS"
    )
    stage_dir: str | None = flag(
        None, "folder of each node's own disk to copy model and data to, once a node; $TMPDIR is looked up there", "DIR"
    )
    report_to: list[str] = flag(
        ["tensorboard"],
        "trackers beside TensorBoard, which is always there: names, all that are installed, or none",
        "NAME",
    )
    push_to_hub: bool = flag(False, "upload the exported model when all is done")
    hub_model_id: str | None = flag(None, "repository to upload to; default: the run's name in your account", "NAME")
    smoke: bool = flag(False, "embedded sample and tiny model: no network, under a minute on a CPU")


GROUPS = (ModelArguments, DataArguments, TrainingArguments, EvaluationArguments, RunArguments)
NAMES = [field.name for group in GROUPS for field in fields(group)]


@dataclass
class Settings(RunArguments, EvaluationArguments, TrainingArguments, DataArguments, ModelArguments):
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
        for name in ("output_dir", "resume_from_checkpoint", *DATA_FILES, "model_name_or_path", "dataset_name"):
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
            model = Path(self.model_name_or_path).name or "model"
            self.output_dir = f"runs/{'smoke' if self.smoke else model}-seed{self.seed}"
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
    if s.attn_implementation == "triton" and s.batching == "padded":
        raise ValueError("--attn_implementation triton is for packed batches: drop it, or drop --batching padded")
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


def is_path(name: str) -> bool:
    """Whether a name can only be a path, not one on the hub."""
    return name.startswith(("/", "./", "../", "~")) or name.count("/") > 1
