"""Joining: the processes of a job find each other, and accelerate learns strategy and precision."""

import logging
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from importlib.metadata import version
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs
from packaging.version import Version
from transformers.integrations import unset_hf_deepspeed_config

from sst2.config.flag_groups import Precision
from sst2.config.launcher import START_SEVERAL, Launcher, forget_leftovers, is_set, read_launcher
from sst2.config.settings import Settings
from sst2.distributed.cpu import keep_memory, use_all_cores
from sst2.distributed.devices import (
    computes_on_cpu,
    gpu_flags_of_launcher,
    loosens_float32,
    overlooks_gpus,
    runs_on_cpu,
)
from sst2.distributed.precision import choose_precision
from sst2.distributed.rendezvous import all_reduce_check, rendezvous, word_of_main
from sst2.models.upload import require_hub_login
from sst2.utils.errors import LocalError, UserError, first_line
from sst2.utils.logs import start_logging

logger = logging.getLogger(__name__)

FIRST_DEEPSPEED = "0.19.8"  # that skips steps which are not finite in float32; pyproject.toml says the same
_GROUP_TIMEOUT = 1800.0  # seconds for the process group to form; the watchdog then takes over


def init_distributed(
    settings: Settings, saved_precision: Callable[[], Precision | None] = lambda: None
) -> tuple[Accelerator, Settings]:
    """Bring all processes together, as the launcher has asked for.

    Args:
        settings: of the run.
        saved_precision: called on rank 0 for `--mixed_precision auto`; that of the run that is resumed, if one is.

    Returns:
        The accelerator, and the settings with the precision of forward passes: `no`, `bf16` or `fp16`.

    Raises:
        UserError: the host cannot do what the launcher asks for, its configuration contradicts the flags, or the hub
            would refuse the upload.
        LostProcessError: a process has not come, or does not answer.
    """
    forget_leftovers()
    launcher = read_launcher()
    start_logging(launcher.rank == 0, dated=not sys.stderr.isatty())
    _refuse_what_cannot_work(launcher, settings)
    require_hub_login(settings)
    use_all_cores()
    if computes_on_cpu():
        keep_memory()
    store = rendezvous(launcher, settings.connect_timeout)
    precision, reason = _agree_on_precision(settings, launcher, store, saved_precision)
    plugin, backend = None, None
    if launcher.uses_deepspeed:
        from sst2.distributed.strategies.deepspeed_config import (
            deepspeed_plugin,
            leave_out_inference_operator,
            precision_of_file,
        )

        leave_out_inference_operator()
        asked = precision_of_file(launcher.deepspeed_file) if launcher.deepspeed_file else None
        if settings.mixed_precision is None and asked:
            precision, reason = choose_precision(asked)[0], "set in DeepSpeed's file"
        plugin = deepspeed_plugin(launcher, settings, precision)
        backend = None if torch.accelerator.is_available() else "gloo"  # or accelerate sees one process
    with all_reduce_check(launcher, store, settings.connect_timeout) as add_up:
        accelerator = _accelerator(
            cpu=runs_on_cpu(),
            mixed_precision=precision,
            deepspeed_plugin=plugin,
            # the mean over a step's sentences is taken here; of a variable accelerate would divide it once more
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[InitProcessGroupKwargs(backend=backend, timeout=timedelta(seconds=_GROUP_TIMEOUT))],
        )
        check_world_size(launcher.world_size, accelerator.num_processes)
        add_up(accelerator.device)
    if overlooks_gpus():
        logger.warning(
            "this host has NVIDIA GPUs and torch sees none: check the driver, torch's build and SLURM's flags"
        )
    elif gpu_flags := gpu_flags_of_launcher():
        logger.warning(
            "%s is for GPUs, and there is none here: the run computes on the CPU. If that is meant, set "
            "CUDA_VISIBLE_DEVICES= (empty), or give accelerate_configs/single_cpu.yaml or multi_cpu.yaml",
            gpu_flags,
        )
    if loose := loosens_float32():
        logger.warning("%s is set: products of float32 numbers have fewer digits than float32", loose)
    unset_hf_deepspeed_config()  # else transformers would spread under ZeRO-3 whatever model it loads
    logger.info("%s: %s", _in_words(accelerator, precision), reason)
    return accelerator, replace(settings, mixed_precision=precision)


def check_world_size(promised: int, world_size: int) -> None:
    """Raises UserError: fewer processes work together than WORLD_SIZE promises."""
    if promised != world_size:
        raise UserError(
            f"the launcher promised {promised} processes, but {world_size} work{'s' * (world_size == 1)} together: "
            f"{START_SEVERAL}"
        )


def _in_words(accelerator: Accelerator, precision: Precision) -> str:
    """Devices, strategy and precision: `8 x cuda, multi_gpu, bf16`."""
    device = accelerator.device.type
    if device == "cpu" and not is_set("ACCELERATE_USE_CPU"):
        device = "cpu (no GPU found)"
    strategy = accelerator.distributed_type.value.lower()
    words = [f"{accelerator.num_processes} x {device}", *([strategy] if strategy != "no" else [])]
    return ", ".join([*words, "float32" if precision == "no" else precision])


def _accelerator(**arguments: Any) -> Accelerator:
    """Raises UserError: a variable by which accelerate is configured holds what cannot be."""
    try:
        return Accelerator(**arguments)
    except ValueError as error:
        names = sorted(name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_")))
        if not names:
            raise
        raise UserError(f"accelerate says: {first_line(error)}: correct or unset one of {', '.join(names)}") from error


def _agree_on_precision(
    settings: Settings, launcher: Launcher, store: Any, saved_precision: Callable[[], Precision | None]
) -> tuple[Precision, str]:
    """The precision and the reason for it. What `auto` stands for is measured on a CPU, so that rank 0 says it for all.

    A run that goes on keeps the precision that it has. Ranks that were asked for different ones are told apart here:
    later they would wait for each other.
    """
    own = settings.mixed_precision

    def word() -> str:
        if own != "auto":
            return str(own)
        if saved := saved_precision():
            return f"auto {saved} the checkpoint has it"
        return " ".join(("auto", *choose_precision("auto")))

    asked, _, answer = word_of_main(launcher, store, word).partition(" ")
    if asked != str(own):
        ours, theirs = ("left out" if value == "None" else value for value in (str(own), asked))
        raise LocalError(
            f"--mixed_precision of rank {launcher.rank} on {socket.gethostname()} is {ours}, of rank 0 {theirs}: start "
            "all ranks with the same flags"
        )
    if own != "auto":
        return choose_precision(own)
    precision, _, reason = answer.partition(" ")
    try:
        return choose_precision(cast(Precision, precision))[0], reason
    except UserError:
        raise UserError(
            f"--resume_from_checkpoint: the run is in {precision}, which this device cannot do: go on where there is "
            "one that can, or start a new run in another --output_dir"
        ) from None


def _refuse_what_cannot_work(launcher: Launcher, settings: Settings) -> None:
    for name in ("MEGATRON_LM", "PARALLELISM_CONFIG", "SAGEMAKER"):
        if is_set(f"ACCELERATE_USE_{name}"):
            raise UserError(
                f"ACCELERATE_USE_{name} asks for what a model of this size does not need: unset it, or launch with one "
                "of accelerate_configs/"
            )
    if launcher.uses_deepspeed:
        from importlib.util import find_spec

        if find_spec("deepspeed") is None:
            raise UserError("the launcher asks for DeepSpeed, which is not installed: pip install deepspeed")
        if Version(installed := version("deepspeed")) < Version(FIRST_DEEPSPEED):
            raise UserError(
                f"DeepSpeed {installed} takes steps whose gradients are not finite: "
                f"pip install 'deepspeed>={FIRST_DEEPSPEED}'"
            )
        if runs_on_cpu():
            raise UserError(
                "accelerate has no DeepSpeed with use_cpu: leave that out; on a host with GPUs, set "
                "CUDA_VISIBLE_DEVICES= (empty) to run on its CPUs"
            )
    if not launcher.uses_fsdp:
        return
    if settings.gradient_compression != "none":
        raise UserError(
            "--gradient_compression is not for FSDP, which with --mixed_precision bf16 sends gradients in bf16"
        )
    if runs_on_cpu():
        raise UserError(
            "FSDP needs a GPU: on CPUs accelerate would leave the model unsharded without a word: launch with "
            "accelerate_configs/multi_cpu.yaml, or deepspeed_zero3.yaml, which shards there as well"
        )
    if launcher.fsdp_version != 2:
        raise UserError("the launcher asks for FSDP 1: give --fsdp_version 2, as accelerate_configs/fsdp2.yaml does")
