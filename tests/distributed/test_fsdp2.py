"""FSDP2's weights and moments become whole in a checkpoint, and go back to any strategy.

accelerate shards on GPUs only, so these ranks let torch's `fully_shard` work on their CPUs.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import DistilBertForSequenceClassification

from sst2.config.settings import Settings
from sst2.data.sample import sample_config
from sst2.distributed.strategies import prepare
from sst2.distributed.strategies.fsdp2 import FSDP2Strategy
from sst2.distributed.strategies.strategy import Strategy
from sst2.training.optimizer import build_optimizer
from tests.support.processes import free_port, start

SETTINGS = Settings(output_dir="/nonexistent", learning_rate=0.01)
WORLD_SIZE = 3  # divides few of the model's shapes


def new_model(seed: int) -> DistilBertForSequenceClassification:
    torch.manual_seed(seed)
    config = sample_config(50)
    config.dropout = config.attention_dropout = config.seq_classif_dropout = 0.0
    return DistilBertForSequenceClassification(config)


def sharded(accelerator: Accelerator, seed: int) -> FSDP2Strategy:
    model = new_model(seed)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [
        {"params": [names[id(parameter)] for parameter in group["params"]]}
        for group in build_optimizer(model, SETTINGS).param_groups
    ]
    for layer in model.distilbert.transformer.layer:
        fully_shard(layer)
    fully_shard(model)
    # accelerate gives the optimizer the sharded parameters in place of the old ones
    optimizer = accelerator.prepare_optimizer(build_optimizer(model, SETTINGS))
    return FSDP2Strategy(accelerator, model, optimizer, groups)


def train(strategy: Strategy, steps: range, world_size: int) -> list[float]:
    norms = []
    for step in steps:
        ids = torch.randint(50, (6, 9), generator=torch.Generator().manual_seed(step))
        for is_last in (False, True):
            with strategy.accumulate(is_last):
                logits = strategy.model(input_ids=ids[int(is_last) :: 2]).logits
                # every rank has the same sentences, so that the mean over them is what one rank has
                strategy.backward(torch.nn.functional.cross_entropy(logits, ids[int(is_last) :: 2, 0] % 2) / 2)
        norms.append(float(strategy.clip_and_step(max_norm=0.5)))
    return norms


def on_each_rank(rank: int, port: int, folder: Path) -> Any:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD_SIZE)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(WORLD_SIZE), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == WORLD_SIZE
    strategy = sharded(accelerator, seed=0)
    assert all(isinstance(parameter, DTensor) for parameter in strategy.model.parameters())
    norms = train(strategy, range(3), WORLD_SIZE)
    waited = strategy.waiting.take()
    saved = strategy.weights(), strategy.training_state()
    if rank == 0:
        torch.save(saved, folder / "saved.pt")
    norms += train(strategy, range(3, 6), WORLD_SIZE)
    # Another model takes over what was saved, and goes the same way.
    torch.distributed.barrier()
    weights, state = torch.load(folder / "saved.pt", weights_only=True)
    resumed = sharded(accelerator, seed=1)
    resumed.load_weights(weights)
    resumed.load_training_state(state)
    again = train(resumed, range(3, 6), WORLD_SIZE)
    ends = strategy.weights(), resumed.weights()  # whole on the main process
    if rank == 0:
        assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
        torch.save(ends[1], folder / "end.pt")
    torch.distributed.barrier()
    # What an evaluation has gathered is not what is evaluated once other weights are loaded.
    logits = [evaluate(resumed)]
    for content in (weights, torch.load(folder / "end.pt", weights_only=True)):
        resumed.load_weights(content)
        logits.append(evaluate(resumed))
    assert not torch.equal(logits[1], logits[0])
    assert torch.equal(logits[2], logits[0])
    return {
        "norms": norms,
        "again": again,
        "waited": waited,
        "end": {name: end.numpy() for name, end in ends[0].items()},
    }


@torch.no_grad()
def evaluate(strategy: Strategy) -> torch.Tensor:
    logits: torch.Tensor = strategy.model(input_ids=torch.arange(2, 20)[None]).logits
    return logits


@pytest.mark.slow
def test_what_is_spread_is_saved_whole_and_goes_on(tmp_path: Path) -> None:
    port = free_port()
    answers = [start(on_each_rank, rank, port, tmp_path)[1] for rank in range(WORLD_SIZE)]
    results = [answer.recv() for answer in answers]
    first = results[0]
    assert first["again"] == first["norms"][3:]
    assert all(result["waited"] > 0 for result in results)

    # One process alone goes the same way, also from what the ranks have saved.
    for begin in (0, 3):
        accelerator = Accelerator(cpu=True)
        model = new_model(begin)
        whole = prepare(accelerator, model, build_optimizer(model, SETTINGS))
        if begin:
            weights, state = torch.load(tmp_path / "saved.pt", weights_only=True)
            whole.load_weights(weights)
            whole.load_training_state(state)
        assert train(whole, range(begin, 6), 1) == pytest.approx(first["norms"][begin:], rel=1e-4)
        # The gradient of a key's bias is zero, and AdamW makes steps of the rounding errors in its place.
        for name, tensor in [item for item in whole.weights().items() if not item[0].endswith("k_lin.bias")]:
            torch.testing.assert_close(tensor, torch.from_numpy(first["end"][name]), rtol=1e-3, atol=1e-4)
