"""DeepSpeed's configuration: one owner per key, and no `auto` left.

What a flag of the script says, the flag owns: batch sizes, clipping, precision, optimizer and schedule. The launcher's
YAML, or the JSON file that it names, owns the rest, which is how states are spread and sent.
"""

import json
from pathlib import Path
from typing import Any

from accelerate import DeepSpeedPlugin
from accelerate.utils.deepspeed import HfDeepSpeedConfig

from sst2.config.flag_groups import Precision
from sst2.config.launcher import Launcher
from sst2.config.settings import Settings
from sst2.utils.errors import UserError

BUCKET = 10_000_000  # numbers
_SENT_AS = "communication_data_type"
_BY_WIDTH = (
    "zero_optimization.reduce_bucket_size",
    "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.stage3_param_persistence_threshold",
)
_REFUSED = {
    "optimizer": "train_sst2.py brings AdamW",
    "scheduler": "--lr_scheduler_type is the schedule",
    "data_types": "weights and gradients are of the types that --mixed_precision says",
    "zero_force_ds_cpu_optimizer": "torch's AdamW works on the CPU as well",
}


def deepspeed_plugin(launcher: Launcher, settings: Settings, precision: str) -> DeepSpeedPlugin:
    """What accelerate hands to DeepSpeed.

    Raises:
        UserError: a file that cannot be read, or a key whose owner says otherwise.
    """
    config = deepspeed_config(launcher, settings, precision)
    stage = config["zero_optimization"]["stage"]
    # zero.Init spreads a model while it is made, for models that fit on no single device. This one does.
    plugin = DeepSpeedPlugin(hf_ds_config="none", zero_stage=stage, zero3_init_flag=False)
    plugin.hf_ds_config = HfDeepSpeedConfig(config)
    plugin.deepspeed_config = plugin.hf_ds_config.config
    return plugin


def leave_out_inference_operator() -> None:
    """Keep DeepSpeed from compiling an operator of inference on a CPU, which takes time and a compiler.

    It all-reduces in shared memory, for `inference_all_reduce` alone, which training does not call.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def precision_of_file(file: str) -> Precision | None:
    """The precision that a DeepSpeed file asks for, where it does not leave that to others.

    Raises:
        UserError: the file cannot be read.
    """
    content = _read(file)
    names: tuple[Precision, ...] = ("bf16", "fp16")
    for name in names:
        section = content.get(name)
        if isinstance(section, dict) and section.get("enabled") is True:
            return name
    return None


def deepspeed_config(launcher: Launcher, settings: Settings, precision: str) -> dict[str, Any]:
    """The whole configuration. Three sizes may be `auto`, which accelerate makes to fit the model's width.

    Raises:
        UserError: as above.
    """
    source = launcher.deepspeed_file or "the launcher's deepspeed_config"
    given = _read(launcher.deepspeed_file) if launcher.deepspeed_file else _of_launcher(launcher)
    for key in ("zero_optimization", "fp16", "bf16"):
        if not isinstance(given.get(key, {}), dict):
            raise UserError(f"{source}: {key} must be an object, such as {{}}")
    for key, why in _REFUSED.items():
        if key in given:
            raise UserError(f"{source} has {key}: remove it, since {why}")
    zero = given.get("zero_optimization", {})
    if zero.get("stage") not in (1, 2, 3):
        raise UserError(
            f"{source} asks for ZeRO stage {zero.get('stage')}: give 1, 2 or 3, or launch without DeepSpeed"
        )
    for name in ("offload_optimizer", "offload_param"):
        device = (zero.get(name) or {}).get("device", "none")
        if device not in ("none", "cpu"):
            raise UserError(
                f"{source} offloads to {device}, which a model of this size does not need: give cpu or none"
            )
    _refuse_blindness(source, given)
    owners = {
        "train_batch_size": ("global_batch_size", settings.global_batch_size),
        "train_micro_batch_size_per_gpu": ("per_device_train_batch_size", settings.per_device_train_batch_size),
        "gradient_accumulation_steps": ("gradient_accumulation_steps", settings.gradient_accumulation_steps or 1),
        "gradient_clipping": ("max_grad_norm", settings.max_grad_norm),
    }
    for key, (flag, value) in owners.items():
        _refuse_conflict(source, key, given.get(key), value, flag)
    for name in ("fp16", "bf16"):
        enabled = given.get(name, {}).get("enabled")
        _refuse_conflict(source, f"{name}.enabled", enabled, precision == name, "mixed_precision", precision)
    compression = "bf16" if settings.gradient_compression == "bf16" else None
    if compression:
        _refuse_conflict(source, _SENT_AS, given.get(_SENT_AS), compression, "gradient_compression")
    config = {key: value for key, value in given.items() if key != "train_batch_size" and value != "auto"}
    config |= {
        # What DeepSpeed would divide by, and log. Gradients come to it as the mean over the step already.
        "train_micro_batch_size_per_gpu": settings.per_device_train_batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
        "fp16": given.get("fp16", {}) | {"enabled": precision == "fp16"},
        # the check: so that a step that is not finite is skipped
        "bf16": given.get("bf16", {}) | {"enabled": precision == "bf16", "check_grad_overflow": True},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # torch's AdamW
        "zero_force_ds_cpu_optimizer": False,  # which is vectorised on the CPU too, and needs no compiler
    }
    if compression:
        config[_SENT_AS] = compression
    left = [name for name in _names_of_auto(config) if name not in _BY_WIDTH]
    if left:
        raise UserError(
            f'{source} leaves {left[0]} to be "auto", and nobody here decides it: give a value, or leave it out'
        )
    return config


def _names_of_auto(config: dict[str, Any], prefix: str = "") -> list[str]:
    names = []
    for key, value in config.items():
        if isinstance(value, dict):
            names += _names_of_auto(value, f"{prefix}{key}.")
        elif value == "auto":
            names.append(prefix + key)
    return names


def _of_launcher(launcher: Launcher) -> dict[str, Any]:
    # Gradients are sent behind the backward pass, in buckets that fit this model: DeepSpeed's own hold seven times the
    # whole of it, so that nothing would be sent before the end.
    zero: dict[str, Any] = {"stage": launcher.zero_stage, "overlap_comm": True, "contiguous_gradients": True}
    zero |= {"reduce_bucket_size": BUCKET}
    if launcher.zero_stage < 3:
        # Each gradient to the one rank that needs it; by default all ranks get all of them, which is twice as much.
        zero |= {"allgather_bucket_size": BUCKET, "use_multi_rank_bucket_allreduce": False}
    else:
        # By default, the weights of a billion parameters stay gathered, which are all of this model's.
        zero |= {"stage3_max_live_parameters": BUCKET, "stage3_max_reuse_distance": BUCKET}
        zero |= {"stage3_prefetch_bucket_size": BUCKET}
    if launcher.offload_optimizer != "none":
        zero["offload_optimizer"] = {"device": launcher.offload_optimizer}
    if launcher.offload_param != "none":
        zero["offload_param"] = {"device": launcher.offload_param}
    return {
        "zero_optimization": zero,
        "gradient_accumulation_steps": _number(launcher.gradient_accumulation_steps),
        "gradient_clipping": _number(launcher.gradient_clipping),
    }


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _read(file: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"deepspeed_config_file {file}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"deepspeed_config_file {file} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"deepspeed_config_file {file} holds no JSON object")
    return content


def _refuse_blindness(source: str, given: dict[str, Any]) -> None:
    """To gradients that are not finite, which would be taken for a step."""
    for section, key in (("zero_optimization", "compute_grad_norm"), ("bf16", "check_grad_overflow")):
        if given.get(section, {}).get(key) is False:
            raise UserError(
                f"{source} turns off {section}.{key}, by which steps that are not finite are found: leave it out"
            )


def _refuse_conflict(source: str, key: str, given: Any, owned: Any, flag: str, value: Any = None) -> None:
    if given not in (None, "auto") and given != owned:
        own = f"--{flag} is {owned if value is None else value}" if owned is not None else f"--{flag} is not given"
        raise UserError(
            f'{source} sets {key} to {given}, but {own}, which decides: write "auto" there, and use the flag'
        )
