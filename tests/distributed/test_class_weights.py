"""With weights of classes and label smoothing, a step's gradient is torch's of the whole batch, on any ranks."""

import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import DistilBertForSequenceClassification

from sst2.config.settings import Settings
from sst2.data.batch_plan import micro_batch_indices, split_by_tokens
from sst2.data.collation import collate
from sst2.data.sample import sample_config
from sst2.data.splits import Split
from sst2.distributed.strategies import prepare
from sst2.models.packed_classifier import PackedClassifier
from sst2.models.trial import pack_classifier
from sst2.training.loss import TrainingLoss
from sst2.training.optimizer import build_optimizer
from tests.support.processes import free_port, start
from train_sst2 import forward_backward_step

NAMES, WEIGHTS, SMOOTHING = ["a", "b", "c"], [1.0, 4.0, 20.0], 0.1
CPU = torch.device("cpu")


def sentences() -> Split:
    """23 of them, of 3 to 30 tokens, few of the classes that weigh most: ranks have unequal weights."""
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(3, 31, 23))])
    labels = np.array([0] * 17 + [1] * 5 + [2], dtype=np.int16)
    ids = rng.integers(5, 300, offsets[-1]).astype(np.int32)
    return Split("train", [""] * 23, rng.permutation(labels), ids, offsets, NAMES)


def classifier() -> PackedClassifier:
    torch.manual_seed(0)
    config: Any = sample_config(300)
    config.update({"id2label": dict(enumerate(NAMES)), "dropout": 0.0, "attention_dropout": 0.0})
    config.update({"seq_classif_dropout": 0.0})
    return pack_classifier(DistilBertForSequenceClassification(config))


def gradient_of_a_rank(rank: int, world_size: int, port: int, micro_batch_size: int) -> dict[str, np.ndarray]:
    """What `forward_backward_step` leaves for AdamW, by the name of each weight."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if world_size == 1:
        del os.environ["WORLD_SIZE"]
    model, train = classifier(), sentences()
    settings = Settings(
        output_dir="/nonexistent",
        label_names=NAMES,
        class_weights=[*map(str, WEIGHTS)],
        label_smoothing=SMOOTHING,
        per_device_train_batch_size=micro_batch_size,
    )
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == world_size
    strategy = prepare(accelerator, model, build_optimizer(model, settings))
    loss = TrainingLoss(settings, train, CPU)
    trainer: Any = SimpleNamespace(
        strategy=strategy, accelerator=accelerator, settings=settings, loss=loss, start_phase=lambda *phase: None
    )
    shards = split_by_tokens(np.arange(len(train)), train.lengths(), world_size)
    chosen = micro_batch_indices(shards, rank, micro_batch_size)
    micro_batches = [(collate(train, indices, 0, "packed"), weight) for indices, weight in chosen]
    forward_backward_step(trainer, micro_batches, loss.weight_of(train.labels))
    return gradients_of(model)


def gradient_of_torch() -> dict[str, np.ndarray]:
    """Of `CrossEntropyLoss` on the whole batch, padded, in one process."""
    model, train = classifier(), sentences()
    batch = collate(train, np.arange(len(train)), 0, "padded")
    mean = nn.CrossEntropyLoss(weight=torch.tensor(WEIGHTS), label_smoothing=SMOOTHING)
    mean(model(**batch.inputs).logits, batch.labels).backward()
    return gradients_of(model)


def gradients_of(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: weight.grad.numpy() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(1, 23), (1, 5), (2, 23), (3, 4)])
def test_the_gradient_of_a_step_is_torchs_of_its_whole_batch(world_size: int, micro_batch_size: int) -> None:
    port = free_port()
    answers = [start(gradient_of_a_rank, rank, world_size, port, micro_batch_size)[1] for rank in range(world_size)]
    expected = gradient_of_torch()
    for answer in answers:
        gradients = answer.recv()
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            largest = np.abs(expected[name]).max()
            np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-5 * largest + 1e-9, err_msg=name)
