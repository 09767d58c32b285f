"""Which jobs have their steps captured, and what the others are told."""

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sst2.config.arguments import parse_arguments
from sst2.training.steps import choose
from sst2.training.steps.cuda_graphs import CudaGraphRunner
from sst2.training.steps.runner import StepRunner
from tests.support.running import Finished

BF16 = ["--mixed_precision", "bf16"]


@pytest.mark.parametrize(
    ("flags", "fits", "expected"),
    [
        (BF16, True, True),
        (BF16, False, False),
        (["--mixed_precision", "fp16"], True, False),
        ([*BF16, "--batching", "padded"], True, False),
        ([*BF16, "--cuda_graphs", "no"], True, False),
        ([*BF16, "--gradient_accumulation_steps", "2"], True, False),
        ([*BF16, "--gradient_checkpointing"], True, False),
    ],
)
def test_whole_steps_are_captured_on_one_gpu(
    flags: list[str], fits: bool, expected: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = parse_arguments(["--smoke", "--output_dir", str(tmp_path / "run"), *flags])
    settings = replace(
        settings, gradient_accumulation_steps=settings.gradient_accumulation_steps or 1, global_batch_size=32
    )
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))])
    trainer: Any = SimpleNamespace(
        settings=settings,
        strategy=SimpleNamespace(fits_a_graph=fits, device=torch.device("cpu"), optimizer=optimizer),
        splits={"train": SimpleNamespace(lengths=lambda: np.array([3, 4]))},
        tokenizer=SimpleNamespace(pad_token_id=0),
        step_metrics=SimpleNamespace(add=None),
        start_phase=None,
    )
    found = choose.choose_runner(trainer)
    assert type(found) is (CudaGraphRunner if expected else StepRunner)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--batching", "padded"], "padded batches have too many shapes"),
        (["--gradient_checkpointing"], "gradient checkpointing restores random states on the host"),
    ],
    ids=["padded", "checkpointing"],
)
def test_who_asks_for_graphs_is_told_why_there_are_none(
    flags: list[str], reason: str, train_here: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    run: Finished = train_here("--smoke", "--max_train_steps", 2, "--cuda_graphs", "yes", *flags)
    assert run.code == 0, run.stderr
    assert f"--cuda_graphs yes: steps are run operation by operation, since {reason}" in run.stderr
