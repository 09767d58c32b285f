"""AdamW and its learning rate: what decays, and how fast."""

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from sst2.settings import Settings


def build_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019)."""
    return torch.optim.AdamW(parameter_groups(model, settings.weight_decay), settings.learning_rate, fused=True)


PART = 1 << 19  # elements whose squares are added up in float32


@torch.no_grad()
def clipped_step(optimizer: torch.optim.Optimizer, max_norm: float) -> torch.Tensor:
    """One step on gradients that are clipped on the way, or none if they are not finite; the host waits for nothing.

    Fused AdamW divides gradients by `grad_scale` while it reads them, and leaves everything alone where `found_inf` is
    1: torch's own way for loss scales. Clipping apart from the step would read and write all gradients once more.

    Args:
        optimizer: fused AdamW. Its gradients are scaled afterwards.
        max_norm: global L2 norm to clip to; 0 does not clip.

    Returns:
        (), the gradients' global L2 norm as they came.
    """
    norm = global_norm([p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None])
    scale = (norm / max_norm).clamp(min=1.0) if max_norm else torch.ones_like(norm)
    optimizer.grad_scale, optimizer.found_inf = scale, (~norm.isfinite()).to(scale.dtype)  # type: ignore[attr-defined]
    optimizer.step()
    return norm


def global_norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    """(), float32, the L2 norm of all of them together."""
    if not tensors:
        return torch.zeros(())
    if tensors[0].is_cuda:
        return torch.stack(torch._foreach_norm(tensors)).norm()
    # torch's norm on a CPU adds up large tensors in float32 one by one, and so do dot products on some CPUs. Those of
    # parts take 2 % longer: 23 million elements are off by 1e-3, 5e-4 and 1e-6.
    parts = (part for tensor in tensors for part in tensor.reshape(-1).split(PART))
    return torch.stack([torch.dot(part, part) for part in parts]).sum().sqrt()


def build_schedule(optimizer: torch.optim.Optimizer, settings: Settings) -> LRScheduler:
    """A schedule that takes one step per optimizer step.

    It is not for `accelerator.prepare`, which would make it step once per process.
    """
    return get_scheduler(settings.lr_scheduler_type, optimizer, settings.num_warmup_steps, settings.max_train_steps)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups of parameters: matrices, which decay, and biases and LayerNorm, which do not."""
    norms = {id(p) for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_exempt = id(parameter) in norms or name.endswith("bias")
        (exempt if is_exempt else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0}]


def require_moments_of_the_weights(optimizer: dict[str, Any], shapes: list[torch.Size]) -> None:
    """Raises ValueError: AdamW's fused kernel would read beyond the end of moments that are smaller than the weights.

    Args:
        shapes: of the weights, in the order of the optimizer's parameter groups.
    """
    for index, state in optimizer["state"].items():
        for name, shape in (("exp_avg", shapes[index]), ("exp_avg_sq", shapes[index]), ("step", torch.Size())):
            if not isinstance(state[name], torch.Tensor) or state[name].shape != shape:
                raise ValueError(f"training.pt: {name} of weight {index} is not of the shape {tuple(shape)}")
