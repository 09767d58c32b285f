"""What `--dry_run` says of a run, beside what the run then takes: seconds in all, and peak memory.

    python benchmarks/dry_run.py --minilm DIR --sst2 DIR --output benchmarks/results/dry_run.json

Three sizes: the embedded sample, a pretrained MiniLM on some hundred sentences of SST-2 (a folder of a checkpoint, and
one with GLUE's `train.tsv` and `dev.tsv`), and DistilBERT-base with random weights. For each, dry run and run take
turns, so that a noisy moment strikes both; each is a process of its own, whose seconds are the wall clock's from its
start to its end, and whose memory is the kernel's highest resident size (VmHWM). On a GPU, memory is that of tensors,
as the run logs it. For each size it prints the ratios, and in the end the verdict: whether all seconds are within 15 %.
The load averages that it prints tell whether the machine was quiet, without which the verdict says nothing.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SCRIPT = HERE.parent / "train_sst2.py"
WRITE_INPUTS = "import sys; from pathlib import Path; from benchmarks.throughput import write_inputs; "
WRITE_INPUTS += "write_inputs(Path(sys.argv[1]), small=sys.argv[2] == 'True', validation_sentences=200)"
WITHIN = 0.15  # of what the run takes
CIRCUMSTANCES = "import json; from benchmarks.throughput import circumstances; print(json.dumps(circumstances()))"


def main() -> None:
    """Measure, print the figures, and write them to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minilm", type=Path, help="checkpoint for the second size, which is left out without it")
    parser.add_argument("--sst2", type=Path, help="folder with GLUE's train.tsv and dev.tsv for the second size")
    parser.add_argument("--rounds", type=int, default=1, help="of each size")
    parser.add_argument("--small", action="store_true", help="a tiny model and few steps: a trial, not a figure")
    parser.add_argument("--only", nargs="+", help="names of sizes")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {
        "what": "seconds in all and peak memory of runs, by their dry run over what was measured",
        **json.loads(run_python(CIRCUMSTANCES)),
        "command": f"python benchmarks/dry_run.py {' '.join(sys.argv[1:])}".strip(),
        "sizes": {},
    }
    started, before = time.monotonic(), os.getloadavg()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for name, flags in sizes(Path(folder), arguments).items():
            figures["sizes"][name] = compare(Path(folder) / name, flags, arguments.rounds)
            print(f"{name}: {in_words(figures['sizes'][name])}", flush=True)
    figures["load_averages"] = {"before": before, "after": os.getloadavg()}
    figures["is_within"] = {name: is_within(size) for name, size in figures["sizes"].items()}
    print(verdict(figures["is_within"]))
    print(f"{time.monotonic() - started:.0f} s in all; load averages {before} before, {os.getloadavg()} after")
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def sizes(folder: Path, arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Flags of the run of each size; what they name is written to `folder`."""
    run_python(WRITE_INPUTS, folder, arguments.small)
    steps = ["--max_train_steps", "6"] if arguments.small else []
    found = {"sample": ["--smoke", *steps]}
    if arguments.minilm:
        words = ["--model_name_or_path", arguments.minilm, "--train_file", arguments.sst2 / "train.tsv"]
        words += ["--validation_file", arguments.sst2 / "dev.tsv", "--max_train_samples", 800, "--num_train_epochs", 2]
        found["minilm"] = [*map(str, words), *steps]
    words = ["--model_name_or_path", folder / "model", "--train_file", folder / "train.tsv"]
    words += ["--validation_file", folder / "validation.tsv", "--max_train_samples", 640, "--num_train_epochs", 1]
    found["distilbert_base"] = [*map(str, words), *steps]
    return {name: flags for name, flags in found.items() if not arguments.only or name in arguments.only}


def compare(folder: Path, flags: list[str], rounds: int) -> dict[str, Any]:
    """Dry runs and runs of one size by turns, after a run of one step that does not count: it fills the caches of all.

    Returns:
        Seconds and MiB of each round, medians and spread of their ratios, and the ratio of the seconds of all rounds.
    """
    turns: list[dict[str, float]] = []
    start([*flags, "--output_dir", str(folder), "--max_train_steps", "1"])
    shutil.rmtree(folder)
    for _ in range(rounds):
        said, seconds, _ = start([*flags, "--output_dir", str(folder), "--dry_run", "--json"])
        dry = json.loads(said)
        _, run_seconds, run_mib = start([*flags, "--output_dir", str(folder)])
        (own,) = dry["memory"]["ranks"]
        on_gpu = own["allocated_mib"] is not None
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        turns.append(
            {
                "dry_run_took_seconds": seconds,
                "dry_run_says_seconds": dry["seconds"]["total"],
                "run_took_seconds": run_seconds,
                "dry_run_says_mib": own["allocated_mib"] if on_gpu else own["host_mib"],
                "run_had_mib": max(line.get("peak_memory_mib", 0) for line in lines) if on_gpu else run_mib,
            }
        )
        shutil.rmtree(folder)
    seconds_ratios = [turn["dry_run_says_seconds"] / turn["run_took_seconds"] for turn in turns]
    memory_ratios = [turn["dry_run_says_mib"] / turn["run_had_mib"] for turn in turns]
    return {
        "flags": flags,
        "steps": dry["steps"]["total"],
        "seconds_by_part": dry["seconds"],
        "steps_measured": dry["steps_measured"],
        "once": dry["once"],
        "rounds": turns,
        "ratio_of_seconds": describe(seconds_ratios),
        "ratio_of_memory": describe(memory_ratios),
        "ratio_of_all_seconds": sum(turn["dry_run_says_seconds"] for turn in turns)
        / sum(turn["run_took_seconds"] for turn in turns),
    }


def is_within(size: dict[str, Any]) -> bool:
    """Whether the dry runs of a size are near enough, all rounds together."""
    return bool(abs(size["ratio_of_all_seconds"] - 1) <= WITHIN)


def in_words(size: dict[str, Any]) -> str:
    """The ratios of a size, and the seconds of its rounds."""
    rounds = "; ".join(
        f"{turn['dry_run_says_seconds']:.1f} s said, {turn['run_took_seconds']:.1f} s taken, dry run itself "
        f"{turn['dry_run_took_seconds']:.1f} s"
        for turn in size["rounds"]
    )
    ratios = f"seconds {size['ratio_of_all_seconds']:.2f}, memory {size['ratio_of_memory']['median']:.2f}"
    return f"{ratios} ({size['steps']} steps; {rounds})"


def verdict(sizes: dict[str, bool]) -> str:
    """Whether the seconds of all sizes are near enough, in words."""
    far = [name for name, is_near in sizes.items() if not is_near]
    of_all = f"{len(sizes) - len(far)} of {len(sizes)} sizes"
    return f"verdict: seconds within {WITHIN:.0%} in {of_all}" + (f", not in {', '.join(far)}" if far else "")


def describe(ratios: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios)}


def start(flags: list[str]) -> tuple[str, float, float]:
    """Run the script to its end. Returns what it prints to standard output, its seconds, and its peak in MiB."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, str(SCRIPT), *flags], stdout=said, stderr=subprocess.DEVNULL)
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, peak_mib(process.pid))
            time.sleep(0.02)
        seconds = time.perf_counter() - started
        if process.returncode:
            raise RuntimeError(f"exit code {process.returncode}: {flags}")
        said.seek(0)
        return said.read(), seconds, peak


def peak_mib(pid: int) -> float:
    """Highest resident memory of a process so far, MiB; 0 where it has ended."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    found = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")]
    return found[0] / 2**10 if found else 0.0


def run_python(code: str, *words: object) -> str:
    """In a process of its own: this one stays small. Returns what it prints."""
    command = [sys.executable, "-c", code, *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
