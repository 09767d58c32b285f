"""Work that one rank does for all, and the CPU process group in which hosts talk."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, get_data_structure, recursively_apply
from accelerate.utils.operations import is_tensor_information
from torch import distributed

from sst2.config.launcher import is_reporting_process, process_rank
from sst2.utils.errors import (
    EXIT_CODES,
    OF_TRAINING,
    UserError,
    broken_disk,
    disk_error,
    exit_codes,
    leave_at_once,
)

Result = TypeVar("Result")


@lru_cache
def cpu_process_group() -> distributed.ProcessGroup | None:
    """A group of all ranks for small messages between their hosts. The first call is for all ranks together.

    It is gloo, which works on host memory: in NCCL's group, a message would wait for all that the GPU has to do, and
    the host for the message. None, the default group, where that is gloo.
    """
    return None if distributed.get_backend() == "gloo" else distributed.new_group(backend="gloo")


@contextmanager
def exit_codes_of_rank(program: str) -> Iterator[None]:
    """Around all that a rank of a training job does: `exit_codes`, by the rank that the launcher has given it."""
    with exit_codes(program, process_rank(), is_reporting_process(), leave_at_once, OF_TRAINING):
        yield


def run_on_main(accelerator: Accelerator, work: Callable[[], Result]) -> Result:
    """Do `work` on the main process. All ranks call it, and get what it returns.

    Raises:
        UserError, StopRequestedError: the one that `work` has raised, on every rank: none is left waiting for the
            others. A UserError also says that a disk or a path has failed.
    """
    answer: list[Any] = [None, None]
    if accelerator.is_main_process:
        answer = _attempt(work)
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    result: Result = answer[0]
    return result


def _attempt(work: Callable[[], Any]) -> list[Any]:
    """What `work` returns, and the error that all ranks are to raise for it: one of them is None."""
    try:
        return [work(), None]
    except tuple(EXIT_CODES) as error:  # a LocalError is everybody's by now
        return [None, UserError(str(error)) if isinstance(error, UserError) else error]
    except Exception as error:
        if (disk := disk_error(error)) is None:
            raise
        return [None, UserError(broken_disk(disk))]


def read_on_main(read: Callable[[], Result]) -> Result:
    """What `read` gives on the main process, sent to all ranks: a file on a shared disk is read once for all of them.

    Args:
        read: gives nested dicts, lists and tuples that may hold tensors in host memory.

    Raises:
        UserError, StopRequestedError: as `run_on_main`.
    """
    if not distributed.is_initialized():
        return read()
    content, error = _attempt(read) if distributed.get_rank() == 0 else (None, None)
    answer = [get_data_structure(content), error]  # with shape and dtype in place of each tensor
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]

    def broadcast(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.contiguous()
        distributed.broadcast(tensor, src=0, group=cpu_process_group())
        return tensor

    if distributed.get_rank() == 0:
        sent: Result = recursively_apply(broadcast, content)
        return sent
    received: Result = recursively_apply(
        lambda info: broadcast(torch.empty(info.shape, dtype=info.dtype)), answer[0], test_type=is_tensor_information
    )
    return received
