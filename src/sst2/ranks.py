"""What ranks do together, or one for all."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import distributed

from sst2.errors import UserError

Result = TypeVar("Result")


@lru_cache
def group_of_hosts() -> distributed.ProcessGroup | None:
    """A group of all ranks for small messages between their hosts. The first call is for all ranks together.

    It is gloo, which works on host memory: in NCCL's group, a message would wait for all that the GPU has to do, and
    the host for the message. None, the default group, where that is gloo.
    """
    return None if distributed.get_backend() == "gloo" else distributed.new_group(backend="gloo")


def on_main(accelerator: Accelerator, work: Callable[[], Result]) -> Result:
    """Do `work` on the main process. All ranks call it, and get what it returns.

    Raises:
        UserError: the one that `work` has raised, on every rank: none is left waiting for the others.
    """
    answer: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            answer[0] = work()
        except UserError as error:
            answer[1] = str(error)
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise UserError(answer[1])
    return answer[0]
