"""The report of a dry run: as a table with the two commands below it, or as JSON."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from sst2.training.dry_run.estimate import MIB, Estimate
from sst2.training.dry_run.memory import host_limit_mib, peaks_of_nodes
from sst2.training.dry_run.start_commands import accelerate_command, sbatch_command
from sst2.training.trainer import Trainer
from sst2.utils.console import table

Row = tuple[str, str, str]
PARTS = {
    "start_up": "start",
    "steps": "steps",
    "logging": "logging",
    "evaluations": "evaluations",
    "checkpoints": "checkpoints",
    "end": "last evaluations and export",
}


def figures(trainer: Trainer, estimate: Estimate) -> dict[str, Any]:
    """Everything that a dry run has found, as JSON has it: seconds, MiB, bytes and hours as the names say."""
    settings, workload, measured = trainer.settings, estimate.workload, estimate.measured
    largest = workload.largest._asdict() if workload.steps else None
    price = None if settings.price_per_hour is None else estimate.price(settings.price_per_hour)
    return {
        "output_dir": settings.output_dir,
        "steps": {
            "left": workload.left,
            "done": workload.first,
            "total": workload.total,
            "per_epoch": trainer.plan.steps_per_epoch,
            "sentences_each": settings.global_batch_size,
            "passes_each": settings.gradient_accumulation_steps,
        },
        "sentences": workload.sentences,
        "tokens": workload.tokens,
        "padding_share": workload.padding_share,
        "largest_step": largest,
        "evaluations": len(workload.evaluated),
        "checkpoints": len(workload.saved),
        "parameters": sum(shape.numel() for shape in trainer.strategy.optimizer_shapes()),
        "job": {
            "processes": estimate.processes,
            "nodes": estimate.nodes,
            "device": trainer.accelerator.device.type,
            "mixed_precision": settings.mixed_precision,
        },
        "memory": {
            "ranks": [asdict(one) for one in measured.ranks],
            "nodes_mib": [*peaks_of_nodes(measured.ranks).values()],
            "node_has_mib": host_limit_mib(),
        },
        "disk": {
            "checkpoint_bytes": measured.checkpoint_bytes,
            "model_bytes": measured.model_bytes,
            "run_bytes": estimate.run_bytes,
            "free_bytes": estimate.free_bytes,
        },
        "step_seconds": estimate.step_seconds,
        "steps_measured": [{"tokens": tokens, "seconds": seconds} for tokens, seconds in measured.steps],
        "once": {
            "first_step_seconds": measured.first_step,
            "new_shape_seconds": measured.new_shape,
            "shapes": workload.shapes,
        },
        "checkpoint_seconds": {"pause": measured.pause, "written_after": measured.write},
        "seconds": {**estimate.seconds, "total": estimate.total_seconds},
        "gpu_hours": estimate.gpu_hours,
        "node_hours": estimate.node_hours,
        "price": price,
        "dangers": estimate.dangers(settings),
        "commands": {
            "accelerate": accelerate_command(settings, trainer.accelerator, estimate.nodes),
            "sbatch": sbatch_command(settings, trainer.accelerator, estimate),
        },
    }


def as_json(found: dict[str, Any]) -> str:
    """The figures as they are printed for programs."""
    return json.dumps(found, indent=2)


def as_table(found: dict[str, Any]) -> str:
    """The figures as they are printed for people, with the commands below."""
    drawn = table([("dry run of", found["output_dir"], ""), *_of_work(found), *_of_machine(found), *_of_time(found)])
    dangers = "".join(f"\nbeware: {danger}" for danger in found["dangers"])
    commands = found["commands"]
    return f"{drawn}{dangers}\n\n{commands['accelerate']}\n\n{commands['sbatch']}"


def _of_work(found: dict[str, Any]) -> Iterator[Row]:
    steps, sentences = found["steps"], found["sentences"]
    passes = f" in {steps['passes_each']} passes" if steps["passes_each"] > 1 else ""
    done = f"; {steps['done']:,} of {steps['total']:,} are done" if steps["done"] else ""
    each = f"of {steps['sentences_each']:,} sentences{passes}, {steps['per_epoch']:,} an epoch{done}"
    yield "steps", f"{steps['left']:,}", each
    yield "tokens", f"{found['tokens']:,}", f"of {sentences:,} sentences, without padding"
    yield "padding", f"{found['padding_share']:.1%}", "of the tokens that are computed"
    if largest := found["largest_step"]:
        yield "largest step", f"{largest['tokens']:,} tokens", f"{largest['busiest']:,} computed on the busiest device"
    yield "evaluations", f"{found['evaluations']:,}", "during training"
    yield "parameters", f"{found['parameters']:,}", ""


def _of_machine(found: dict[str, Any]) -> Iterator[Row]:
    job, memory, disk = found["job"], found["memory"], found["disk"]
    nodes = f" on {job['nodes']} nodes" if job["nodes"] > 1 else ""
    precision = "float32" if job["mixed_precision"] == "no" else job["mixed_precision"]
    yield "job", f"{job['processes']} x {job['device']}{nodes}", precision
    most = max(memory["ranks"], key=lambda one: one["reserved_mib"] or 0)
    if most["gpu_mib"]:
        kept = f"{_gib(most['reserved_mib'])} kept by torch, of {_gib(most['gpu_mib'])}"
        yield "peak memory, GPU", _gib(most["allocated_mib"]), f"{kept}; rank {most['rank']}, which has the most"
    fattest = max(one["host_mib"] for one in memory["ranks"])
    of_each = f"up to {_gib(fattest)} a process; launcher included" if len(memory["ranks"]) > 1 else "launcher included"
    of_all = f"of {_gib(memory['node_has_mib'])} a node; {of_each}"
    yield "peak memory, host", _gib(max(memory["nodes_mib"])), of_all
    room = f"up to {_gib(disk['run_bytes'] / MIB)} on disk, where {_gib(disk['free_bytes'] / MIB)} are free"
    yield "checkpoint", _gib(disk["checkpoint_bytes"] / MIB), f"{found['checkpoints']:,} in all; the run has {room}"


def _of_time(found: dict[str, Any]) -> Iterator[Row]:
    seconds, measured = found["seconds"], [one["seconds"] for one in found["steps_measured"]]
    if measured:
        spread = f"{min(measured):.3g} to {max(measured):.3g}, by its tokens"
        yield "seconds a step", f"{found['step_seconds']:.3g}", spread
    parts = ", ".join(f"{words} {seconds[name]:.3g} s" for name, words in PARTS.items())
    yield "time in all", duration(seconds["total"]), parts
    if found["gpu_hours"] is not None:
        yield "GPU-hours", f"{found['gpu_hours']:.3g}", ""
    else:
        yield "node-hours", f"{found['node_hours']:.3g}", "no GPU"
    if found["price"] is not None:
        yield "price", f"{found['price']:,.2f}", "of GPU-hours" if found["gpu_hours"] is not None else "of node-hours"


def duration(seconds: float) -> str:
    """`0:00:09`, `26:10:00`: hours, minutes, seconds."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def _gib(mib: float) -> str:
    return f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"
