"""How much arithmetic training is, and how much of it a device could do."""

import time

import torch
from torch import nn
from transformers import PreTrainedConfig

from sst2.models.architecture import encoder_blocks, skeleton

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # by the precision of forward passes
SLOW = 5e9  # FLOP/s on a CPU below which a large product would take half a second


def flop_per_token(config: PreTrainedConfig) -> int:
    """Floating-point operations of training on one real token: forward once, backward twice (Kaplan et al., 2020).

    All products of weights in the encoder's layers count, those of the last layer for every token; attention scores,
    under 1 % at SST-2's lengths, and everything else are left out, and so is padding.
    """
    blocks = encoder_blocks(skeleton(config))
    weights = sum(module.weight.numel() for module in blocks.modules() if isinstance(module, nn.Linear))
    times_used: int = config.num_hidden_layers // max(len(blocks), 1)  # more than once where layers share weights
    return 6 * weights * times_used  # a product takes two operations a weight


def matrix_peak(device: torch.device, dtype: torch.dtype, seconds: float, size: int | None = None) -> float:
    """FLOP/s of a large matrix product, measured: the most that a step could reach.

    On a GPU, the count of the highest memory begins anew afterwards, without these matrices, which are `size` squared,
    or large enough for the device.
    """
    on_gpu = device.type == "cuda"
    if size is None:
        # a CPU may only emulate a type: the small product that takes a thousandth of the time tells
        size = 4096 if on_gpu else 1024 if matrix_peak(device, dtype, 0.0, 128) > SLOW else 128
    generator = torch.Generator(device).manual_seed(0)  # the random state of training stays what it is
    left, right = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2))

    def once() -> None:
        torch.mm(left, right)
        if on_gpu:
            torch.cuda.synchronize()

    once()  # which prepares what later ones use
    count, started = 0, time.perf_counter()
    while not count or time.perf_counter() - started < seconds:
        once()
        count += 1
    rate = 2 * size**3 * count / (time.perf_counter() - started)
    if on_gpu:
        del left, right, once
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return rate
