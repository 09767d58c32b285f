"""Steps in parts, on one process: what is captured when, and what a capture that fails leaves."""

from pathlib import Path
from typing import Any

import pytest

from sst2.distributed.strategies.flat import FlatStrategy
from sst2.training.steps.split_graphs import SplitGraphRunner
from tests.support.running import Finished

FLAGS = ["--smoke", "--max_train_steps", 12, "--max_train_samples", 100, "--logging_steps", 1, "--dropout", 0.1]


def losses(run: Finished) -> list[float]:
    assert run.code == 0, run.stderr
    return [line["loss"] for line in run.logged("train")]


def test_capturing_changes_neither_weights_nor_random_states(train_here: Any, tmp_path: Path) -> None:
    runs = [train_here(*FLAGS, "--cuda_graphs", way, run_dir=tmp_path / way) for way in ("no", "yes")]
    eager, split = map(losses, runs)
    assert split[0] == pytest.approx(eager[0], rel=0.05)  # dropout is drawn for padding, too
    again = losses(train_here(*FLAGS, "--cuda_graphs", "yes", run_dir=tmp_path / "again"))
    assert split == again


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


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_capture_that_fails_leaves_steps_without_graphs(
    accumulation: int, train_here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*FLAGS, "--gradient_accumulation_steps", accumulation, "--dropout", 0]
    expected = losses(train_here(*flags, run_dir=tmp_path / "eager"))

    class Refused(FlatStrategy):
        def prepare_optimizer(self, optimizer_step: Any) -> None:
            raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    monkeypatch.setattr("sst2.distributed.strategies.FlatStrategy", Refused)
    run = train_here(*flags, "--cuda_graphs", "yes", run_dir=tmp_path / "refused")
    assert losses(run) == pytest.approx(expected, rel=1e-5)
    warning = "steps cannot be captured as CUDA graphs (operation not permitted when stream is capturing): "
    assert run.stderr.count(warning) == 1
