"""Steps that are recorded and launched whole do what steps do that are launched operation by operation."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from sst2.config.arguments import parse_arguments
from sst2.distributed.stop_requests import StopRequests
from sst2.runs.run_folder import RunFolder
from sst2.training.steps.cuda_graphs import CudaGraphRunner
from sst2.training.steps.runner import StepRunner
from sst2.training.trainer import Trainer
from tests.support.architectures import write_encoder
from train_sst2 import setup, train_step

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]


@contextmanager
def trainer_of(folder: Path, *flags: object, source: Sequence[object] = ("--smoke",)) -> Iterator[Trainer]:
    command = [*source, "--mixed_precision", "bf16", "--output_dir", folder, *flags]
    settings = parse_arguments([*map(str, command)])
    try:
        with RunFolder(settings.run_dir) as run, setup(settings, StopRequests(), run) as trainer:
            yield trainer
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def losses(trainer: Trainer, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        train_step(trainer)
        found.append(trainer.pop_averages()["loss"])
    return found


FLAGS = ["--dropout", 0, "--max_train_steps", 60, "--global_batch_size", 32, "--learning_rate", "3e-4"]


@pytest.mark.parametrize("more", ["", "--class_weights 1 9 --label_smoothing 0.1", "--kernels triton"])
def test_losses_are_those_of_steps_operation_by_operation(more: str, tmp_path: Path) -> None:
    assert_recorded_steps_are_plain_ones(tmp_path, ["--smoke"], [*FLAGS, *more.split()])


@pytest.mark.parametrize("name", ["bert", "roberta", "albert", "modernbert", "eurobert"])
def test_so_are_those_of_other_architectures(name: str, tmp_path: Path, tsv_files: tuple[Path, Path]) -> None:
    model = write_encoder(name, tmp_path / "encoder", hidden_size=128)
    source = ["--model_name_or_path", model, "--train_file", tsv_files[0], "--validation_file", tsv_files[1]]
    assert_recorded_steps_are_plain_ones(tmp_path, source, [*FLAGS, "--max_length", 64])


def assert_recorded_steps_are_plain_ones(tmp_path: Path, source: list[object], flags: list[object]) -> None:
    with trainer_of(tmp_path / "recorded", *flags, source=source) as trainer:
        recorded = losses(trainer, 60)
        assert isinstance(trainer.step_runner, CudaGraphRunner)
        assert trainer.step_runner.captured >= 2
        weights = trainer.strategy.weights()
    with trainer_of(tmp_path / "plain", *flags, "--cuda_graphs", "no", source=source) as trainer:
        assert type(trainer.step_runner) is StepRunner
        plain = losses(trainer, 60)
        expected = trainer.strategy.weights()
    assert recorded == pytest.approx(plain, rel=0.02, abs=0.005)  # sums on a GPU are not repeatable to the last bit
    distance = sum(float((weights[name] - value).square().sum()) for name, value in expected.items())
    assert distance < 1e-3 * sum(float(value.square().sum()) for value in expected.values())


def test_dropout_is_drawn_anew_and_saved_with_the_random_state(tmp_path: Path) -> None:
    with trainer_of(tmp_path / "run", "--learning_rate", "1e-9", "--max_train_steps", 60) as trainer:
        losses(trainer, 30)
        repeated(trainer)
        assert isinstance(trainer.step_runner, CudaGraphRunner)
        recorded = trainer.step_runner.captured
        assert recorded
        before = torch.cuda.get_rng_state()
        first = [repeated(trainer), repeated(trainer)]
        assert first[0] != first[1]
        torch.cuda.set_rng_state(before)
        assert [repeated(trainer), repeated(trainer)] == pytest.approx(first, rel=1e-3)
        assert trainer.step_runner.captured == recorded  # nothing of this was a step operation by operation


def repeated(trainer: Trainer) -> float:
    """The loss of one and the same step."""
    trainer.state.step = 4
    train_step(trainer)
    return float(trainer.pop_averages()["loss"])


def test_a_recorded_step_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    with trainer_of(tmp_path / "run", "--max_train_steps", 60) as trainer:
        losses(trainer, 30)
        head = trainer.strategy.model.get_parameter("classifier.weight")
        with torch.no_grad():
            saved = head[0, 0].clone()
            head[0, 0] = float("nan")
        before = {name: value.clone() for name, value in trainer.strategy.weights().items()}
        trainer.state.step = 4
        measured = train_step(trainer)
        assert not measured["grad_norm"].isfinite()
        for name, value in trainer.strategy.weights().items():
            torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
        with torch.no_grad():
            head[0, 0] = saved
        trainer.state.step = 5
        assert train_step(trainer)["grad_norm"].isfinite()


def test_an_epochs_short_last_step_is_taken_as_it_is(tmp_path: Path) -> None:
    flags = ["--max_train_samples", 100, "--num_train_epochs", 6, "--global_batch_size", 32]
    with trainer_of(tmp_path / "run", *flags) as trainer:
        assert np.isfinite(losses(trainer, trainer.plan.total_steps)).all()
        assert trainer.state.sentences == 600


@pytest.mark.parametrize("flags", [["--mixed_precision", "fp16"], ["--batching", "padded"]], ids=" ".join)
def test_what_cannot_be_recorded_is_not(flags: list[str], tmp_path: Path) -> None:
    with trainer_of(tmp_path / "run", "--max_train_steps", 10, *flags) as trainer:
        assert not isinstance(trainer.step_runner, CudaGraphRunner)
        losses(trainer, 3)


@pytest.mark.parametrize(("graphs", "kernels"), [("auto", "auto"), ("yes", "auto"), ("yes", "triton"), ("no", "auto")])
def test_the_host_waits_for_nothing(graphs: str, kernels: str, tmp_path: Path) -> None:
    flags = ["--max_train_steps", 60, "--cuda_graphs", graphs, "--kernels", kernels]
    with trainer_of(tmp_path / "run", *flags) as trainer:
        for _ in range(3):
            repeated(trainer)  # whose shape is captured then; metrics are read each time
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(5):
                trainer.state.step = 4
                train_step(trainer)
        finally:
            torch.cuda.set_sync_debug_mode("default")
