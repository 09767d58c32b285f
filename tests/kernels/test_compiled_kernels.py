"""All kernels compiled for an H100, which needs none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.running import REPOSITORY

pytest.importorskip("triton", reason="triton exists for Linux only")
pytestmark = pytest.mark.slow

KERNELS = ["_forward", "_backward"] * 3 + ["_add_norm", "_add_norm_backward"] * 3
KERNELS += ["_bias_gelu", "_bias_gelu_backward", "_adamw", "_adamw"]


def test_they_compile_for_an_h100_and_spill_no_registers(tmp_path: Path) -> None:
    compiled = subprocess.run(
        [sys.executable, "-m", "tests.support.compile_for_hopper"],
        cwd=REPOSITORY,
        env=os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    kernels = [json.loads(line) for line in compiled.stdout.splitlines()]
    assert [kernel["kernel"] for kernel in kernels] == KERNELS
    assert not any(kernel["spilled_bytes"] for kernel in kernels)
    assert all(kernel["shared_bytes"] < 48 * 1024 for kernel in kernels)  # four blocks on a multiprocessor
