"""AdamW's state in flat buffers, and its step by one kernel, behind the stock optimizer."""

from collections.abc import Sequence

import torch
from torch import nn

from sst2.distributed.strategies.clipping import clipped_step, global_norm
from sst2.distributed.strategies.flat_buffers import flat_buffer, flat_size
from sst2.utils.errors import shortened

TOLERANCE = 1e-5  # of weights of size 1, after two steps


class FlatAdamW:
    """Takes the steps of a stock AdamW, which keeps groups, rates, and the state as views of buffers.

    Args:
        optimizer: torch's AdamW, of two parameter groups, in which only rate and decay differ.
        segments: the weights in the order of the buffers, in four parts; the first and third are of the first group.
        weights: their flat buffer.
        gradients: of the same layout.
        rounded: their first ones in bf16, if they are.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        segments: Sequence[Sequence[nn.Parameter]],
        weights: torch.Tensor,
        gradients: torch.Tensor,
        rounded: torch.Tensor | None,
    ) -> None:
        self._optimizer, self._weights, self._gradients, self._rounded = optimizer, weights, gradients, rounded
        self._parameters = [weight for segment in segments for weight in segment]
        sizes = [flat_size(segment) for segment in segments]
        self._ends = [sum(sizes[: number + 1]) for number in range(3)]
        self._steps = torch.zeros(len(self._parameters), device=weights.device)
        self._average, averages = flat_buffer(self._parameters, torch.float32)
        self._average_sq, averages_sq = flat_buffer(self._parameters, torch.float32)
        parts = zip(self._steps, averages, averages_sq, strict=True)
        self._states = [{"step": step, "exp_avg": one, "exp_avg_sq": other} for step, one, other in parts]
        self._adopt(optimizer)
        optimizer.register_load_state_dict_post_hook(self._adopt)
        self._rates = [torch.zeros((), device=weights.device) for _ in optimizer.param_groups]

    @torch.no_grad()
    def step(self, max_norm: float) -> torch.Tensor:
        """As `clipped_step` of the stock optimizer, but that gradients stay what they are."""
        from sst2.kernels.adamw import Group, adamw  # which imports triton

        self._optimizer.step()  # of no gradients: nothing, but that the schedule hears of a step
        norm = global_norm([self._gradients])
        self._steps += norm.isfinite()
        own = self._optimizer.param_groups
        for rate, group in zip(self._rates, own, strict=True):  # numbers, or what a graph finds on its device
            rate.copy_(group["lr"]) if isinstance(group["lr"], torch.Tensor) else rate.fill_(group["lr"])
        one, other = (Group(rate, group["weight_decay"]) for rate, group in zip(self._rates, own, strict=True))
        adamw(
            *(self._weights, self._average, self._average_sq, self._gradients, self._rounded),
            groups=(one, other),
            ends=self._ends,
            step=self._steps[0],
            norm=norm,
            max_norm=max_norm,
            betas=own[0]["betas"],
            eps=own[0]["eps"],
        )
        return norm

    def _adopt(self, optimizer: torch.optim.Optimizer) -> None:
        """Have the optimizer's state, new or just loaded, lie in the buffers."""
        for parameter, views in zip(self._parameters, self._states, strict=True):
            state = optimizer.state.get(parameter, {})
            for name, view in views.items():
                view.copy_(state[name]) if name in state else view.zero_()
            optimizer.state[parameter] = dict(views)


def difference(device: torch.device, dtype: torch.dtype) -> str:
    """What the kernel does on a device that torch's AdamW does not, clipped and not finite; nothing if it is right.

    Args:
        device: of the weights.
        dtype: what the first weights are rounded to.
    """
    generator = torch.Generator().manual_seed(0)  # the random state of training stays what it is
    values = torch.randn((4, 4, 300), generator=generator).to(device)
    values[1] *= 0.01  # not clipped, unlike the last: AdamW does not see how long all gradients are
    values[2, 1, 7] = torch.nan

    def weights() -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
        own = [nn.Parameter(value.clone()) for value in values[0]]
        groups = [{"params": own[::2], "weight_decay": 0.1}, {"params": own[1::2], "weight_decay": 0.0}]
        return own, torch.optim.AdamW(groups, 0.01, fused=True)

    stock, optimizer = weights()
    flat, behind = weights()
    try:
        with torch.no_grad():
            buffer, views = flat_buffer(flat, torch.float32)
            gradients, gradient_views = flat_buffer(flat, torch.float32)
            rounded, rounded_views = flat_buffer(flat[:2], dtype)
            for weight, view in zip(flat, views, strict=True):
                weight.data = view.copy_(weight.detach())
        kernel = FlatAdamW(behind, [[weight] for weight in flat], buffer, gradients, rounded)
        for step in values[1:]:
            for weight, view, gradient in zip(stock, gradient_views, step, strict=True):
                weight.grad = view.copy_(gradient).clone()
            clipped_step(optimizer, 1.0)
            kernel.step(1.0)
    except Exception as error:  # whatever a compiler says on a machine that it was not made for
        return f"does not work here ({shortened(str(error))})"
    are_close = [torch.allclose(*pair, rtol=TOLERANCE, atol=TOLERANCE) for pair in zip(flat, stock, strict=True)]
    for view, weight in zip(rounded_views, stock, strict=False):
        are_close.append(torch.allclose(view.float(), weight, rtol=torch.finfo(dtype).eps, atol=TOLERANCE))
    return "" if all(are_close) else "is wrong here"
