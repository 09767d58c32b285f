"""What each optimization is worth alone: this job with all of them, against this job without that one.

    python benchmarks/ablations.py --output benchmarks/results/ablations.json

Each pair of processes takes turns, several rounds; the gain is the seconds without over the seconds with, for the same
sentences. What is switched off is switched off in that process alone: the product has no flags for it.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # for benchmarks and train_sst2.py

from benchmarks.throughput import circumstances, ratio, this_job, write_inputs
from benchmarks.turns import Step, add_arguments, measure


def put(owner: Any, name: str, value: Any) -> None:
    """In place of what is there, for as long as this process lives."""
    setattr(owner, name, value)


def without_first_tokens_alone() -> None:
    """The last layer computes all tokens."""
    from sst2.models import packed_classifier as packed

    put(packed, "compute_first_tokens_only", lambda blocks: not blocks)


def without_grids() -> None:
    """Attention pads all sentences of a step to the longest."""
    from sst2.data import packing

    put(packing, "GRID_SENTENCES", 10**6)


def without_copied_gradients() -> None:
    """Gradients of tokens in a grid are added up by indexing."""
    import torch

    from sst2.models import attention

    def pad_input(tensor: torch.Tensor, grid: Any) -> torch.Tensor:
        token_of_place = (grid.is_token.flatten().cumsum(0) - 1).clamp(min=0).view(grid.is_token.shape)
        return tensor[token_of_place]

    put(attention, "pad_input", pad_input)
    put(attention, "unpad_input", lambda places, grid: places.flatten(0, 1)[grid.unpad_index])


def without_few_shapes() -> None:
    """Every number of tokens is a shape of its own."""
    from sst2.data import packing
    from sst2.models import packed_classifier as packed

    put(packed, "CPU_TOKENS", 1)
    put(packing, "GRID_PLACES", 1)


def without_kept_memory() -> None:
    """The allocator gives freed memory back to the system."""
    from sst2.distributed import cpu

    put(cpu, "keep_memory", lambda: None)


def without_clipping_in_the_step() -> None:
    """Gradients are clipped by torch, and the host looks at their norm, before AdamW's step."""
    import torch

    from sst2.distributed.strategies import strategy

    def clip_and_step(optimizer: torch.optim.Optimizer, max_norm: float) -> torch.Tensor:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(weights, max_norm or math.inf)
        if math.isfinite(norm):
            optimizer.step()
        return norm

    put(strategy, "clipped_step", clip_and_step)


def without_fused_adamw() -> None:
    """AdamW takes its step operator by operator, after torch's clipping."""
    import torch

    from sst2.config.settings import Settings
    from sst2.training import optimizer

    without_clipping_in_the_step()  # which is the fused one's

    def unfused(model: torch.nn.Module, settings: Settings) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            optimizer.parameter_groups(model, settings.weight_decay), settings.learning_rate, fused=False
        )

    put(optimizer, "build_optimizer", unfused)


def with_reading_every_step() -> None:
    """The host waits for the device after each step."""
    from sst2.training import step_metrics

    put(step_metrics, "STEPS_BETWEEN_READS", 1)


def without_graphs() -> None:
    """The host asks for the operations of a step one by one."""
    from sst2.training import trainer
    from sst2.training.steps.choose import choose_runner
    from sst2.training.steps.runner import StepRunner

    def eager(of: trainer.Trainer) -> StepRunner:
        of.settings.cuda_graphs = "no"
        return choose_runner(of)

    put(trainer, "choose_runner", eager)


ON_ALL = (
    without_first_tokens_alone,
    without_clipping_in_the_step,
    without_fused_adamw,
)
ON_CPU = (
    without_grids,
    without_copied_gradients,
    without_few_shapes,
    without_kept_memory,
)
ON_GPU = (without_graphs, with_reading_every_step)


def altered_job(folder: Path, batch_size: int, alter: Callable[[], None] | None, precision: str, batching: str) -> Step:
    """This job as `this_job` makes it, after `alter` has changed it; as it is if None."""
    if alter is not None:
        alter()
    return this_job(folder, batch_size, precision, batching)


def main() -> None:
    """Measure, print the figures, and write them to `--output`."""
    import torch

    on_gpu = torch.cuda.is_available()
    alterations = {alter.__name__: alter for alter in (*ON_ALL, *(ON_GPU if on_gpu else ON_CPU))}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=5, steps=6)
    parser.add_argument("--precision", choices=["no", "bf16"], default="bf16")
    parser.add_argument("--only", nargs="+", choices=["without_packing", "without_bf16", *alterations])
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    own = partial(altered_job, alter=None, precision=arguments.precision, batching="packed")
    others = {name: partial(own, alter=alter) for name, alter in alterations.items()}
    others["without_packing"] = partial(own, batching="padded")
    if arguments.precision == "bf16":
        others["without_bf16"] = partial(own, precision="no")
    figures: dict[str, Any] = {
        "what": "seconds of a step of this job without one optimization over those of the job",
        **circumstances(),
        "rounds": arguments.rounds,
    }
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), small=arguments.small)
        for name in arguments.only or others:
            turns = measure(Path(folder), {"job": own, name: others[name]}, arguments)
            if turns.failed:
                sys.exit(f"failed: {turns.failed}")
            seconds = {way: [each.seconds / each.tokens for each in rounds] for way, rounds in turns.rounds.items()}
            figures[name] = ratio(seconds[name], seconds["job"])
            print(f"{name}: {figures[name]['median']:.3f}", file=sys.stderr, flush=True)
            if arguments.output:
                arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
