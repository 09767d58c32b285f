"""Steps in three parts, captured: they do what eager steps do, and a resumed run takes them bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sst2.distributed.strategies.flat import FlatStrategy
from sst2.training.steps.split_graphs import SplitGraphRunner
from sst2.training.trainer import Trainer
from tests.gpu.test_cuda_graphs_on_gpu import FLAGS, losses, repeated, trainer_of
from train_sst2 import train_step

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

SPLIT = ["--cuda_graphs", "yes"]


def shapes(trainer: Trainer) -> tuple[int, int]:
    """Numbers of those that are captured, and of those that were to be."""
    assert isinstance(trainer.step_runner, SplitGraphRunner)
    assert trainer.step_runner._update is not None
    return trainer.step_runner.captured, len(trainer.step_runner._sizes)


@pytest.mark.parametrize("kernels", ["auto", "triton"])
@pytest.mark.parametrize("accumulation", [[], ["--per_device_train_batch_size", 10]], ids=["whole", "accumulated"])
def test_losses_are_those_of_eager_steps(accumulation: list[object], kernels: str, tmp_path: Path) -> None:
    own = ["--kernels", kernels]
    with trainer_of(tmp_path / "split", *FLAGS, *accumulation, *SPLIT, *own) as trainer:
        found = losses(trainer, 60)
        captured, wanted = shapes(trainer)
        assert captured == wanted >= 2
        assert isinstance(trainer.strategy, FlatStrategy)
        assert trainer.strategy.steps_by_kernel == trainer.strategy.blocks_by_kernel == (kernels == "triton")
        weights = trainer.strategy.weights()
    with trainer_of(tmp_path / "eager", *FLAGS, *accumulation, "--cuda_graphs", "no") as trainer:
        eager = losses(trainer, 60)
        expected = trainer.strategy.weights()
    assert found == pytest.approx(eager, rel=0.02, abs=0.005)  # sums on a GPU are not repeatable to the last bit
    distance = sum(float((weights[name] - value).square().sum()) for name, value in expected.items())
    assert distance < 1e-3 * sum(float(value.square().sum()) for value in expected.values())


def test_capturing_changes_neither_weights_nor_random_states(tmp_path: Path) -> None:
    with trainer_of(tmp_path / "run", "--learning_rate", "1e-30", "--max_train_steps", 60, *SPLIT) as trainer:
        before = {name: value.clone() for name, value in trainer.strategy.weights().items()}
        state = torch.cuda.get_rng_state()
        first = repeated(trainer)
        assert shapes(trainer)[0]
        torch.cuda.set_rng_state(state)
        assert repeated(trainer) == pytest.approx(first, rel=1e-3)  # both are replayed, from the same random state
        assert repeated(trainer) != first
        for name, value in trainer.strategy.weights().items():
            torch.testing.assert_close(value, before[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernels", ["auto", "triton"])
def test_a_step_that_is_not_finite_changes_nothing(kernels: str, tmp_path: Path) -> None:
    with trainer_of(tmp_path / "run", "--max_train_steps", 60, *SPLIT, "--kernels", kernels) as trainer:
        losses(trainer, 4)
        norm = trainer.strategy.model.get_parameter("distilbert.embeddings.LayerNorm.weight")  # computed with as it is
        with torch.no_grad():
            saved = norm[0].clone()
            norm[0] = float("nan")
        before = {name: value.clone() for name, value in trainer.strategy.weights().items()}
        assert not train_step(trainer)["grad_norm"].isfinite()
        for name, value in trainer.strategy.weights().items():
            torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
        with torch.no_grad():
            norm[0] = saved
        assert train_step(trainer)["grad_norm"].isfinite()


def test_short_last_steps_fit_the_same_graphs(tmp_path: Path) -> None:
    flags = ["--max_train_samples", 100, "--num_train_epochs", 6, "--global_batch_size", 32]
    with trainer_of(tmp_path / "run", *flags, *SPLIT) as trainer:
        assert np.isfinite(losses(trainer, trainer.plan.total_steps)).all()
        assert trainer.state.sentences == 600
        captured, wanted = shapes(trainer)
        assert captured == wanted


def test_gradients_in_bf16_and_a_process_group_are_not_needed_for_one(tmp_path: Path) -> None:
    with trainer_of(tmp_path / "run", *FLAGS, "--gradient_compression", "bf16", *SPLIT) as trainer:
        assert np.isfinite(losses(trainer, 20)).all()
