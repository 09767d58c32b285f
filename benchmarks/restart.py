"""Kill one rank of two, with `--max_restarts`, and measure how soon training goes on and if the result is the same.

    python benchmarks/restart.py --output benchmarks/results/restart.json

Both runs are `train_sst2.py --smoke` under `sst2 launch`, on two gloo processes, with a checkpoint every five
steps. In one of them, rank 0 and rank 1 are killed in turn. The seconds are from the kill to the first step that is
logged again. Exit code 0 if the exported weights have the SHA-256 of those of the run that nobody disturbs.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from sst2.distributed.devices import processor
from sst2.utils.checksums import describe_file

SCRIPT = Path(__file__).parent.parent / "train_sst2.py"
LAUNCHER = ["-m", "sst2.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "--max_restarts"]
RECIPE = ["--smoke", "--logging_steps", "1", "--checkpointing_steps", "5", "--max_train_steps"]
STEPS = 50  # between two kills


def main() -> None:
    """Measure, print the figures, and write them to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        steps = STEPS * (arguments.kills + 1)
        _, expected = train(Path(folder, "undisturbed"), steps, kills=0)
        seconds, got = train(Path(folder, "disturbed"), steps, arguments.kills)
    figures: dict[str, Any] = {
        "what": "Seconds from the kill of one rank of two to the next logged step, within the job",
        "command": f"python benchmarks/restart.py --kills {arguments.kills}",
        "passed": got == expected,
        "seconds": [round(each, 1) for each in seconds],
        "sha256_undisturbed": expected,
        "sha256_disturbed": got,
        "machine": processor(),
        "cpu_count": os.cpu_count(),
    }
    print(json.dumps(figures, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    sys.exit(0 if figures["passed"] else 1)


def train(folder: Path, steps: int, kills: int) -> tuple[list[float], str]:
    """A run of so many steps, of which ranks are killed so often.

    Returns:
        The seconds after each kill, and the SHA-256 of the exported weights.
    """
    output, seconds = folder.with_suffix(".log"), []
    # one thread a process, on the CPU also where there are GPUs: their sums are not repeatable bit for bit
    variables = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with output.open("w", encoding="utf-8") as stream:
        command = [sys.executable, *LAUNCHER, str(kills), str(SCRIPT), *RECIPE, str(steps)]
        command += ["--output_dir", str(folder)]
        job = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=variables)
    for number in range(kills):
        wait_for_step(job, output, beyond=number, step=STEPS * (number + 1))
        ranks = [child for child in psutil.Process(job.pid).children() if "-u" in child.cmdline()]
        ranks[number % 2].kill()
        began = time.monotonic()
        wait_for_step(job, output, beyond=number + 1, step=1)
        seconds.append(time.monotonic() - began)
    if job.wait() != 0:
        raise RuntimeError(output.read_text(encoding="utf-8"))
    return seconds, describe_file(folder / "model" / "model.safetensors")["sha256"]


def wait_for_step(job: subprocess.Popen[bytes], output: Path, beyond: int, step: int) -> None:
    """Wait until a step of this number or a later one is logged, after the run has been resumed `beyond` times."""
    while True:
        starts = output.read_text(encoding="utf-8").split("resuming from ")
        if len(starts) > beyond and any(int(said) >= step for said in re.findall(r" step (\d+)/", starts[beyond])):
            return
        if job.poll() is not None:
            raise RuntimeError(output.read_text(encoding="utf-8"))
        time.sleep(0.01)


if __name__ == "__main__":
    main()
