"""The order of sentences: which of them make which optimizer step, and how devices share them.

The sentences of step k depend on (seed, k, global batch size) alone, so a job that resumes, or runs on another number
of devices, only has to know k.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from sst2.config.settings import Settings
from sst2.utils.errors import UserError


@dataclass(frozen=True)
class BatchPlan:
    """The order in which training visits its sentences.

    Attributes:
        num_sentences: size of the training split.
        global_batch_size: sentences of one optimizer step over all devices. The last step of an epoch may have fewer.
        seed: with the epoch's number, the whole source of the order.
        total_steps: optimizer steps of the whole run.
    """

    num_sentences: int
    global_batch_size: int
    seed: int
    total_steps: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the training sentences; the last one may have fewer of them."""
        return math.ceil(self.num_sentences / self.global_batch_size)

    def indices(self, step: int) -> np.ndarray:
        """Indices of the sentences of optimizer step `step`, counted from 0: (sentences,) int64."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.global_batch_size
        return epoch_order(self.num_sentences, self.seed, epoch)[start : start + self.global_batch_size]


@lru_cache(maxsize=1)  # every step of an epoch asks for it
def epoch_order(num_sentences: int, seed: int, epoch: int) -> np.ndarray:
    """Indices of all sentences in the order of one epoch: (num_sentences,) int64."""
    order = np.random.default_rng([seed, epoch]).permutation(num_sentences)
    order.setflags(write=False)
    return order


def split_by_tokens(indices: np.ndarray, lengths: np.ndarray, world_size: int) -> list[np.ndarray]:
    """The sentences of one optimizer step for each device, in order of length.

    They are shared out in rounds, the longest first; in each round the device with the fewest tokens so far gets the
    longest: devices get about equally many tokens, and as many sentences but for one, which is short.

    Args:
        indices: (sentences,) of the step's sentences in their split.
        lengths: (sentences,) tokens of each.
        world_size: number of devices. The last ones get none, if there are fewer sentences than devices.
    """
    order = np.argsort(lengths, kind="stable")
    by_length, lengths = indices[order], lengths[order]
    if world_size == 1:
        return [by_length]
    device, tokens = np.empty(len(indices), dtype=np.int64), np.zeros(world_size, dtype=np.int64)
    for end in range(len(indices), 0, -world_size):
        longest = np.arange(end - 1, max(end - 1 - world_size, -1), -1)
        takers = np.argsort(tokens, kind="stable")[: len(longest)]
        device[longest] = takers
        tokens[takers] += lengths[longest]
    return [by_length[device == number] for number in range(world_size)]


def micro_batch_indices(shards: list[np.ndarray], rank: int, micro_batch_size: int) -> list[tuple[np.ndarray, float]]:
    """The micro-batches of one device in one optimizer step.

    Every device makes as many, since they meet in collective operations; where the sentences do not go round, one is
    repeated with weight 0, which leaves loss and gradient alone.

    Returns:
        Pairs of indices, of one sentence at least and `micro_batch_size` at most, and the weight of each sentence in
        that micro-batch, 1.0 or 0.0.
    """
    count = math.ceil(max(map(len, shards)) / micro_batch_size)
    parts = [part for part in np.array_split(shards[rank], count) if len(part)]
    filler = [(shards[0][:1], 0.0)] * (count - len(parts))
    return [(part, 1.0) for part in parts] + filler


def plan_batches(settings: Settings, num_sentences: int, world_size: int) -> tuple[Settings, BatchPlan]:
    """Work out the numbers of sentences and steps that the flags leave open.

    Returns:
        The settings with global batch size, accumulation, total and warm-up steps filled in, and the plan.

    Raises:
        UserError: the batch sizes contradict each other, or leave a device without a sentence; a step to profile is
            beyond the last one.
    """
    per_device, accumulation = settings.per_device_train_batch_size, settings.gradient_accumulation_steps
    batch = settings.global_batch_size or per_device * world_size * (accumulation or 1)
    needed = math.ceil(math.ceil(batch / world_size) / per_device)
    if batch < world_size:
        raise UserError(
            f"--global_batch_size {batch} leaves some of {world_size} processes without a sentence: "
            f"start 1 to {batch} processes, or give at least {world_size}"
        )
    if accumulation not in (None, needed):
        raise UserError(
            f"--global_batch_size {batch} takes {needed} forward passes of {per_device} on {world_size} processes, "
            f"not --gradient_accumulation_steps {accumulation}: drop one of the two"
        )
    total = settings.max_train_steps or math.ceil(settings.num_train_epochs * math.ceil(num_sentences / batch))
    if settings.profiled_steps.stop > total + 1:
        raise UserError(f"--profile_steps {settings.profile_steps} cannot work: the run has {total} steps")
    warmup = 0 if settings.lr_scheduler_type == "constant" else settings.num_warmup_steps
    if warmup is None:
        warmup = math.ceil(settings.warmup_ratio * total)
    settings = replace(
        settings,
        global_batch_size=batch,
        gradient_accumulation_steps=needed,
        max_train_steps=total,
        num_warmup_steps=warmup,
    )
    return settings, BatchPlan(num_sentences, batch, settings.seed, total)


def max_micro_batch_size(settings: Settings, device: torch.device) -> int:
    """Sentences in one micro-batch of a device, at most.

    A GPU takes all it may, and packed sentences need no padding in any number. A CPU is as fast with few sentences as
    with many, and a few of about one length need little padding: with 8, training on SST-2 ran 1.4 to 1.7 times as fast
    as with 32 (benchmarks/results/cpu_forward_size.json).
    """
    size = settings.per_device_train_batch_size
    return min(size, 8) if device.type == "cpu" and settings.batching == "padded" else size
