"""The whole state on every rank: one process alone, or DistributedDataParallel."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from sst2.distributed.strategies.clipping import clipped_step
from sst2.utils.device_timing import Waiting


class Strategy:
    """What training asks of any strategy; the others differ in where weights and optimizer state lie.

    Args:
        accelerator: has prepared the model.
        bare_model: the stock model.
        model: the same, as wrapped; to be called for training and evaluation.
        optimizer: AdamW, as wrapped by accelerate.
        compress: whether gradients are rounded to bf16 on their way between ranks.

    Attributes:
        model: as above.
        optimizer: the bare AdamW, whose learning rate a schedule may set.
        waiting: the time that backward passes have gone on for the sake of other ranks. Under strategies that send more
            than gradients, or send them in between, it is less than all of it.
        own_phases: those of a step in which this rank waits for no other, but for `waiting`, which is part of them. It
            is by their time that a slow rank is found: none where ranks wait for each other in all of them.
    """

    own_phases: tuple[str, ...] = ("data", "forward", "backward", "graph", "optimizer")

    def __init__(
        self,
        accelerator: Accelerator,
        bare_model: nn.Module,
        model: nn.Module,
        optimizer: AcceleratedOptimizer,
        compress: bool = False,
    ) -> None:
        self.model = model
        self.optimizer: torch.optim.Optimizer = optimizer.optimizer
        self._accelerator = accelerator
        self._bare_model = bare_model
        self._prepared_optimizer = optimizer
        self.waiting = Waiting(accelerator.device)
        if compress and isinstance(model, DistributedDataParallel):
            model.register_comm_hook(None, share_in_bf16)
        if isinstance(model, DistributedDataParallel):
            # The one buffer numbers the positions: no step changes it, and none has to send it. (accelerate has only
            # the argument of this name, which torch has declared old.)
            model.broadcast_buffers = False
        settle_buckets(model)
        if accelerator.num_processes > 1:
            self._watch_backward()

    def _watch_backward(self) -> None:
        """Have `waiting` begin with this rank's last gradient: of the word embeddings, with which the model begins."""
        next(self._bare_model.parameters()).register_post_accumulate_grad_hook(self.waiting.begin)

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        device: torch.device = self._accelerator.device
        return device

    @property
    def fits_a_graph(self) -> bool:
        """Whether a step can be a CUDA graph: one GPU alone, and the model as it is, neither wrapped nor compiled."""
        return self.device.type == "cuda" and self.model is self._bare_model

    @contextmanager
    def accumulate(self, sync: bool) -> Iterator[None]:
        """Around each micro-batch of a step: ranks reduce their gradients with the last one, where `sync` is true."""
        with nullcontext() if sync else self._accelerator.no_sync(self.model):
            yield

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of `loss`, averaged over the ranks, to the step's."""
        self._accelerator.backward(loss)
        self.waiting.end()

    def reduce_gradients(self) -> None:
        """Share the step's gradients, where backward passes have not done so already. All ranks call it."""

    def clip_and_step(self, max_norm: float) -> torch.Tensor:
        """Clip and take the step, unless its gradient is not finite. Gradients are gone afterwards.

        Args:
            max_norm: global L2 norm to clip to; 0 does not clip.

        Returns:
            (), the gradient's global L2 norm before it was clipped, the same on all ranks; not finite if there was no
            step.
        """
        if self._accelerator.scaler is None and self._accelerator.device.type in ("cpu", "cuda"):
            norm = clipped_step(self.optimizer, max_norm)
        else:
            norm = self._clip_then_step(max_norm)
        self.optimizer.zero_grad()
        return norm

    def _clip_then_step(self, max_norm: float) -> torch.Tensor:
        norm: torch.Tensor = self._accelerator.clip_grad_norm_(self.model.parameters(), max_norm or math.inf)
        if self._accelerator.scaler is not None or bool(norm.isfinite()):  # a loss scaler skips, and learns from it
            self._prepared_optimizer.step()
        return norm

    def describe(self) -> dict[str, Any]:
        """What a run's record says of it."""
        return {"strategy": self._accelerator.distributed_type.value.lower()}

    def weights(self) -> dict[str, torch.Tensor]:
        """All weights by name, float32, on any device. All ranks call it; only the main process gets them for sure."""
        return dict(self._bare_model.state_dict())

    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Take over weights, which every rank brings whole.

        Raises:
            RuntimeError, KeyError: they are of another model.
        """
        self._bare_model.load_state_dict(weights)

    def optimizer_shapes(self) -> list[torch.Size]:
        """Of the whole weights, in the order in which AdamW has them."""
        return [parameter.shape for group in self.optimizer.param_groups for parameter in group["params"]]

    def training_state(self) -> dict[str, Any]:
        """`optimizer`, as torch's AdamW describes itself, and `scaler`. All ranks call it, as with `weights`."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self._scaler_state()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Take over what `training_state` of any strategy, on any number of ranks, has given."""
        self.optimizer.load_state_dict(state["optimizer"])
        self._load_scaler_state(state["scaler"])

    def _scaler_state(self) -> dict[str, Any]:
        scaler = self._accelerator.scaler
        return scaler.state_dict() if scaler is not None else {}

    def _load_scaler_state(self, state: dict[str, Any]) -> None:
        scaler = self._accelerator.scaler
        if scaler is not None and "scale" in state:  # else of DeepSpeed's scaler: this one learns anew
            scaler.load_state_dict(state)


def share_in_bf16(state: Any, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Torch's own hook by another name: DistributedDataParallel takes that for unfit for gloo, which it is not."""
    return bf16_compress_hook(state, bucket)


def settle_buckets(model: nn.Module) -> None:
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
