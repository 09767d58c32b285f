"""DeepSpeed ZeRO: stage 1 spreads AdamW's state over the ranks, 2 the gradients as well, 3 the weights as well."""

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
from accelerate import Accelerator
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import nn

from sst2.distributed.strategies.sharded import ShardedStrategy
from sst2.utils.device_timing import Waiting

logger = logging.getLogger(__name__)

SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")  # of DeepSpeed's loss scaler in fp16


class DeepSpeedStrategy(ShardedStrategy):
    """Drives DeepSpeed's engine itself: accelerate's wrapper takes the step within `backward`.

    Clipping, and skipping a step whose gradient is not finite, are the engine's (`deepspeed_config` says so).

    Args:
        engine: DeepSpeed's, around `bare_model`.
        optimizer: the AdamW that was given to the engine; it keeps the state of this rank's part.
        groups: AdamW's parameter groups as they were before the engine emptied them, with names for "params".
    """

    def __init__(
        self,
        accelerator: Accelerator,
        bare_model: nn.Module,
        engine: "deepspeed.DeepSpeedEngine",
        optimizer: torch.optim.Optimizer,
        groups: list[dict[str, Any]],
    ) -> None:
        self.model: Any = engine
        self.optimizer = optimizer
        self._accelerator = accelerator
        self._bare_model = bare_model
        self._parameters = dict(bare_model.named_parameters())
        self._groups = groups
        self._zero = engine.optimizer
        self.waiting = Waiting(accelerator.device)
        if accelerator.num_processes > 1:
            self._watch_backward()
        self._stage = engine.zero_optimization_stage()
        # Stages 1 and 2 gather weights within the optimizer's step, and stage 3 also in each layer.
        self.own_phases = ("data", "forward") if self._stage < 3 else ()
        logger.info("DeepSpeed: %s", json.dumps(self.describe()["deepspeed_config"]))

    @contextmanager
    def accumulate(self, sync: bool) -> Iterator[None]:
        """Around each micro-batch of a step; `sync` marks the last one for the engine."""
        # Stage 1 shares gradients with the last pass only. The others share with every pass, so as to keep no more of
        # them than their part, which is what they are for.
        self.model.set_gradient_accumulation_boundary(sync)
        yield

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of `loss` to the step's, by the engine, which scales and shares it."""
        self.model.backward(loss)
        self.waiting.end()

    def clip_and_step(self, max_norm: float) -> torch.Tensor:  # noqa: ARG002 (the configuration says it)
        """Clip as DeepSpeed's configuration says, and take the step; returns as `Strategy.clip_and_step`."""
        self.model.step()  # clips to `max_norm` by its configuration
        norm = self.model.get_global_grad_norm() if self.model.was_step_applied() else math.nan
        return torch.as_tensor(norm, dtype=torch.float32, device=self._accelerator.device)

    def describe(self) -> dict[str, Any]:
        """What a run's record says of it, with DeepSpeed's configuration."""
        config = self._accelerator.deepspeed_config
        return super().describe() | {"deepspeed_config": {k: v for k, v in config.items() if k != "steps_per_print"}}

    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Take over weights, which every rank brings whole; raises as `ShardedStrategy.load_weights`."""
        super().load_weights(weights)
        # What the forward pass uses is a copy, rounded if it is in 16 bit.
        for name, parameter in self._parameters.items():
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self._stage == 3):
                parameter.data.copy_(weights[name])

    def training_state(self) -> dict[str, Any]:
        """As `Strategy.training_state`, with the moments that the engine keeps in flat buffers."""
        self._link_moments()
        return super().training_state()

    def _gather_full(self, parameter: nn.Parameter, moment: str | None) -> torch.Tensor:
        if moment is None:
            whole: torch.Tensor = safe_get_full_fp32_param(parameter)
        else:
            whole = safe_get_full_optimizer_state(parameter, moment)
        return whole

    def _load_shard(self, parameter: nn.Parameter, moment: str | None, value: torch.Tensor) -> None:
        value = value.to(torch.float32)
        if self._stage == 3:  # whose own way to set the whole fails where ranks do not divide it
            value = self._own_shard(parameter, value)
            if moment is None:
                safe_set_local_fp32_param(parameter, value)
            else:
                safe_set_local_optimizer_state(parameter, value, moment)
        elif moment is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, moment)

    def _own_shard(self, parameter: nn.Parameter, value: torch.Tensor) -> torch.Tensor:
        """Stage 3 cuts each flat parameter into equal parts, and pads the last one with zeros."""
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        start = size * self._accelerator.process_index
        part = value.flatten()[start : start + size]
        return torch.nn.functional.pad(part, (0, size - part.numel()))

    def _local_shards(self) -> list[torch.Tensor]:
        zero = self._zero
        shards: list[torch.Tensor] = (
            zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups
        )
        return shards

    def _make_moments(self, steps: float) -> None:
        super()._make_moments(steps)
        self._link_moments()

    def _link_moments(self) -> None:
        """Let `safe_get_full_optimizer_state` find them: DeepSpeed does so when only the first group has them."""
        if self._stage < 3 and self.optimizer.state:
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()

    def _scaler_state(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self._zero.loss_scaler).items() if name in SCALER}

    def _load_scaler_state(self, state: dict[str, Any]) -> None:
        for name in SCALER:
            if name in state:  # else of torch's scaler: this one learns anew
                setattr(self._zero.loss_scaler, name, state[name])
