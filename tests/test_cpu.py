"""A tuned CPU keeps its memory, and is measured rather than asked for bf16."""

import subprocess
import sys

import torch

from sst2.cpu import bf16_gain

FAULTS = """
import resource, sys
from sst2.cpu import tune_cpu
if sys.argv[1] == "tuned":
    tune_cpu()
import torch
def work():
    torch.ones(20_000_000).mul(2.0)
for _ in range(5):  # until the heap has room for it
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, torch.tensor([1e-40]).mul(1.0).item() == 0)
"""


def faults(how: str) -> tuple[int, bool]:
    answer = subprocess.run([sys.executable, "-c", FAULTS, how], check=True, capture_output=True, text=True)
    number, flushes = answer.stdout.split()
    return int(number), flushes == "True"


def test_memory_is_kept_and_denormal_numbers_are_flushed() -> None:
    untouched, flushed_untouched = faults("untouched")
    tuned, flushed = faults("tuned")
    assert tuned < untouched / 4  # a while after the start, the heap may still grow once
    assert (flushed_untouched, flushed) == (False, True)


def test_the_gain_of_bf16_is_measured_and_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    assert 0.01 < bf16_gain(seconds=0.01) < 100
    assert torch.equal(torch.get_rng_state(), before)
