"""All flags: one dataclass for each group, whose fields say default, help and unit.

Nothing heavy is imported here, so that `--help` and a wrong flag answer at once.
"""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

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
    _example = "--model_name_or_path answerdotai/ModernBERT-base --dropout 0.1"
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
    _example = "--train_file train.csv --validation_file dev.csv"
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
    _example = "--learning_rate 3e-5 --global_batch_size 64 --seed 1"
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
    kernels: Literal["auto", "triton"] = flag(
        "auto",
        "auto takes torch's; triton those of this project, which no GPU has run in this form: attention within short "
        "sentences and, with --cuda_graphs yes, AdamW and what lies between matrix products; one of %(choices)s",
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
    _example = "--eval_steps 500 --early_stopping_patience 3"
    per_device_eval_batch_size: int = flag(
        512, "sentences in one forward pass of one device; a CPU takes 64 at most", "N"
    )
    eval_steps: int | None = flag(None, "optimizer steps between evaluations; default: once an epoch", "STEPS")
    load_best_model_at_end: bool = flag(False, "export the best evaluated model instead of the last")
    early_stopping_patience: int | None = flag(
        None, "stop after this many evaluations in a row without a better --metric_for_best_model", "N"
    )
    stop_below_median: str | None = flag(
        None,
        "folder of other runs: stop after an evaluation where the best one so far is worse than the median of theirs "
        "at the same step, of 5 at least, by --metric_for_best_model",
        "DIR",
    )
    metric_for_best_model: SelectionMetric = flag(
        "accuracy", "what makes an evaluated model the best, one of %(choices)s; the lower loss decides ties", "NAME"
    )


@dataclass
class RunArguments:
    """Flags of the run: its folder, what is logged and saved, and where it runs."""

    _argument_group_name = "run"
    _example = "--output_dir runs/first --checkpointing_steps 500"
    output_dir: str | None = flag(None, "folder of the run; default: runs/MODEL-seedSEED", "DIR")
    overwrite_output_dir: bool = flag(False, "replace the run that is in the folder")
    resume_from_checkpoint: str | None = flag(
        None, "go on from a checkpoint: its folder, or auto for the run's newest (a fresh start if none)", "auto|DIR"
    )
    logging_steps: int = flag(50, "optimizer steps between two logged points", "STEPS")
    profile_steps: str | None = flag(
        None,
        "record optimizer steps A to B, counted from 1, on every process: a trace for ui.perfetto.dev and a table of "
        "where the time goes, in the run's folder under profile/",
        "A:B",
    )
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


@dataclass
class DryRunArguments:
    """Flags of the dry run, which measures a run and leaves nothing behind."""

    _argument_group_name = "dry run"
    _example = "--dry_run --price_per_hour 2.5"
    dry_run: bool = flag(
        False,
        "measure a few steps, an evaluation, a checkpoint and the end of this run, print the time, memory, disk and "
        "cost of all of it with the commands to start it, and leave nothing behind",
    )
    json: bool = flag(False, "with --dry_run: print it as JSON, and nothing else, to standard output")
    price_per_hour: float | None = flag(
        None, "with --dry_run: money for an hour of one GPU, or of one node in a job without GPUs", "MONEY"
    )


GROUPS = (ModelArguments, DataArguments, TrainingArguments, EvaluationArguments, RunArguments, DryRunArguments)
NAMES = [field.name for group in GROUPS for field in fields(group)]
EXAMPLES = {group._argument_group_name: group._example for group in GROUPS}  # flags of each group, by its name
