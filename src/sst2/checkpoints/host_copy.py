"""A copy of everything that a checkpoint holds, in host memory: training waits for this and not for the disk."""

from typing import Any

import torch


class HostCopy:
    """Copies tensors to host memory that is kept from one call to the next: fresh pages cost more than the copy."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], torch.Tensor] = {}

    def __call__(self, tree: Any) -> Any:
        """A copy of nested dicts, lists and tuples. The tensors in it are valid until the next call."""
        with torch.no_grad():
            copied = self._copy(tree, ())
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the copies from a GPU run beside each other
        return copied

    def _copy(self, value: Any, path: tuple[Any, ...]) -> Any:
        if isinstance(value, dict):
            return {key: self._copy(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._copy(item, (*path, index)) for index, item in enumerate(value))
        if not isinstance(value, torch.Tensor):
            return value
        buffer = self._buffers.get(path)
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            self._buffers[path] = buffer
        return buffer.copy_(value.detach(), non_blocking=value.is_cuda)  # others are not waited for below
