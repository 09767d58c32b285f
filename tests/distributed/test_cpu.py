"""A tuned CPU keeps its memory, shares its cores, and is measured rather than asked for bf16."""

import os
import subprocess
import sys

import pytest
import torch

from sst2.distributed.precision import bf16_gain
from tests.support.running import REPOSITORY

FAULTS = """
import resource, sys
from sst2.distributed.cpu import keep_memory
if sys.argv[1] == "kept":
    keep_memory()
import torch
def work():
    torch.ones(20_000_000).mul(2.0)
for _ in range(5):  # until the heap has room for it
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(script: str, *words: str, **variables: str) -> int:
    command = [sys.executable, "-c", script, *words]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | variables)
    return int(answer.stdout)


def test_memory_is_kept() -> None:
    # a while after the start, the heap may still grow once
    assert run(FAULTS, "kept") < run(FAULTS, "untouched") / 4


def test_the_gain_of_bf16_is_measured_and_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    assert 0.01 < bf16_gain(seconds=0.01) < 100
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("asked_for", "spins"), [(None, 10_000), ("ACTIVE", 30_000_000_000), ("PASSIVE", 0)])
def test_waiting_threads_spin_briefly_unless_somebody_has_said_otherwise(asked_for: str | None, spins: int) -> None:
    """As the OpenMP library that torch brings says of itself."""
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    kept |= {"OMP_DISPLAY_ENV": "VERBOSE"} | ({"OMP_WAIT_POLICY": asked_for} if asked_for else {})
    command = [sys.executable, "-c", "import train_sst2"]
    said = subprocess.run(command, check=True, capture_output=True, text=True, env=kept, cwd=REPOSITORY).stderr
    assert f"GOMP_SPINCOUNT = '{spins}'" in said
