"""The commands that start the measured run: `accelerate launch`, and `sbatch` with limits that it fits."""

import os
import shlex
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from sst2.config.arguments import OF_DRY_RUN, PROGRAM
from sst2.config.launcher import Launcher, read_launcher
from sst2.config.settings import Settings
from sst2.training.dry_run.estimate import SIGNAL_SECONDS, Estimate
from sst2.training.dry_run.memory import processes_of_node

CORES_PER_GPU = 2  # as slurm/train.sh advises
# What accelerate_configs/ has for DeepSpeed: by stage, and by where optimizer and weights are offloaded to.
DEEPSPEED = {
    (1, "none", "none"): "deepspeed_zero1",
    (2, "none", "none"): "deepspeed_zero2",
    (2, "cpu", "none"): "deepspeed_zero2_offload",
    (3, "none", "none"): "deepspeed_zero3",
    (3, "cpu", "cpu"): "deepspeed_zero3_offload",
}
# The variables that slurm/train.sh reads, after SST2_, without those worked out here: sbatch hands on its environment.
BATCH_VARIABLES = ("PYTHON", "CONTAINER", "MOUNTS", "PORT", "INTERFACE", "REQUEUES", "MAX_RESTARTS")
OWN_CONFIG = "YOUR_CONFIG.yaml"  # where the launcher was configured by what is not in accelerate_configs/


def flags_of_run(settings: Settings) -> list[str]:
    """The flags that start this run: those that were given, its folder, and its precision: launchers differ in that.

    Unless they say what to do with a run in the folder, they also go on with it, so that the same line serves after an
    interruption. A folder that slurm/train.sh has named after the job is left to the next one, which names another.
    """
    given = {name: value for name, value in settings.given.items() if name not in OF_DRY_RUN}
    if settings.output_dir != os.environ.get("SST2_OUTPUT_DIR"):
        given.setdefault("output_dir", settings.output_dir)
    given.setdefault("mixed_precision", settings.mixed_precision)
    if not (given.get("overwrite_output_dir") or given.get("resume_from_checkpoint")):
        given["resume_from_checkpoint"] = "auto"
    words = []
    for name, value in given.items():
        values = value if isinstance(value, list) else [] if value is True else [value]
        words += [f"--{name}", *(str(one).lower() if one is False else str(one) for one in values)]
    return words


def accelerate_command(settings: Settings, accelerator: Accelerator, nodes: int) -> str:
    """The line that starts the run here, or on each of several nodes with the number of that one."""
    launcher, processes, folder = read_launcher(), accelerator.num_processes, _project()
    config = _config(launcher, accelerator, nodes)
    file = config if config.endswith(".yaml") else str(folder / "accelerate_configs" / f"{config}.yaml")
    words = ["accelerate", "launch", "--config_file", file]
    if processes > 1 or launcher.uses_deepspeed or launcher.uses_fsdp:
        words += ["--num_processes", str(processes)]
    if nodes > 1:
        words += ["--num_machines", str(nodes), "--machine_rank", "RANK", "--main_process_ip", "HOST"]
        words += ["--deepspeed_multinode_launcher", "standard"] if launcher.uses_deepspeed else []
    return shlex.join([*words, str(folder / PROGRAM), *flags_of_run(settings)])


def sbatch_command(settings: Settings, accelerator: Accelerator, estimate: Estimate) -> str:
    """The line that submits the run, on as many nodes and devices, with a time limit and memory that it fits."""
    launcher, on_node = read_launcher(), processes_of_node(accelerator)
    values = {name: os.environ.get(name) for name in (f"SST2_{end}" for end in BATCH_VARIABLES)}
    variables = [f"{name}={shlex.quote(value)}" for name, value in values.items() if value]
    if launcher.uses_deepspeed or launcher.uses_fsdp or "SST2_CONFIG" in os.environ:
        variables.append(f"SST2_CONFIG={shlex.quote(_config(launcher, accelerator, nodes=1))}")
    words = ["sbatch", *(["--nodes", str(estimate.nodes)] if estimate.nodes > 1 else [])]
    if estimate.on_gpu:
        words += ["--gpus-per-node", str(on_node), "--cpus-per-task", str(CORES_PER_GPU * on_node)]
    else:
        variables += [f"SST2_PROCESSES={on_node}"] if on_node > 1 else []
        words += ["--cpus-per-task", str(torch.get_num_threads() * on_node)]
    words += ["--time", time_limit(estimate.limit_minutes), "--mem", f"{estimate.limit_gib}G"]
    for flag in ("partition", "account", "qos"):  # of the job that this dry run is, where the cluster has them
        if (value := os.environ.get(f"SLURM_JOB_{flag.upper()}", "(null)")) != "(null)":
            words += [f"--{flag}", value]
    if estimate.signal_seconds > SIGNAL_SECONDS:
        words += [f"--signal=USR1@{estimate.signal_seconds}"]
    words += [str(_project() / "slurm" / "train.sh"), *flags_of_run(settings)]
    return " ".join([*variables, shlex.join(words)])


def time_limit(minutes: int) -> str:
    """As SLURM takes it: `01:05:00`, or `2-01:05:00` with days."""
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{f'{days}-' if days else ''}{hours:02d}:{minutes:02d}:00"


def _config(launcher: Launcher, accelerator: Accelerator, nodes: int) -> str:
    """What the launcher was told: a name in accelerate_configs/ or a YAML file, in a batch job that of SST2_CONFIG."""
    if config := os.environ.get("SST2_CONFIG"):
        return config
    if launcher.uses_deepspeed:
        if launcher.deepspeed_file:
            return "deepspeed_file" if Path(launcher.deepspeed_file).name == "deepspeed.json" else OWN_CONFIG
        offloaded = (launcher.zero_stage, launcher.offload_optimizer, launcher.offload_param)
        return DEEPSPEED.get(offloaded, OWN_CONFIG)
    if launcher.uses_fsdp:
        return "fsdp2"
    if nodes > 1:
        return "multi_node"
    kind = "cpu" if accelerator.device.type == "cpu" else "gpu"
    return f"{'single' if accelerator.num_processes == 1 else 'multi'}_{kind}"


def _project() -> Path:
    """The project's folder, as the script was called."""
    program = Path(sys.argv[0])
    return program.parent if program.name == PROGRAM else Path()
