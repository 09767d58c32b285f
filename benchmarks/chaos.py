"""Kill a run with SIGKILL again and again, resume it each time, and compare it with one that nobody disturbed.

    python benchmarks/chaos.py --kills 50 --output benchmarks/results/chaos.json

Both are `train_sst2.py --smoke` on several gloo processes, with a checkpoint every five steps. Kills strike at random:
all processes at once, as when a node is lost, or one rank alone; while the job starts, trains, evaluates, writes a
checkpoint or exports. After each, every checkpoint in the folder must be whole. Exit code 0 if the run ends with the
same sentences in every step and the same SHA-256 of the exported weights.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from sst2.checkpoints.folders import list_checkpoints
from sst2.distributed.devices import processor
from sst2.utils.checksums import DamagedFolderError, verify_folder

SCRIPT = Path(__file__).parent.parent / "train_sst2.py"
SHARE_IN_START = 0.2  # of the kills, before the first step
SECONDS_TO_END = 120  # after the kill of one rank, for the others


class Run:
    """One run and the job that is working on it."""

    def __init__(self, folder: Path, processes: int, flags: list[str]) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        recipe = ["--smoke", "--log_sample_ids", "--checkpointing_steps", "5", "--resume_from_checkpoint", "auto"]
        self.command = [sys.executable, *launcher, str(SCRIPT), *recipe, *flags, "--output_dir", str(folder)]
        self.output = folder.with_suffix(".log")

    def start(self) -> subprocess.Popen[bytes]:
        """Start or resume the run."""
        # one thread a process, on the CPU also where there are GPUs: their sums are not repeatable bit for bit
        variables = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        with self.output.open("w", encoding="utf-8") as output:
            return subprocess.Popen(self.command, stdout=output, stderr=subprocess.STDOUT, env=variables)

    def has_begun(self) -> bool:
        """Whether the run says that it trains."""
        return " an epoch\n" in self.output.read_text(encoding="utf-8", errors="replace")

    def step(self) -> int:
        """Step of the newest checkpoint; 0 where there is none."""
        return max((int(place.name.removeprefix("step-")) for place in list_checkpoints(self.checkpoints)), default=0)

    def damaged(self) -> list[str]:
        """What is wrong with the checkpoints."""
        found = []
        for place in list_checkpoints(self.checkpoints):
            try:
                verify_folder(place)
            except DamagedFolderError as error:
                found.append(f"{place.name}: {error}")
        return found

    def results(self) -> dict[str, str]:
        """SHA-256 of what must not depend on kills."""
        files = {"weights": "model/model.safetensors", "sample_ids": "samples.jsonl"}
        return {name: hashlib.sha256((self.folder / file).read_bytes()).hexdigest() for name, file in files.items()}


def main() -> None:
    """Measure, print the figures, and write them to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the instants and the victims")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("flags", nargs="*", help="further flags of train_sst2.py, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = torment(Path(folder), arguments.kills, arguments.processes, arguments.seed, arguments.flags)
    print(json.dumps(figures, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    sys.exit(0 if figures["passed"] else 1)


def torment(folder: Path, kills: int, processes: int, seed: int, flags: list[str]) -> dict[str, Any]:
    """Run once undisturbed and once with `kills` kills. Returns the figures."""
    undisturbed, disturbed = (Run(folder / name, processes, flags) for name in ("undisturbed", "disturbed"))
    started = time.monotonic()
    job = undisturbed.start()
    while not undisturbed.has_begun() and job.poll() is None:
        time.sleep(0.01)
    begun = time.monotonic()
    if job.wait() != 0:
        raise RuntimeError(undisturbed.output.read_text(encoding="utf-8"))
    start_seconds, train_seconds = begun - started, time.monotonic() - begun
    total = undisturbed.step()

    chance = random.Random(seed)
    struck: list[dict[str, Any]] = []
    damaged: list[str] = []
    started = time.monotonic()
    job = disturbed.start()
    while len(struck) < kills:
        remaining = (1 - disturbed.step() / total) * train_seconds
        in_start = chance.random() < SHARE_IN_START
        pace = chance.uniform(0, 1.6 * remaining / (kills - len(struck) + 1))  # below 2, lest it ends too early
        deadline = time.monotonic() + chance.uniform(0, start_seconds) if in_start else None
        while job.poll() is None and (time.monotonic() < deadline if deadline else not disturbed.has_begun()):
            time.sleep(0.005)
        if not in_start:
            time.sleep(pace)
        if job.poll() is not None:  # at its end before all kills have struck
            break
        struck.append(kill(job, chance.random() < 0.5 and not in_start, chance, disturbed))
        damaged += disturbed.damaged()
        print(f"kill {len(struck)}: {struck[-1]}", file=sys.stderr, flush=True)
        job = disturbed.start()
    code = job.wait()
    if code != 0:
        print(disturbed.output.read_text(encoding="utf-8"), file=sys.stderr)
    expected, got = undisturbed.results(), disturbed.results() if code == 0 else {}
    return {
        "what": "One run killed with SIGKILL at random instants and resumed, against the same run undisturbed",
        "command": f"python benchmarks/chaos.py --kills {kills} --processes {processes} --seed {seed}",
        "passed": code == 0 and not damaged and got == expected and len(struck) == kills,
        "kills": len(struck),
        "kills_of_one_rank": sum(kill["one_rank"] for kill in struck),
        "kills_before_the_first_step": sum(not kill["had_begun"] for kill in struck),
        "kills_that_left_a_checkpoint_unfinished": sum(kill["unfinished"] for kill in struck),
        "processes_that_had_to_be_killed_after_one_rank": sum(kill["hung"] for kill in struck),
        "damaged_checkpoints": damaged,
        "steps": total,
        "seconds_undisturbed": round(start_seconds + train_seconds, 1),
        "seconds_disturbed": round(time.monotonic() - started, 1),
        "sha256_undisturbed": expected,
        "sha256_disturbed": got,
        "machine": processor(),
        "cpu_count": os.cpu_count(),
    }


def kill(job: subprocess.Popen[bytes], one_rank: bool, chance: random.Random, run: Run) -> dict[str, Any]:
    """Kill all processes of the job, or one rank and wait for the end of the others."""
    everybody = [psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)]
    ranks = [process for process in everybody[1:] if str(SCRIPT) in " ".join(process.cmdline())]
    one_rank = one_rank and len(ranks) > 1
    had_begun = run.has_begun()
    victims = [chance.choice(ranks)] if one_rank else everybody
    for process in victims:
        process.kill()
    unfinished = any(run.checkpoints.glob(".step-*.unfinished"))
    _, alive = psutil.wait_procs(everybody, timeout=SECONDS_TO_END)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive)
    job.wait()
    return {
        "step": run.step(),
        "had_begun": had_begun,
        "one_rank": one_rank,
        "unfinished": unfinished,
        "hung": len(alive),
    }


if __name__ == "__main__":
    main()
