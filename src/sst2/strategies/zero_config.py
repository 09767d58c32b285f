"""DeepSpeed's configuration: one owner per key, and no `auto` left.

What a flag of the script says, the flag owns: batch sizes, clipping, precision, optimizer and schedule. The launcher's
YAML, or the JSON file that it names, owns the rest, which is how states are spread and sent.
"""

import json
from pathlib import Path
from typing import Any

from accelerate import DeepSpeedPlugin
from accelerate.utils.deepspeed import HfDeepSpeedConfig

from sst2.environment import Launcher
from sst2.errors import UserError
from sst2.settings import Precision, Settings

BUCKET = 10_000_000  # numbers
_OFFLOAD = ("offload_optimizer", "offload_param")


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


def precision_of_file(file: str) -> Precision | None:
    """The precision that a DeepSpeed file asks for, where it does not leave that to others.

    Raises:
        UserError: the file cannot be read.
    """
    content = _read(file)
    asked: list[Precision] = [name for name in ("bf16", "fp16") if (content.get(name) or {}).get("enabled") is True]
    return asked[0] if asked else None


def deepspeed_config(launcher: Launcher, settings: Settings, precision: str) -> dict[str, Any]:
    """The whole configuration, but for bucket sizes that are `auto`, which follow from the model.

    Raises:
        UserError: as above.
    """
    source = launcher.deepspeed_file or "the launcher's deepspeed_config"
    given = _read(launcher.deepspeed_file) if launcher.deepspeed_file else _of_launcher(launcher)
    for key, owner in {"optimizer": "AdamW", "scheduler": "--lr_scheduler_type"}.items():
        if key in given:
            raise UserError(f"{source} has a section {key}, which {owner} owns: remove it")
    zero = dict(given.get("zero_optimization") or {})
    if zero.get("stage") not in (1, 2, 3):
        raise UserError(
            f"{source} asks for ZeRO stage {zero.get('stage')}: give 1, 2 or 3, or launch without DeepSpeed"
        )
    for name in _OFFLOAD:
        device = (zero.get(name) or {}).get("device", "none")
        if device not in ("none", "cpu"):
            raise UserError(
                f"{source} offloads to {device}, which a model of this size does not need: give cpu or none"
            )
    owned = {
        # What DeepSpeed would divide by, and log. Gradients come to it as the mean over the step already.
        "train_micro_batch_size_per_gpu": (settings.per_device_train_batch_size, "--per_device_train_batch_size"),
        "gradient_accumulation_steps": (1, "--gradient_accumulation_steps"),
        "gradient_clipping": (settings.max_grad_norm, "--max_grad_norm"),
    }
    config: dict[str, Any] = {key: value for key, value in given.items() if key != "train_batch_size"}
    for key, (value, flag) in owned.items():
        _refuse_conflict(source, key, given.get(key), getattr(settings, flag[2:]) or value, flag)
        config[key] = value
    _refuse_conflict(
        source, "train_batch_size", given.get("train_batch_size"), settings.global_batch_size, "--global_batch_size"
    )
    for name in ("fp16", "bf16"):
        section = dict(given.get(name) or {})
        enabled = section.get("enabled", "auto")
        _refuse_conflict(source, f"{name}.enabled", enabled, precision == name, f"--mixed_precision {precision}")
        config[name] = section | {"enabled": precision == name}
    config["bf16"].setdefault("check_grad_overflow", True)  # so that a step that is not finite is skipped
    if settings.gradient_compression == "bf16":
        _refuse_conflict(
            source, "communication_data_type", given.get("communication_data_type"), "bf16", "--gradient_compression"
        )
        config["communication_data_type"] = "bf16"
    config["zero_optimization"] = zero
    config["zero_allow_untested_optimizer"] = True  # torch's AdamW
    config["zero_force_ds_cpu_optimizer"] = False  # which is vectorised on the CPU too, and needs no compiler
    return config


def _of_launcher(launcher: Launcher) -> dict[str, Any]:
    # Gradients are sent behind the backward pass, in buckets that fit this model: DeepSpeed's own hold seven times the
    # whole of it, so that nothing would be sent before the end.
    zero: dict[str, Any] = {"stage": launcher.zero_stage, "overlap_comm": True, "contiguous_gradients": True}
    zero |= {"reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}
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


def _refuse_conflict(source: str, key: str, given: Any, owned: Any, flag: str) -> None:
    if given not in (None, "auto") and given != owned:
        raise UserError(
            f'{source} sets {key} to {given}, but {flag} owns it and says {owned}: write "auto" there, or agree'
        )
