"""What ranks do together, or one for all."""

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from sst2.errors import UserError

Result = TypeVar("Result")


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
