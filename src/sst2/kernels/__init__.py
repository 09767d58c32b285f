"""Kernels in Triton that `--kernels triton` asks for: attention, the small operations of blocks, AdamW."""

from importlib.util import find_spec

import torch


def obstacle(device: torch.device) -> str:
    """Why kernels cannot run on a device; nothing if they can. Triton's interpreter runs them on CPUs, for tests."""
    if find_spec("triton") is None:
        return "needs the package triton, which comes with a GPU's torch"
    import triton

    if device.type != "cuda" and not triton.knobs.runtime.interpret:
        return "needs a GPU"
    return ""
