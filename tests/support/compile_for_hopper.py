"""Compile, for an H100 and without one, what the kernels launch in bf16; print what each needs.

    TRITON_INTERPRET=0 python -m tests.support.compile_for_hopper

Launches are replaced by compilation for the same arguments, on tensors of a CPU: values are rubbish, and nobody reads
them. A line for each kernel, in JSON: its name, and what a thread and a block of it need.
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from torch import nn
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from sst2.data.packing import Pack
from sst2.kernels.adamw import Group, adamw
from sst2.kernels.attention import short_attention
from sst2.kernels.block import add_norm, bias_gelu

PTXAS = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"


class Hopper:
    """As much of a driver as compiling asks for."""

    def get_current_device(self) -> int:
        """Of the one that there would be."""
        return 0

    def get_current_stream(self, _device: int) -> int:
        """The default one."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """Compute capability 9.0, 32 threads a warp."""
        return GPUTarget("cuda", 90, 32)


def main() -> None:
    """Compile the kernels with the options of training and evaluation, for DistilBERT-base."""
    driver.set_active(Hopper())
    seen: set[str] = set()
    launch = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        if kernel.hash not in seen:
            seen.add(kernel.hash)
            registers, spilled = resources(kernel.asm["ptx"])
            needs = {"shared_bytes": kernel.metadata.shared, "registers": registers, "spilled_bytes": spilled}
            print(json.dumps({"kernel": kernel.metadata.name, **needs}), flush=True)
        return kernel

    JITFunction.run = compile_only
    pack = Pack.of(np.array([13, 3, 40, 7]))
    for one_each, window, dropout in ((False, None, 0.1), (True, None, 0.1), (False, 64, 0.0)):
        tokens = [torch.randn(pack.num_tokens, 12, 64, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
        query = tokens[0][pack.cls_indices] if one_each else tokens[0]
        short_attention(query, tokens[1], tokens[2], pack, dropout, 0.125, window).sum().backward()
    hidden, bias = (torch.randn(*shape, 768, dtype=torch.bfloat16, requires_grad=True) for shape in ((40,), ()))
    for residual, dropout in ((hidden, 0.1), (hidden.float(), 0.1), (hidden, 0.0)):
        add_norm(hidden, bias, residual, nn.LayerNorm(768), dropout).sum().backward()
    bias_gelu(hidden, bias).sum().backward()
    weights, number = torch.zeros(5120), torch.ones(())
    groups = Group(number, 0.01), Group(number, 0.0)
    options: dict[str, Any] = {"ends": (512, 1024, 3072), "step": number, "norm": number, "max_norm": 1.0}
    for rounded in (weights[:1024].bfloat16(), None):
        adamw(weights, weights, weights, weights, rounded, groups=groups, **options, betas=(0.9, 0.999), eps=1e-8)


def resources(ptx: str) -> tuple[int, int]:
    """Registers of a thread, and bytes that are spilled, as ptxas says."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [str(PTXAS), "-v", "-arch=sm_90a", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, spilled = (re.search(pattern, said) for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill st"))
    assert registers, said
    assert spilled, said
    return int(registers[1]), int(spilled[1])


if __name__ == "__main__":
    main()
