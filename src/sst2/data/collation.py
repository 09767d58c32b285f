"""Batches of sentences, padded or packed, as tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from sst2.config.flag_groups import Batching
from sst2.config.settings import Settings
from sst2.data.packing import Pack, send
from sst2.data.splits import Split


@dataclass(frozen=True)
class Batch:
    """Sentences as the model takes them.

    Attributes:
        inputs: arguments of the model.
        labels: (sentences,) int64.
        indices: (sentences,) int64, in the split.
    """

    inputs: dict[str, Any]
    labels: torch.Tensor
    indices: torch.Tensor

    @property
    def size(self) -> int:
        """Tokens that the model looks at, padding included."""
        return int(self.inputs["input_ids"].numel())

    def to(self, device: torch.device) -> "Batch":
        """Copy the batch to a device."""
        inputs = {
            name: value.to(device) if isinstance(value, Pack) else send(value, device)
            for name, value in self.inputs.items()
        }
        return Batch(inputs, send(self.labels, device), send(self.indices, device))

    def tensors(self) -> list[torch.Tensor]:
        """All that a step looks at on its device."""
        inputs = [value.cu_seqlens if isinstance(value, Pack) else value for value in self.inputs.values()]
        return [*inputs, self.labels]


MicroBatches = list[tuple[Batch, float]]  # of a step and a rank, with the weight of each one's sentences


def collate(split: Split, indices: Sequence[int] | np.ndarray, pad_token_id: int, batching: Batching) -> Batch:
    """The batch of these sentences of a split, on the CPU."""
    indices = np.asarray(indices)
    inputs = pack(split, indices) if batching == "packed" else pad(split, indices, pad_token_id)
    return Batch(
        inputs, torch.from_numpy(split.labels[indices].astype(np.int64)), torch.from_numpy(indices.astype(np.int64))
    )


def pad(split: Split, indices: np.ndarray, pad_token_id: int) -> dict[str, torch.Tensor]:
    """Sentences padded to the longest of them: `input_ids` and `attention_mask`, (sentences, longest) int64."""
    lengths = split.lengths(indices)
    columns = np.arange(lengths.max())
    attention_mask = columns < lengths[:, None]
    positions = np.where(attention_mask, split.offsets[indices][:, None] + columns, 0)
    arrays = {
        "input_ids": np.where(attention_mask, split.input_ids[positions], pad_token_id),
        "attention_mask": attention_mask,
    }
    return {name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()}


def pack(split: Split, indices: np.ndarray) -> dict[str, Any]:
    """Sentences end to end: `input_ids` and `position_ids`, (tokens,) int64; `pack`, where the sentences lie."""
    lengths = split.lengths(indices)
    ends = np.cumsum(lengths)
    starts, sentence = ends - lengths, np.repeat(np.arange(len(indices)), lengths)
    position = np.arange(ends[-1]) - starts[sentence]
    arrays = {
        "input_ids": split.input_ids[split.offsets[indices][sentence] + position],
        "position_ids": position,
    }
    inputs: dict[str, Any] = {name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()}
    return inputs | {"pack": Pack.of(lengths)}


def evaluation_batch_size(settings: Settings, device: torch.device) -> int:
    """Sentences in one forward pass of one device in an evaluation, at most."""
    size = settings.per_device_eval_batch_size
    return min(size, 64) if device.type == "cpu" else size  # more take memory, and no less time


def evaluation_loaders(
    splits: dict[str, Split], settings: Settings, pad_token_id: int, accelerator: Accelerator
) -> dict[str, DataLoader[int]]:
    """A loader for every split but `train`, each rank's batches its own."""
    size = evaluation_batch_size(settings, accelerator.device)
    return {
        name: accelerator.prepare(evaluation_loader(split, size, pad_token_id, settings.batching))
        for name, split in splits.items()
        if name != "train"
    }


def evaluation_loader(split: Split, batch_size: int, pad_token_id: int, batching: Batching) -> DataLoader[int]:
    """Batches of a whole split in order of length, which wastes little on padding.

    The longest come first: where memory does not suffice, it is known with the first batch.
    """
    return DataLoader(
        np.argsort(-split.lengths(), kind="stable").tolist(),
        batch_size=batch_size,
        collate_fn=partial(collate, split, pad_token_id=pad_token_id, batching=batching),
        generator=torch.Generator(),  # its own: iterating must not touch the random state that dropout draws from
    )
