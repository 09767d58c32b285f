"""Where the sentences of a packed batch lie, which is laid end to end without padding."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

GRID_SENTENCES = 8  # in one grid: few waste little on padding, many launch fewer operations
GRID_PLACES = 8  # a grid's longest is a multiple of it: a CPU's library generates code for every shape that it meets


@dataclass(frozen=True)
class Grid:
    """Some sentences of a packed batch that lie beside each other, seen as a padded batch of their own.

    Attributes:
        tokens: (sentences, longest) int64, which of the grid's tokens is at each place; 0 where there is none.
        is_token: (sentences, longest) bool, where there is one.
        slots: (tokens,) int64, the place of each token in the flattened grid.
    """

    tokens: torch.Tensor
    is_token: torch.Tensor
    slots: torch.Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> "Grid":
        parts = (self.tokens, self.is_token, self.slots)
        return Grid(*(part.to(device, non_blocking=non_blocking) for part in parts))


@dataclass(frozen=True)
class Pack:
    """Where the sentences of a packed batch lie.

    Attributes:
        lengths: (sentences,) int64 on the host, tokens of each; at least one sentence, and one token in each.
        cu_seqlens: (sentences + 1,) int32, the first token of each sentence, and the number of all tokens.
    """

    lengths: np.ndarray
    cu_seqlens: torch.Tensor = field(repr=False)

    @classmethod
    def of(cls, lengths: np.ndarray) -> "Pack":
        return cls(lengths, torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)))

    def to(self, device: torch.device, non_blocking: bool = False) -> "Pack":
        return Pack(self.lengths, self.cu_seqlens.to(device, non_blocking=non_blocking))

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def longest(self) -> int:
        """Tokens of the longest sentence."""
        return int(self.lengths.max())

    @cached_property
    def firsts(self) -> torch.Tensor:
        """(sentences,) int64, the first token of each."""
        return self.cu_seqlens[:-1].long()

    @cached_property
    def grids(self) -> tuple[Grid, ...]:
        """All sentences in their order, some in each grid; made when first asked for, since not every device does."""
        parts = (self.lengths[start : start + GRID_SENTENCES] for start in range(0, len(self), GRID_SENTENCES))
        return tuple(_grid(part).to(self.cu_seqlens.device, non_blocking=True) for part in parts)


def _grid(lengths: np.ndarray) -> Grid:
    starts, columns = np.cumsum(lengths) - lengths, np.arange(-(-lengths.max() // GRID_PLACES) * GRID_PLACES)
    is_token = columns < lengths[:, None]
    return Grid(
        tokens=torch.from_numpy(np.where(is_token, starts[:, None] + columns, 0)),
        is_token=torch.from_numpy(is_token),
        slots=torch.from_numpy(np.flatnonzero(is_token)),
    )
