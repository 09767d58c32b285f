"""The flags of a run on the command line; a flag of the Trainer's examples is told its name here.

Nothing heavy is imported here, so that `--help` and a wrong flag answer at once.
"""

from argparse import Action, Namespace
from collections.abc import Sequence
from typing import Any

from transformers.hf_argparser import HfArgumentParser

from sst2.config.command_line import OneLineParser
from sst2.config.flag_groups import EXAMPLES, GROUPS, NAMES
from sst2.utils.errors import UserError

_NOT_GIVEN = object()

# What transformers' examples, and its Trainer, call something that has another name here.
_OTHER_NAMES = {
    "auto_find_batch_size": "--per_device_train_batch_size",
    "batch_size": "--per_device_train_batch_size, of one device, or --global_batch_size, of all",
    "cache_dir": "the variable HF_HOME",
    "dataset_dir": "--dataset_name, which takes a folder of save_to_disk, or --train_file",
    "dataset_path": "--dataset_name, which takes a folder of save_to_disk, or --train_file",
    "ddp_timeout": "--step_timeout, and --connect_timeout at the start",
    "deepspeed": "accelerate launch --config_file accelerate_configs/deepspeed_zero2.yaml",
    "do_eval": "nothing: a run always evaluates",
    "do_predict": "--test_file: its sentences are predicted at the end",
    "do_train": "nothing: a run always trains",
    "epochs": "--num_train_epochs",
    "eval_file": "--validation_file",
    "eval_strategy": "--eval_steps, or nothing for once an epoch",
    "evaluation_strategy": "--eval_steps, or nothing for once an epoch",
    "fsdp": "accelerate launch --config_file accelerate_configs/fsdp2.yaml",
    "fp16": "--mixed_precision fp16",
    "bf16": "--mixed_precision bf16",
    "gradient_clipping": "--max_grad_norm",
    "group_by_length": "nothing: sentences are packed without padding",
    "hub_token": "the variable HF_TOKEN, or hf auth login",
    "label_column_name": "--label_column",
    "class_weight": "--class_weights",
    "label_list": "--label_names",
    "label_smoothing_factor": "--label_smoothing",
    "logging_dir": "nothing: TensorBoard's files lie in the run's folder",
    "lr": "--learning_rate",
    "max_eval_samples_per_split": "--max_eval_samples",
    "max_seq_length": "--max_length",
    "max_steps": "--max_train_steps",
    "model": "--model_name_or_path",
    "model_name": "--model_name_or_path",
    "no_cuda": "accelerate launch --cpu",
    "use_cpu": "accelerate launch --cpu",
    "num_epochs": "--num_train_epochs",
    "num_labels": "--label_names, which names the classes, or nothing: they are found in the data",
    "num_processes": "accelerate launch --num_processes, before the script",
    "output_folder": "--output_dir",
    "pad_to_max_length": "--batching padded, which pads to the longest of a batch",
    "per_gpu_train_batch_size": "--per_device_train_batch_size",
    "resume": "--resume_from_checkpoint auto",
    "run_name": "--output_dir, whose last part names the run",
    "save_steps": "--checkpointing_steps",
    "save_strategy": "--checkpointing_steps",
    "save_total_limit": "--checkpoints_total_limit",
    "scheduler": "--lr_scheduler_type",
    "sentence1_key": "--sentence_column",
    "task_name": "--dataset_name nyu-mll/glue --dataset_config_name sst2, which are the default",
    "text_column": "--sentence_column",
    "text_column_name": "--sentence_column",
    "text_column_names": "--sentence_column",
    "tokenizer_name": "nothing: the tokenizer is the model's own",
    "torch_compile": "accelerate launch --dynamo_backend inductor",
    "train_batch_size": "--per_device_train_batch_size, of one device, or --global_batch_size, of all",
    "eval_batch_size": "--per_device_eval_batch_size",
    "trust_remote_code": "nothing: code of a repository is never run",
    "token": "the variable HF_TOKEN, or hf auth login",
    "warmup_steps": "--num_warmup_steps",
    "with_tracking": "nothing: a run is always tracked; --report_to names trackers beside TensorBoard",
}


class FlagParser(OneLineParser, HfArgumentParser):
    """The flags of a run, and `--config`."""

    def __init__(self, program: str, description: str) -> None:
        super().__init__(
            dataclass_types=GROUPS,
            other_names=_OTHER_NAMES,
            prog=program,
            usage="%(prog)s [--FLAG [VALUE ...] ...]",
            description=description,
            epilog="Hyphens may take the place of underscores. A flag without a value also takes true and false, which "
            "overrides a file. docs/reference.md has all flags as tables.",
        )
        for group in self._action_groups:
            if group.title in EXAMPLES:
                group.description = f"example: {EXAMPLES[group.title]}"
        self.add_argument("--config", metavar="FILE.yaml", help="flags as YAML; the command line wins over it")

    def given(self, words: Sequence[str]) -> dict[str, Any]:
        """The values of the flags that stand there by name, also of those that are given their default.

        Raises:
            UserError: an unknown flag, a value that cannot be, or a flag given twice whose values people mean both:
                of any other the last one counts.
        """
        for action in (*filter(lambda action: action.nargs == "+", self._actions), self.action("config")):
            if sum(word.split("=")[0] in action.option_strings for word in words) > 1:
                remedy = "one file holds all settings" if action.dest == "config" else "name all values after one"
                raise UserError(f"{action.option_strings[0]} is given twice: {remedy}")
        nothing = Namespace(**dict.fromkeys([*NAMES, "config"], _NOT_GIVEN))
        parsed = vars(self.parse_args(list(words), nothing))
        return {name: value for name, value in parsed.items() if value is not _NOT_GIVEN}

    def action(self, name: str) -> Action:
        """What argparse knows of one flag."""
        return next(action for action in self._actions if action.dest == name)
