"""What one rank reads, all have; and nothing is sent that all have already."""

import errno
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import distributed, nn

from sst2.checkpoints.checkpointer import Checkpointer
from sst2.checkpoints.training_state import TrainingState
from sst2.config.settings import Settings
from sst2.distributed.init import init_distributed
from sst2.distributed.ranks import read_on_main, run_on_main
from sst2.distributed.strategies import prepare
from sst2.training.optimizer import build_optimizer, build_schedule
from sst2.utils.errors import LocalError, StopRequestedError, UserError
from tests.support.processes import free_port, start

TREE = {"weights": [torch.arange(6).reshape(2, 3).T, (torch.ones(2, dtype=torch.bfloat16), "text")], 3: torch.zeros(())}


class WithBuffer(nn.Module):
    """Called as a classifier is; its buffer never changes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.position_ids: torch.Tensor
        self.register_buffer("position_ids", torch.arange(3), persistent=False)

    def forward(self, input_ids: torch.Tensor) -> Any:
        logits = self.linear(input_ids.float().repeat(1, 3)) + self.position_ids[:2]
        return type("Output", (), {"logits": logits})


def join(rank: int, port: int) -> None:
    """Say to this process what a launcher would, of two ranks on CPUs."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}


def answers(work: Any, *arguments: object) -> list[Any]:
    port = free_port()
    return [answer.recv() for _, answer in [start(work, rank, port, *arguments) for rank in range(2)]]


def read_trees(rank: int, port: int) -> list[Any]:
    join(rank, port)
    Accelerator(cpu=True)

    def read() -> Any:
        assert rank == 0
        return TREE

    def refuse() -> Any:
        assert rank == 0
        raise UserError("it is damaged")

    told: list[Any] = []
    try:
        read_on_main(refuse)
    except UserError as error:
        told.append(str(error))
    tree = read_on_main(read)
    own, (ones, text) = tree["weights"]
    told += [own.tolist(), ones.tolist(), str(ones.dtype), text, tree[3].tolist()]
    distributed.barrier()
    return told


def test_what_the_main_process_reads_comes_to_all() -> None:
    for told in answers(read_trees):
        assert told == ["it is damaged", [[0, 3], [1, 4], [2, 5]], [1.0, 1.0], "torch.bfloat16", "text", 0.0]


def fail_on_main(rank: int, port: int) -> list[str]:
    """What two ranks are told of what strikes the work of one."""
    join(rank, port)
    accelerator = Accelerator(cpu=True)
    told = []
    for error in (
        UserError("a mistake"),
        LocalError("of one process, which speaks for all"),
        StopRequestedError("stopped by SIGTERM"),
        OSError(errno.EIO, os.strerror(errno.EIO), "/data/config.yaml"),
    ):

        def fail(error: Exception = error) -> None:
            assert rank == 0
            raise error

        for attempt in (partial(run_on_main, accelerator, fail), partial(read_on_main, fail)):
            try:
                attempt()
            except Exception as raised:
                told.append(f"{type(raised).__name__}: {raised}")
    distributed.barrier()
    return told


def test_what_strikes_the_main_process_all_raise() -> None:
    for told in answers(fail_on_main):
        assert told[::2] == told[1::2]
        assert told[::2] == [
            "UserError: a mistake",
            "UserError: of one process, which speaks for all",
            "StopRequestedError: stopped by SIGTERM",
            "UserError: [Errno 5] Input/output error: '/data/config.yaml': see to that disk or path; checkpoints are "
            "whole, and --resume_from_checkpoint auto goes on from the last",
        ]


def resume(rank: int, port: int, folder: Path) -> tuple[list[float], list[str]]:
    """A step, a checkpoint, another model that takes it over. Returns its weights, and the files read on the way."""
    join(rank, port)
    settings = Settings(output_dir=str(folder / "run"), num_warmup_steps=0, max_train_steps=9)
    accelerator, _ = init_distributed(settings)

    def training() -> tuple[WithBuffer, Checkpointer]:
        model = WithBuffer()
        strategy = prepare(accelerator, model, build_optimizer(model, settings))
        strategy.backward(strategy.model(torch.ones(4, 1)).logits.sum())
        strategy.clip_and_step(1.0)
        schedule = build_schedule(strategy.optimizer, settings)
        return model, Checkpointer(folder / "run" / "checkpoints", accelerator, strategy, schedule, None, settings, {})

    model, checkpoints = training()
    checkpoints.save(TrainingState(step=1))
    checkpoints.wait()
    assert not checkpoints.has_failed
    accelerator.wait_for_everyone()
    resumed, checkpoints = training()
    opened: list[str] = []
    sys.addaudithook(lambda event, details: opened.append(str(details[0])) if event == "open" else None)
    torch.manual_seed(rank)
    checkpoints.load(checkpoints.folder / "step-00000001")
    assert all(torch.equal(own, saved) for own, saved in zip(resumed.parameters(), model.parameters(), strict=True))
    read = [Path(file).name for file in opened if "step-00000001" in file]
    weights = resumed.linear.weight.flatten().tolist()
    distributed.barrier()
    return weights, read


def test_a_checkpoint_is_read_by_one_rank(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (weights, read), (others, nothing) = answers(resume, tmp_path)
    assert weights == others
    assert {"state.json", "training.pt"} <= set(read)
    assert nothing == []


def sent_in_a_step(rank: int, port: int) -> list[str]:
    """The collective operations of two forward and backward passes."""
    join(rank, port)
    settings = Settings(output_dir="/nonexistent")
    accelerator, _ = init_distributed(settings)
    model = WithBuffer()
    strategy = prepare(accelerator, model, build_optimizer(model, settings))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(2):
            strategy.backward(strategy.model(torch.ones(4, 1)).logits.sum())
    distributed.barrier()
    return sorted({event.key for event in profile.key_averages() if event.key.startswith("gloo:")})


def test_only_gradients_are_sent_in_a_step() -> None:
    assert answers(sent_in_a_step) == [["gloo:all_reduce"]] * 2
