"""Strategies that keep a shard of every weight and moment on each rank: their checkpoints are whole.

A checkpoint holds plain float32 weights and AdamW's state as torch's own optimizer describes it, however they were
spread, so that a run may go on with another strategy or another number of ranks.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from sst2.distributed.strategies.strategy import Strategy

MOMENTS = ("exp_avg", "exp_avg_sq")


class ShardedStrategy(Strategy, ABC):
    """Gathers one parameter at a time into host memory, so that no rank ever holds the whole model on its device."""

    _parameters: dict[str, nn.Parameter]  # by name
    _groups: list[dict[str, Any]]  # AdamW's parameter groups, with names for "params"

    @property
    def fits_a_graph(self) -> bool:
        """False: ranks wait for each other within a step."""
        return False

    @abstractmethod
    def _gather_full(self, parameter: nn.Parameter, moment: str | None) -> torch.Tensor:
        """The whole of a float32 weight, or of one of its moments. All ranks call it."""

    @abstractmethod
    def _load_shard(self, parameter: nn.Parameter, moment: str | None, value: torch.Tensor) -> None:
        """Keep this rank's part of `value`."""

    @abstractmethod
    def _local_shards(self) -> list[torch.Tensor]:
        """What AdamW takes for its parameters on this rank."""

    def _step_count(self) -> float:
        return max((float(state["step"]) for state in self.optimizer.state.values()), default=0.0)

    def _make_moments(self, steps: float) -> None:
        """Have AdamW's state at hand as it would be after `steps` steps, before its parts are filled in."""
        for part in self._local_shards():
            step = torch.tensor(steps, device=part.device)  # fused AdamW counts on the device
            self.optimizer.state[part] = {"step": step} | {moment: torch.zeros_like(part) for moment in MOMENTS}

    def _gather(self, moment: str | None) -> dict[str, torch.Tensor]:
        keeps = self._accelerator.is_main_process
        gathered = {}
        for name, parameter in self._parameters.items():
            value = self._gather_full(parameter, moment)
            if keeps:
                gathered[name] = value.detach().to("cpu", torch.float32, copy=True)
        return gathered

    def weights(self) -> dict[str, torch.Tensor]:
        """All weights by name, float32, gathered from all ranks. All ranks call it; the main process gets them."""
        return self._gather(None)

    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Keep this rank's part of weights, which every rank brings whole.

        Raises:
            KeyError: a weight is missing, or is of no parameter.
            ValueError: a weight has another shape.
        """
        if missing := weights.keys() ^ self._parameters.keys():
            raise KeyError(f"weights of another model: {sorted(missing)[0]}")
        for name, parameter in self._parameters.items():
            if weights[name].shape != _shape(parameter):
                raise ValueError(f"{name} of another model: {tuple(weights[name].shape)}")
            self._load_shard(parameter, None, weights[name])

    def optimizer_shapes(self) -> list[torch.Size]:
        """Of the whole weights, in the order of AdamW's parameter groups."""
        return [_shape(self._parameters[name]) for group in self._groups for name in group["params"]]

    def training_state(self) -> dict[str, Any]:
        """As `Strategy.training_state`: the moments are gathered, and the main process gets them whole."""
        steps = self._step_count()
        moments = {moment: self._gather(moment) for moment in MOMENTS} if steps else {}
        names = [name for group in self._groups for name in group["params"]]
        state = {}
        if moments and self._accelerator.is_main_process:
            step = torch.tensor(float(steps))
            state = {
                index: {"step": step.clone()} | {moment: moments[moment][name] for moment in MOMENTS}
                for index, name in enumerate(names)
            }
        groups, start = [], 0
        for own, group in zip(self._groups, self.optimizer.param_groups, strict=True):
            indices = list(range(start, start + len(own["params"])))
            start += len(indices)
            groups.append({key: value for key, value in group.items() if key != "params"} | {"params": indices})
        return {"optimizer": {"state": state, "param_groups": groups}, "scaler": self._scaler_state()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Keep this rank's part of what `training_state` of any strategy, on any number of ranks, has given."""
        saved = state["optimizer"]
        for group, values in zip(self.optimizer.param_groups, saved["param_groups"], strict=True):
            group.update({key: value for key, value in values.items() if key != "params"})
        if saved["state"]:
            self._make_moments(float(saved["state"][0]["step"]))
            names = [name for group in self._groups for name in group["params"]]
            for index, name in enumerate(names):
                for moment in MOMENTS:
                    self._load_shard(self._parameters[name], moment, saved["state"][index][moment])
        self._load_scaler_state(state["scaler"])


def _shape(parameter: nn.Parameter) -> torch.Size:
    """Of the whole parameter, also where ZeRO stage 3 has left a part of it here."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))
