"""The parser of the command line: every mistake is one line, and a flag of the Trainer's examples gets its name here.

Nothing heavy is imported here, so that `--help` and a wrong flag answer at once.
"""

import difflib
from argparse import Action, ArgumentDefaultsHelpFormatter, Namespace
from collections.abc import Sequence
from typing import Any, NoReturn

from transformers.hf_argparser import HfArgumentParser

from sst2.config.settings import GROUPS, NAMES
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
    "label_list": "--label_names",
    "logging_dir": "nothing: TensorBoard's files lie in the run's folder",
    "lr": "--learning_rate",
    "max_eval_samples_per_split": "--max_eval_samples",
    "max_seq_length": "--max_length",
    "max_steps": "--max_train_steps",
    "metric_for_best_model": "nothing: --load_best_model_at_end takes the most accurate model",
    "model": "--model_name_or_path",
    "model_name": "--model_name_or_path",
    "no_cuda": "accelerate launch --cpu",
    "use_cpu": "accelerate launch --cpu",
    "num_epochs": "--num_train_epochs",
    "num_labels": "--label_names, which names the two classes",
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


class _HelpFormatter(ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: Any) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class FlagParser(HfArgumentParser):
    """The flags of a run, and `--config`.

    Raises:
        UserError: from any of its methods, for a mistake.
    """

    def __init__(self, program: str, description: str) -> None:
        groups: Any = GROUPS
        super().__init__(
            groups, prog=program, description=description, allow_abbrev=False, formatter_class=_HelpFormatter
        )
        self.add_argument("--config", metavar="FILE.yaml", help="flags as YAML; the command line wins over it")

    @property
    def defaults(self) -> dict[str, Any]:
        """The default of every setting by name."""
        return {name: self.get_default(name) for name in NAMES}

    def given(self, words: Sequence[str]) -> dict[str, Any]:
        """The values of the flags that stand there by name, also of those that are given their default."""
        self._refuse_twice(words)
        nothing = Namespace(**dict.fromkeys([*NAMES, "config"], _NOT_GIVEN))
        parsed, unknown = self.parse_known_args(list(words), nothing)
        if unknown:
            flag = unknown[0].split("=")[0]  # its value may be a token
            self.error(f"{flag} is not a flag{self.hint(flag)}; --help lists them all")
        return {name: value for name, value in vars(parsed).items() if value is not _NOT_GIVEN}

    def _refuse_twice(self, words: Sequence[str]) -> None:
        """Of a flag that stands there twice the last one counts; but of these, people mean both."""
        for action in (*filter(lambda action: action.nargs == "+", self._actions), self.action("config")):
            if sum(word.split("=")[0] in action.option_strings for word in words) > 1:
                remedy = "one file holds all settings" if action.dest == "config" else "name all values after one"
                self.error(f"{action.option_strings[0]} is given twice: {remedy}")

    def action(self, name: str) -> Action:
        """What argparse knows of one flag."""
        return next(action for action in self._actions if action.dest == name)

    def hint(self, word: str) -> str:
        """What an unknown flag may have meant: after a comma, or nothing."""
        name = word.lstrip("-").replace("-", "_")
        if name in _OTHER_NAMES:
            return f", here it is {_OTHER_NAMES[name]}"
        match = difflib.get_close_matches(name, [*NAMES, "config"], n=1)
        return f", did you mean --{match[0]}?" if match else ""

    def error(self, message: str) -> NoReturn:
        """Raises UserError, where argparse would end the process."""
        raise UserError(message)
