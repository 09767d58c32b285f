"""Few shapes for many packed micro-batches: each is padded to the next one, whose CUDA graph may be replayed."""

from dataclasses import dataclass

import numpy as np
from torch.nn import functional as F

from sst2.data.batch_plan import BatchPlan, micro_batch_indices, split_by_tokens
from sst2.data.collation import Batch
from sst2.data.packing import Pack

FEWEST_TOKENS = 64  # numbers of tokens are rounded up to a multiple of it,
BUCKETS = 8  # or of the power of two below the usual number divided by this
IGNORED = -100  # torch's label for what has none
MOST_STEPS = 2000  # of a run that are looked at for the shapes that come; shapes that they miss are rare


@dataclass(frozen=True)
class Buckets:
    """The shapes of one rank's micro-batches.

    Attributes:
        sentences: of a micro-batch, at most.
        multiple: of which numbers of tokens are one; a multiple of `FEWEST_TOKENS`.
        longest: tokens of the longest sentence that may come, or of a filler.
    """

    sentences: int
    multiple: int
    longest: int

    @classmethod
    def of(cls, sentences: int, lengths: np.ndarray) -> "Buckets":
        """For micro-batches of `sentences` at most, from sentences of these lengths, (training sentences,)."""
        usual = sentences * float(lengths.mean())
        multiple = max(FEWEST_TOKENS, 2 ** int(np.log2(usual / BUCKETS)))
        return cls(sentences, multiple, max(int(lengths.max()), FEWEST_TOKENS + 1))

    @property
    def slots(self) -> int:
        """Sentences of every padded micro-batch: a batch that is full has some of padding, too."""
        return self.sentences + self.multiple // FEWEST_TOKENS

    def tokens(self, sentences: int, tokens: int) -> int:
        """Of a micro-batch of that many sentences and tokens, when it is padded."""
        return -(-(tokens + self.slots - sentences) // self.multiple) * self.multiple

    def pad(self, batch: Batch) -> Batch:
        """A packed batch with some sentences more, of padding, that no loss looks at: its shape is one of few.

        Each of them has a token at least: attention might leave the gradients of an empty one as it finds them in
        memory. `batch` is on the CPU.
        """
        count = self.slots - len(batch.labels)
        spare = self.tokens(len(batch.labels), batch.size) - batch.size
        lengths = np.concatenate([batch.inputs["pack"].lengths, np.diff(spare * np.arange(count + 1) // count)])
        filled = {name: F.pad(batch.inputs[name], (0, spare)) for name in ("input_ids", "position_ids")}
        labels = F.pad(batch.labels, (0, count), value=IGNORED)
        return Batch(filled | {"pack": Pack.of(lengths, self.longest)}, labels, batch.indices)

    def planned(self, plan: BatchPlan, lengths: np.ndarray, rank: int, world_size: int) -> list[int]:
        """The numbers of tokens of this rank's padded micro-batches in a run, the largest first.

        Of a long run not all steps are looked at. `lengths` are the tokens of each training sentence, (sentences,).
        """
        found = set()
        for step in range(0, plan.total_steps, -(-plan.total_steps // MOST_STEPS)):
            indices = plan.indices(step)
            shards = split_by_tokens(indices, lengths[indices], world_size)
            for own, _ in micro_batch_indices(shards, rank, self.sentences):
                found.add(self.tokens(len(own), int(lengths[own].sum())))
        return sorted(found, reverse=True)
