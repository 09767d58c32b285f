"""Where the sentences of a packed batch lie, which is laid end to end without padding."""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

GRID_SENTENCES = 8  # in one grid: few waste little on padding, many launch fewer operations
GRID_SENTENCES_ON_GPU = 64  # where launching costs more than padding
GRID_PLACES = 8  # a grid's longest is a multiple of it: a CPU's library generates code for every shape that it meets


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """To the device. An NVIDIA GPU fetches from pinned memory by itself, and the host goes on.

    Elsewhere the host waits: torch lets go of a temporary tensor before an Apple GPU has read it (pytorch #189690).
    """
    fetches = device.type == "cuda"
    if fetches and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=fetches)


@dataclass(frozen=True)
class Grid:
    """Some sentences of a packed batch that lie beside each other, seen as a padded batch of their own.

    Attributes:
        is_token: (sentences, longest) bool, where there is a token.
        unpad_index: (tokens,) int64, the place of each token in the flattened grid.
    """

    is_token: torch.Tensor
    unpad_index: torch.Tensor

    def to(self, device: torch.device) -> "Grid":
        """Copy the grid to a device."""
        return Grid(send(self.is_token, device), send(self.unpad_index, device))


@dataclass(frozen=True)
class Pack:
    """Where the sentences of a packed batch lie.

    Attributes:
        lengths: (sentences,) int64 on the host, tokens of each; at least one sentence, and one token in each.
        cu_seqlens: (sentences + 1,) int32, the first token of each sentence, and the number of all tokens.
        max_seqlen: tokens of the longest sentence, at least.
    """

    lengths: np.ndarray
    cu_seqlens: torch.Tensor = field(repr=False)
    max_seqlen: int

    @classmethod
    def of(cls, lengths: np.ndarray, max_seqlen: int = 0) -> "Pack":
        """Lay sentences of these lengths, (sentences,), end to end; `max_seqlen` is raised to the longest."""
        ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return cls(lengths, torch.from_numpy(ends), max(int(lengths.max()), max_seqlen))

    def to(self, device: torch.device) -> "Pack":
        """Copy what the device looks at; `lengths` stay in host memory."""
        return replace(self, cu_seqlens=send(self.cu_seqlens, device))

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Tokens of all sentences."""
        return int(self.lengths.sum())

    @cached_property
    def cls_indices(self) -> torch.Tensor:
        """(sentences,) int64, the first token of each."""
        return self.cu_seqlens[:-1].long()

    @property
    def has_grids(self) -> bool:
        """Whether something has asked for `grids`."""
        return "grids" in vars(self)

    @cached_property
    def grids(self) -> tuple[Grid, ...]:
        """All sentences in their order, some in each grid; made when first asked for, since not every device does."""
        device = self.cu_seqlens.device
        size = GRID_SENTENCES if device.type == "cpu" else GRID_SENTENCES_ON_GPU
        parts = (self.lengths[start : start + size] for start in range(0, len(self), size))
        return tuple(_grid(part).to(device) for part in parts)


def _grid(lengths: np.ndarray) -> Grid:
    is_token = np.arange(-(-lengths.max() // GRID_PLACES) * GRID_PLACES) < lengths[:, None]
    return Grid(torch.from_numpy(is_token), torch.from_numpy(np.flatnonzero(is_token)))
