"""Where packed sentences lie, and the grids that they are seen as."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from sst2.checkpoints.host_copy import HostCopy
from sst2.data.collation import Batch
from sst2.data.packing import GRID_PLACES, GRID_SENTENCES, Pack
from sst2.models.attention import pad_input, unpad_input

LENGTHS = np.array([1, 2, 2, 3, 5, 8, 8, 9, 9, 12, 30])


def test_sentences_lie_end_to_end() -> None:
    pack = Pack.of(np.array([3, 1, 4]))
    assert pack.cu_seqlens.tolist() == [0, 3, 4, 8]
    assert pack.cu_seqlens.dtype == torch.int32  # as FlashAttention takes it
    assert pack.cls_indices.tolist() == [0, 3, 4]
    assert (len(pack), pack.num_tokens, pack.max_seqlen) == (3, 8, 4)


def test_grids_hold_every_token_once_in_its_place() -> None:
    pack = Pack.of(LENGTHS)
    tokens = torch.arange(pack.num_tokens)
    parts = tokens.split([len(grid.unpad_index) for grid in pack.grids])
    found, sentence = [], 0
    for grid, own in zip(pack.grids, parts, strict=True):
        places = pad_input(own, grid)
        for row, is_token in zip(places, grid.is_token, strict=True):
            assert row[is_token].tolist() == tokens.split(LENGTHS.tolist())[sentence].tolist()
            assert is_token.tolist() == [True] * int(is_token.sum()) + [False] * int((~is_token).sum())
            sentence += 1
        found += unpad_input(places, grid).tolist()
    assert found == tokens.tolist()


def test_grids_have_few_shapes() -> None:
    grids = Pack.of(LENGTHS).grids
    assert [len(grid.is_token) for grid in grids] == [GRID_SENTENCES, len(LENGTHS) - GRID_SENTENCES]
    assert [grid.is_token.shape[1] for grid in grids] == [16, 32]
    assert all(grid.is_token.shape[1] % GRID_PLACES == 0 for grid in grids)


class WithoutThatDevice(TorchFunctionMode):
    """Notes how copies are asked for, and leaves tensors where they are: a Mac's GPU is not here."""

    def __init__(self) -> None:
        self.asked: list[bool] = []

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        arguments: tuple[Any, ...] = (),
        options: dict[str, Any] | None = None,
    ) -> Any:
        options = options or {}
        if function in (torch.Tensor.to, torch.Tensor.copy_):
            self.asked.append(options.get("non_blocking", False))
            return arguments[0]
        return function(*arguments, **options)


def test_copies_are_waited_for_where_only_nvidia_s_would_not_have_to_be() -> None:
    pack = Pack.of(LENGTHS)
    batch = Batch({"input_ids": torch.zeros(3), "pack": pack}, torch.zeros(3), torch.zeros(3))
    with WithoutThatDevice() as copies:
        batch.to(torch.device("mps"))
        pack.grids[0].to(torch.device("mps"))
        HostCopy()({"weight": torch.ones(3)})
    assert copies.asked == [False] * len(copies.asked)
    assert len(copies.asked) >= 7
