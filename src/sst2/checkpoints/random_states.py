"""The state of every random generator that a run draws from."""

import random
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of this process and its device, of types that `torch.load(weights_only=True)` takes."""
    numpy_state: Any = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()  # an array would need pickle's full powers
    return {
        "python": random.getstate(),
        "numpy": numpy_state,
        "torch": torch.get_rng_state(),
        "device": None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(),
    }


def restore_random_state(
    states: list[dict[str, Any]], device: torch.device, rank: int, world_size: int, seed: int, step: int
) -> None:
    """Continue to draw where the states of all ranks were saved.

    Where now another number of processes goes on, there is no state to continue, and each rank begins a sequence of its
    own, drawn from seed, step, rank and world size.
    """
    if len(states) != world_size:
        set_seed(int(np.random.SeedSequence([seed, step, rank, world_size]).generate_state(1)[0]))
        return
    state = states[rank]
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["device"] is not None and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"])
