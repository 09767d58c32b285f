"""How a model is spread over the ranks. The training loop asks `Strategy`'s methods of any strategy."""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import nn

from sst2.distributed.cpu import limit_threads
from sst2.distributed.strategies.flat import FlatStrategy
from sst2.distributed.strategies.strategy import Strategy

DATA_PARALLEL = (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)


def prepare(
    accelerator: Accelerator,
    bare_model: nn.Module,
    optimizer: torch.optim.Optimizer,
    compress: bool = False,
    flat: bool = False,
    kernels: bool = False,
) -> Strategy:
    """Spread the stock model and its AdamW as the launcher has asked for. All ranks call it.

    `compress` has gradients rounded to bf16 on their way between ranks. DeepSpeed's configuration says so itself.
    `flat` asks for gradients in one buffer in place of DistributedDataParallel, and `kernels` for blocks and AdamW by
    kernels beside it.
    """
    names = {id(parameter): name for name, parameter in bare_model.named_parameters()}
    groups = [{"params": [names[id(parameter)] for parameter in group["params"]]} for group in optimizer.param_groups]
    if accelerator.device.type == "cpu":
        limit_threads(bare_model)
    if flat and accelerator.distributed_type in (DistributedType.NO, *DATA_PARALLEL):
        model = accelerator.prepare_model(bare_model, evaluation_mode=True)  # in its precision, and not wrapped
        prepared = accelerator.prepare_optimizer(optimizer)
        return FlatStrategy(accelerator, bare_model, model, prepared, compress, kernels)
    if getattr(bare_model, "idle", None):
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
    model, prepared = accelerator.prepare(bare_model, optimizer)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from sst2.distributed.strategies.deepspeed_zero import DeepSpeedStrategy  # not every host has DeepSpeed

        return DeepSpeedStrategy(accelerator, bare_model, model, optimizer, groups)
    if accelerator.distributed_type == DistributedType.FSDP:
        from sst2.distributed.strategies.fsdp2 import FSDP2Strategy

        return FSDP2Strategy(accelerator, model, prepared, groups)
    return Strategy(accelerator, bare_model, model, prepared, compress)
