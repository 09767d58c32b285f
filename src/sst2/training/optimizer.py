"""AdamW and its learning rate: what decays, and how fast."""

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from sst2.config.settings import Settings


def build_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019)."""
    return torch.optim.AdamW(parameter_groups(model, settings.weight_decay), settings.learning_rate, fused=True)


def build_schedule(optimizer: torch.optim.Optimizer, settings: Settings) -> LRScheduler:
    """A schedule that takes one step per optimizer step.

    It is not for `accelerator.prepare`, which would make it step once per process.
    """
    schedule: LRScheduler = get_scheduler(
        settings.lr_scheduler_type, optimizer, settings.num_warmup_steps, settings.max_train_steps
    )
    return schedule


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of parameters: matrices, which decay, and biases, norms and what no logit depends on, which do not."""
    idle: frozenset[str] = getattr(model, "idle", frozenset())
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (decayed if parameter.ndim > 1 and name not in idle else exempt).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0}]
