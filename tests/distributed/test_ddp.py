"""Gradients are sent with the last pass of a step, behind its arithmetic; what is waited for is measured."""

import os
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn import functional as F
from transformers import DistilBertForSequenceClassification

from sst2.config.settings import Settings
from sst2.data.sample import sample_config
from sst2.distributed.strategies import prepare
from sst2.distributed.strategies import strategy as strategy_module
from sst2.training.optimizer import build_optimizer
from tests.support.processes import free_port, start


def passes_of_a_step(rank: int, port: int) -> list[list[str]]:
    """What happens, in which order, in a pass that is not the last of its step, and in the last one."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    events: list[str] = []
    sent = bf16_compress_hook

    def send(state: Any, bucket: Any) -> Any:
        events.append("sent")
        return sent(state, bucket)

    vars(strategy_module)["bf16_compress_hook"] = send
    config = sample_config(20_000)
    config.update({"dim": 256, "hidden_dim": 1024})  # or all gradients would fit into the first bucket
    model = DistilBertForSequenceClassification(config)
    optimizer = build_optimizer(model, Settings(output_dir="/nonexistent"))
    strategy = prepare(Accelerator(cpu=True), model, optimizer, compress=True)
    embeddings = model.distilbert.embeddings.word_embeddings.weight
    embeddings.register_post_accumulate_grad_hook(lambda parameter: events.append("last gradient"))
    seen = []
    for is_last in (False, True):
        events.clear()
        with strategy.accumulate(is_last):
            logits = strategy.model(input_ids=torch.arange(2, 20)[None]).logits
            strategy.backward(F.cross_entropy(logits, torch.tensor([1])))
        seen.append([*events])
    assert strategy.clip_and_step(max_norm=1.0) > 0
    assert strategy.waiting.take() > 0
    assert strategy.waiting.take() == 0
    assert all(parameter.grad is None for parameter in model.parameters())
    return seen


@pytest.mark.slow
def test_sending_begins_before_the_last_gradient_and_only_in_the_last_pass() -> None:
    port = free_port()
    answers = [start(passes_of_a_step, rank, port)[1] for rank in range(2)]
    for answer in answers:
        first, last = answer.recv()
        assert first == ["last gradient"]
        assert last[0] == "sent"
        assert last.count("sent") >= 2
        assert last.index("last gradient") > 0
