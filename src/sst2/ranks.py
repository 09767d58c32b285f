"""What ranks do together, or one for all."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.nn.parallel import DistributedDataParallel

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


def settle_buckets(model: torch.nn.Module) -> None:
    """Let DistributedDataParallel arrange its buckets of gradients, which it does after its first backward pass.

    With three ranks and more, the place of a gradient in its bucket decides in which order the ranks' shares are added
    up. A resumed run has to begin with the order that the uninterrupted run has at that step. No gradients are left
    behind, and the random states are what they were.
    """
    if not isinstance(model, DistributedDataParallel):
        return
    model.train()
    token = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        for _ in range(2):  # the second forward pass does it
            model(input_ids=token).logits.sum().backward()
    model.zero_grad()
