"""Steps in parts, on one process: what is captured when, and what a capture that fails leaves."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sst2.distributed.strategies.flat import FlatStrategy
from sst2.training.steps.split_graphs import SplitGraphRunner
from tests.support.running import Finished

FLAGS = ["--smoke", "--max_train_steps", 12, "--max_train_samples", 100, "--logging_steps", 1, "--dropout", 0.1]


def losses(run: Finished) -> list[float]:
    assert run.code == 0, run.stderr
    return [line["loss"] for line in run.logged("train")]


def test_capturing_changes_neither_weights_nor_random_states(train_here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    differences: list[str] = []

    class Watched(SplitGraphRunner):
        def _capture(self, *functions: Any) -> None:
            before, state = self._state(), torch.get_rng_state()
            super()._capture(*functions)
            differences.extend(name for name, value in self._state().items() if not torch.equal(before[name], value))
            differences.extend(["random state"] * (not torch.equal(state, torch.get_rng_state())))

        def _state(self) -> dict[str, torch.Tensor]:
            return {name: value.clone() for name, value in self._strategy.weights().items()}

    monkeypatch.setattr("sst2.training.steps.choose.SplitGraphRunner", Watched)
    run = train_here(*FLAGS, "--cuda_graphs", "yes")
    assert (run.code, differences) == (0, [])
    assert "steps are captured in " in run.stderr


def test_a_shape_that_is_not_captured_is_run_as_it_is(
    train_here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*FLAGS, "--cuda_graphs", "yes", "--dropout", 0]
    expected = losses(train_here(*flags, run_dir=tmp_path / "all"))
    captured = []

    class Some(SplitGraphRunner):
        def _capture(self, *functions: Any) -> None:
            self._sizes = self._sizes[::2]
            super()._capture(*functions)
            captured.append(self.captured)

    monkeypatch.setattr("sst2.training.steps.choose.SplitGraphRunner", Some)
    found = losses(train_here(*flags, run_dir=tmp_path / "some"))
    assert found == pytest.approx(expected, rel=1e-5)  # its batches are not padded
    assert captured[0] > 0


class Failing(FlatStrategy):
    """Lacks memory half way: in a pass, or when AdamW's state is made."""

    place = "pass"
    error: type[RuntimeError] = torch.OutOfMemoryError

    def backward(self, loss: torch.Tensor) -> None:
        if self.place == "pass":
            self._trained[-1].grad = torch.ones_like(self._trained[-1])  # as the passes go, from the head down
            self.fail()
        super().backward(loss)

    def prepare_optimizer(self, optimizer_step: Any) -> None:
        self._gradients.fill_(float("nan"))
        for weight, view in zip(self._trained, self._views, strict=True):
            weight.grad = view
        self.fail()

    def fail(self) -> None:
        Failing.place = "nowhere"
        raise self.error("operation not permitted when stream is capturing\nmore lines")


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("place", ["pass", "optimizer"])
def test_want_of_memory_leaves_steps_without_graphs(
    place: str, accumulation: int, train_here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*FLAGS, "--gradient_accumulation_steps", accumulation, "--dropout", 0]
    expected = losses(train_here(*flags, run_dir=tmp_path / "eager"))
    monkeypatch.setattr(Failing, "place", place)
    monkeypatch.setattr("sst2.distributed.strategies.FlatStrategy", Failing)
    run = train_here(*flags, "--cuda_graphs", "yes", run_dir=tmp_path / "refused")
    assert losses(run) == pytest.approx(expected, rel=1e-5)
    assert run.stderr.count("the GPU has no room for CUDA graphs: steps are run operation by operation") == 1


def test_a_device_that_refuses_ends_the_run_before_its_first_step(
    train_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Failing, "error", RuntimeError)
    monkeypatch.setattr(Failing, "place", "optimizer")
    monkeypatch.setattr("sst2.distributed.strategies.FlatStrategy", Failing)
    run = train_here(*FLAGS, "--cuda_graphs", "yes")
    assert run.code == 2
    reason = "(operation not permitted when stream is capturing): give --cuda_graphs no"
    assert f"this GPU cannot capture steps as CUDA graphs {reason}" in run.stderr
    assert not (run.run_dir / "metrics.jsonl").exists() or not run.logged("train")
