"""The ranks of a job without their launcher: with the variables that it gives them, and libraries imported already."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)

from tests.support.jobs import Forked, results
from tests.support.processes import free_port
from tests.support.running import REPOSITORY, SCRIPT, Finished


def train_ranks(
    flags: Sequence[object], run_dir: Path, configuration: str | None = None, processes: int = 1, precision: str = "no"
) -> Finished:
    """Run `train_sst2.py` to its end, as `accelerate launch` does by one of the project's configurations.

    Each rank is a process of its own. What importing the libraries takes, ten seconds of a core for two ranks and their
    launcher, is saved: tests of launchers and of signals start them for real. Without a `configuration`, several are
    as in `multi_cpu.yaml`, and one is as without a launcher.
    """
    output = run_dir.with_name(f"{run_dir.name}.output")
    output.write_text("")
    words = [*map(str, flags), "--output_dir", str(run_dir)]
    code = Forked(words, output, ranks_of(configuration, processes, precision)).wait()
    return Finished(code, "", output.read_text(encoding="utf-8"), run_dir)


def ranks_of(configuration: str | None = None, processes: int = 1, precision: str = "no") -> list[dict[str, str]]:
    """The environment variables of each rank, as a launcher gives them: see `train_ranks`."""
    if processes == 1 and configuration is None:
        return [dict(os.environ)]
    variables = _variables_of_launcher(configuration or "multi_cpu", processes, precision)
    if processes == 1:
        return [variables]
    return [variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def run_to_the_end(
    flags: Sequence[object], run_dir: Path, configuration: str | None = None, processes: int = 1, precision: str = "no"
) -> dict[str, Any]:
    """Start or resume a run by `train_ranks`, and let it finish. Returns its `results`."""
    flags = [*flags, "--resume_from_checkpoint", "auto"]
    finished = train_ranks(flags, run_dir, configuration, processes, precision)
    assert finished.code == 0, finished.stderr
    return results(run_dir)


def _variables_of_launcher(configuration: str, processes: int, precision: str) -> dict[str, str]:
    """The environment of a rank, but for its number: by accelerate's own reading of the configuration."""
    command = ["--config_file", REPOSITORY / "accelerate_configs" / f"{configuration}.yaml"]
    command += [
        "--num_processes",
        processes,
        "--mixed_precision",
        precision,
        "--main_process_port",
        free_port(),
        SCRIPT,
    ]
    arguments, defaults, _ = _validate_launch_command(launch_command_parser().parse_args([*map(str, command)]))
    if processes == 1:
        return dict(prepare_simple_launcher_cmd_env(arguments)[1])
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        variables: dict[str, str] = prepare_deepspeed_cmd_env(arguments)[1]
    else:
        variables = prepare_multi_gpu_env(arguments)
    by_torchrun = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1"}
    by_torchrun |= {"MASTER_PORT": arguments.main_process_port, "TORCHELASTIC_RUN_ID": "none"}
    return variables | {name: str(value) for name, value in by_torchrun.items()}
