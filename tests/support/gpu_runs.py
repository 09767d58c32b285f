"""What a run that has gone on shares with one that was never stopped, on GPUs, whose sums are not repeatable."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.running import Finished

# Of the way that the weights go after the stop: how far apart the two runs may end. Half way of 60 steps in bf16 on a
# CPU, other sums made 0.007 of it, AdamW's moments set to zero 1.18; losses differed by 0.0004 and 0.04 of theirs.
WAY_TOLERANCE = 0.3


def assert_went_on(resumed: Finished, whole: Finished, stopped_at: Path, loss_tolerance: float = 0.02) -> None:
    """The sentences and learning rates are the same; losses and weights are, as far as a GPU repeats them.

    Args:
        resumed: went on from `stopped_at`.
        whole: with the same flags, never stopped.
        stopped_at: a checkpoint that is still there.
        loss_tolerance: relative.
    """
    assert (resumed.run_dir / "samples.jsonl").read_text() == (whole.run_dir / "samples.jsonl").read_text()
    for one, other in zip(whole.logged("train"), resumed.logged("train"), strict=True):
        assert one["learning_rate"] == other["learning_rate"]
        assert other["loss"] == pytest.approx(one["loss"], rel=loss_tolerance, abs=0.005), one["step"]
    start, end = weights(stopped_at), weights(whole.run_dir / "model")
    distance, way = (weights(resumed.run_dir / "model") - end).norm(), (end - start).norm()
    assert distance < WAY_TOLERANCE * way


def weights(folder: Path) -> torch.Tensor:
    """All weights in one vector, in the order of their names."""
    tensors = load_file(folder / "model.safetensors")
    return torch.cat([tensors[name].flatten().float() for name in sorted(tensors)])
