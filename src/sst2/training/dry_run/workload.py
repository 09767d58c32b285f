"""What a run has still to do, counted from its batch plan alone: steps, tokens, padding, evaluations, checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from sst2.data.batch_plan import BatchPlan, max_micro_batch_size, micro_batch_indices, split_by_tokens
from sst2.data.splits import Split
from sst2.models.packed_classifier import CPU_TOKENS
from sst2.training.trainer import Trainer

MOST_SHARES = 50_000  # shares of ranks that are laid out; of a longer run, steps at even distances
SENTENCES_AT_ONCE = 1_000_000  # whose lengths are looked up
MOST_SHAPES = 32  # that are all measured where each has a CUDA graph


class PlannedStep(NamedTuple):
    """An optimizer step of the plan.

    Attributes:
        number: counted from 0.
        sentences: of all ranks.
        tokens: of all ranks, without padding.
        padded: of all ranks, with padding.
        busiest: tokens that the device with the most of them computes.
        attention: squares of sentences' lengths of all ranks, added up.
    """

    number: int
    sentences: int
    tokens: int
    padded: int
    busiest: int
    attention: int


@dataclass(frozen=True)
class Workload:
    """The steps, evaluations and checkpoints that are left to do.

    Attributes:
        first, total: steps of the run that are done, and all of them.
        sentences, tokens: of all steps that are left, the latter without padding. Exact.
        steps: those that were laid out: all that are left, or some at even distances and the one with the most tokens.
        shapes: numbers of tokens for each of which a device prepares code or a CUDA graph; 0 where none does.
        evaluated, saved: numbers of steps after which the run evaluates, and writes a checkpoint; the latter at most,
            as if each evaluation were the best so far.
    """

    first: int
    total: int
    sentences: int
    tokens: int
    steps: list[PlannedStep]
    shapes: int
    evaluated: list[int]
    saved: list[int]

    @classmethod
    def of(cls, trainer: Trainer) -> "Workload":
        """Count what is left after the state of a trainer."""
        settings, plan, state = trainer.settings, trainer.plan, trainer.state
        first, total = state.step, plan.total_steps
        tokens = tokens_of_steps(plan, trainer.splits["train"], first)
        numbers = _steps_to_lay_out(tokens, trainer.accelerator.num_processes) + first
        steps = [_lay_out(trainer, int(number)) for number in numbers]
        has_shapes = trainer.step_runner.has_graphs or (
            trainer.strategy.device.type == "cpu" and settings.batching == "packed"
        )
        last = [total] if total > first else []
        every = settings.eval_steps or plan.steps_per_epoch
        evaluated = [*multiples(every, first, total), *last]
        if trainer.is_evaluation_due:  # an earlier start was stopped before it
            evaluated.append(first)
        saved = [*last, *(evaluated if settings.load_best_model_at_end else [])]
        if settings.checkpointing_steps:
            saved += multiples(settings.checkpointing_steps, first, total)
        return cls(
            first=first,
            total=total,
            sentences=_sentences_before(plan, total) - _sentences_before(plan, first),
            tokens=int(tokens.sum()),
            steps=steps,
            shapes=len({step.busiest for step in steps}) if has_shapes else 0,
            evaluated=sorted({*evaluated}),
            saved=sorted({*saved}),
        )

    @property
    def left(self) -> int:
        """Steps that are left."""
        return self.total - self.first

    @property
    def padding_share(self) -> float:
        """Share of the tokens of all devices that is padding, as a run logs it."""
        padded = sum(step.padded for step in self.steps)
        return 1 - sum(step.tokens for step in self.steps) / padded if padded else 0.0

    @property
    def largest(self) -> PlannedStep:
        """The step in which a device computes the most tokens."""
        return max(self.steps, key=lambda step: step.busiest)

    def to_measure(self, each_shape: bool) -> list[PlannedStep]:
        """Steps that stand for all, in order of size: the largest and the smallest, that of most attention, quartiles.

        With `each_shape`, one of every number of tokens if they are few: a device may keep memory for each.
        """
        by_size = sorted(self.steps, key=lambda step: step.busiest, reverse=True)
        if not by_size:
            return []
        of_shapes = {step.busiest: step for step in by_size}
        if each_shape and len(of_shapes) <= MOST_SHAPES:
            return [*of_shapes.values()]
        most_attention = max(by_size, key=lambda step: step.attention)
        quartiles = [by_size[round(quarter * (len(by_size) - 1) / 4)] for quarter in range(5)]
        chosen = {step.number: step for step in (most_attention, *quartiles)}
        return sorted(chosen.values(), key=lambda step: step.busiest, reverse=True)

    def seconds(self, measured: Sequence[tuple[int, float]]) -> float:
        """Of all steps that are left, from some that were measured: by the tokens of the busiest device, and seconds.

        Between two measured numbers of tokens, the time is on the line between them.
        """
        if not self.steps:
            return 0.0
        by_tokens: dict[int, list[float]] = {}
        for tokens, seconds in sorted(measured):
            by_tokens.setdefault(tokens, []).append(seconds)
        means = [sum(times) / len(times) for times in by_tokens.values()]
        of_steps = np.interp([step.busiest for step in self.steps], [*by_tokens], means)
        return float(of_steps.mean() * self.left)


def tokens_of_steps(plan: BatchPlan, train: Split, first: int) -> np.ndarray:
    """Tokens without padding of each step from `first` on, (steps,) int64."""
    at_once = max(1, SENTENCES_AT_ONCE // plan.global_batch_size)
    tokens, step = [np.zeros(0, dtype=np.int64)], first
    while step < plan.total_steps:
        end_of_epoch = (step // plan.steps_per_epoch + 1) * plan.steps_per_epoch
        end = min(step + at_once, end_of_epoch, plan.total_steps)
        lengths = train.lengths(np.concatenate([plan.indices(number) for number in range(step, end)]))
        tokens.append(np.add.reduceat(lengths, np.arange(0, len(lengths), plan.global_batch_size)))
        step = end
    return np.concatenate(tokens)


def multiples(every: int, first: int, total: int) -> range:
    """Steps after which something is done that comes every so many, after `first` and up to `total`."""
    return range((first // every + 1) * every, total + 1, every)


def _sentences_before(plan: BatchPlan, step: int) -> int:
    epochs, steps = divmod(step, plan.steps_per_epoch)
    return epochs * plan.num_sentences + min(steps * plan.global_batch_size, plan.num_sentences)


def _steps_to_lay_out(tokens: np.ndarray, world_size: int) -> np.ndarray:
    """Numbers of steps, (steps,) int64, from 0 for the first of `tokens`."""
    left = len(tokens)
    count = min(left, max(1, MOST_SHARES // world_size))
    if count == left:
        return np.arange(left)
    return np.unique([*np.linspace(0, left - 1, count).astype(np.int64), int(tokens.argmax()), int(tokens.argmin())])


def _lay_out(trainer: Trainer, number: int) -> PlannedStep:
    """A step as the script makes it: the same shards and micro-batches of all ranks."""
    settings, train, device = trainer.settings, trainer.splits["train"], trainer.strategy.device
    world_size, most_sentences = trainer.accelerator.num_processes, max_micro_batch_size(settings, device)
    indices = trainer.plan.indices(number)
    lengths = train.lengths(indices)
    shards = split_by_tokens(indices, lengths, world_size)
    padded, busiest = 0, 0
    for rank in range(world_size):
        computed = 0
        for micro_batch, _ in micro_batch_indices(shards, rank, most_sentences):
            own = train.lengths(micro_batch)
            if settings.batching == "packed":
                size = trainer.step_runner.padded(len(own), int(own.sum()))
                multiple = CPU_TOKENS if device.type == "cpu" else 1
            else:
                size, multiple = len(own) * int(own.max()), 1
            padded += size
            computed += -(-size // multiple) * multiple
        busiest = max(busiest, computed)
    return PlannedStep(number, len(indices), int(lengths.sum()), padded, busiest, int((lengths**2).sum()))


@dataclass(frozen=True)
class OneStep(BatchPlan):
    """A plan all of whose steps have the sentences of one step of the real plan."""

    chosen: int

    def indices(self, step: int) -> np.ndarray:  # noqa: ARG002 (all steps are one)
        """Indices of the sentences of the chosen step: see `BatchPlan.indices`."""
        return super().indices(self.chosen)


def shortened(split: Split, batch_size: int, most_batches: int) -> Split:
    """A split of so many of its evaluation batches at most, at even distances: the first has the longest sentences."""
    batches = -(-len(split) // batch_size)
    if batches <= most_batches:
        return split
    order = np.argsort(-split.lengths(), kind="stable")
    chosen = np.unique(np.linspace(0, batches - 1, most_batches).astype(np.int64))
    rows = np.concatenate([order[batch * batch_size : (batch + 1) * batch_size] for batch in chosen])
    ids = [split.input_ids[split.offsets[row] : split.offsets[row + 1]] for row in rows]
    return replace(
        split,
        sentences=[split.sentences[int(row)] for row in rows],
        labels=split.labels[rows],
        input_ids=np.concatenate(ids),
        offsets=np.concatenate([[0], np.cumsum(split.lengths(rows))]),
    )
