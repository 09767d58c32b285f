"""All that a captured step reads, in one buffer on its device, which one copy fills."""

from collections.abc import Sequence

import numpy as np
import torch

from sst2.data.collation import Batch
from sst2.data.packing import Pack
from sst2.data.splits import Split
from sst2.training.steps.buckets import IGNORED, Buckets

IN_FLIGHT = 4  # copies that the device may not have fetched yet, before the host waits


class StepInputs:
    """Token ids, places, labels, learning rates and the like of one micro-batch, written on the host and sent at once.

    Everything is 32 bits wide. The parts lie one after another: token ids, position ids, starts of sentences, labels,
    numbers.

    Args:
        train: the training sentences.
        buckets: to which micro-batches are padded.
        most_tokens: of a padded micro-batch.
        num_rates: parameter groups of the optimizer.
        device: that reads them.

    Attributes:
        divisor, loss_weight: () float32 on the device, as `Step` has them.
        rates: () float32 for each parameter group.
    """

    def __init__(self, train: Split, buckets: Buckets, most_tokens: int, num_rates: int, device: torch.device) -> None:
        self._train, self._buckets = train, buckets
        sizes = [most_tokens, most_tokens, buckets.slots + 1, buckets.slots, 2 + num_rates]
        self._buffer = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
        self._parts = self._buffer.split(sizes)
        self.divisor, self.loss_weight, *self.rates = self._parts[-1].view(torch.float32).unbind()
        on_gpu = device.type == "cuda"
        self._slots = [_Slot(sizes, on_gpu) for _ in range(IN_FLIGHT if on_gpu else 1)]
        self._turn = 0
        self._lengths = np.ones(buckets.slots, dtype=np.int64)  # of the batch that was written last

    def tokens(self, indices: np.ndarray) -> int:
        """Of the padded micro-batch of these training sentences, (sentences,)."""
        return self.padded(len(indices), int(self._train.lengths(indices).sum()))

    def padded(self, sentences: int, tokens: int) -> int:
        """Tokens of the padded micro-batch of that many sentences and tokens."""
        return self._buckets.tokens(sentences, tokens)

    def write(self, indices: np.ndarray, padded: int, ignore: bool) -> None:
        """Write a micro-batch, padded to so many tokens as `Buckets.pad` does it, to be sent.

        With `ignore`, no loss looks at its sentences.
        """
        ids, positions, starts, labels, _ = self._slot.parts
        lengths, count = self._train.lengths(indices), len(indices)
        tokens = int(lengths.sum())
        starts[0] = 0
        np.cumsum(lengths, out=starts[1 : count + 1])
        fillers = self._buckets.slots - count
        starts[count + 1 :] = tokens + (padded - tokens) * np.arange(1, fillers + 1) // fillers
        position = np.arange(tokens) - np.repeat(starts[:count], lengths)
        ids[:tokens] = self._train.input_ids[np.repeat(self._train.offsets[indices], lengths) + position]
        positions[:tokens] = position
        ids[tokens:padded] = positions[tokens:padded] = 0
        labels[:count] = IGNORED if ignore else self._train.labels[indices]
        labels[count:] = IGNORED
        self._lengths = np.diff(starts).astype(np.int64)

    def write_filler(self, tokens: int) -> None:
        """Write a micro-batch of padding alone, of so many tokens, to be sent."""
        ids, positions, starts, labels, _ = self._slot.parts
        ids[:tokens] = positions[:tokens] = 0
        starts[:] = tokens * np.arange(self._buckets.slots + 1) // self._buckets.slots
        labels[:] = IGNORED
        self._lengths = np.diff(starts).astype(np.int64)

    def write_numbers(self, numbers: Sequence[float]) -> None:
        """Write divisor, loss weight and learning rates, to be sent."""
        self._slot.parts[-1].view(np.float32)[:] = numbers

    def send(self) -> None:
        """Send what is written. The device gets it after the work that it was given before."""
        self._slot.send(self._buffer)
        written = self._slot
        self._turn = (self._turn + 1) % len(self._slots)
        self._slot.begin(written)

    def batch(self, tokens: int) -> Batch:
        """The micro-batch that was sent last, of so many tokens: views of the device's buffer."""
        ids, positions, starts, labels, _ = self._parts
        pack = Pack(self._lengths, starts, self._buckets.longest)
        inputs = {"input_ids": ids[:tokens], "position_ids": positions[:tokens], "pack": pack}
        return Batch(inputs, labels.long(), labels[:0])

    @property
    def _slot(self) -> "_Slot":
        return self._slots[self._turn]


class _Slot:
    """Memory on the host that the device copies from, and the copy."""

    def __init__(self, sizes: list[int], on_gpu: bool) -> None:
        self._tensor = torch.zeros(sum(sizes), dtype=torch.int32, pin_memory=on_gpu)
        self.parts = np.split(self._tensor.numpy(), np.cumsum(sizes)[:-1])
        self._fetched = torch.cuda.Event() if on_gpu else None

    def begin(self, before: "_Slot") -> None:
        """Wait until the last copy of this memory is done; numbers are as they were written `before`."""
        if self._fetched is not None:
            self._fetched.synchronize()
        self.parts[-1][:] = before.parts[-1]

    def send(self, buffer: torch.Tensor) -> None:
        """Copy to the device's buffer."""
        buffer.copy_(self._tensor, non_blocking=self._fetched is not None)
        if self._fetched is not None:
            self._fetched.record()
