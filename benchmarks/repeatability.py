"""Whether a run repeats another to the last bit, and whether one that was resumed half way does.

    python benchmarks/repeatability.py --output repeatability.json

DistilBERT-base with random weights, sentences of SST-2's lengths, batch 32, bf16. With CUDA graphs and without, where
there is a GPU: two runs of `--steps`, and one that resumes at half of them from a checkpoint of the first. Compared are
the hash of the exported weights, and each step's loss.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # for benchmarks

KINDS = {
    "graphs": ["--cuda_graphs", "auto"],
    "split_graphs": ["--cuda_graphs", "yes"],
    "eager": ["--cuda_graphs", "no"],
}


def main() -> None:
    """Run, print the figures, and write them to `--output`."""
    import torch

    from benchmarks.throughput import circumstances, write_inputs

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--small", action="store_true", help="a tiny model: a trial of the benchmark, not a figure")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    kinds = [kind for kind in KINDS if torch.cuda.is_available() or kind != "graphs"]
    figures: dict[str, Any] = {
        "what": "whether runs end with the same weights: one done again, and one resumed half way",
        **circumstances(),
        "steps": arguments.steps,
    }
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        write_inputs(folder, small=arguments.small)
        half = arguments.steps // 2
        runs = [(f"{kind}-{name}", KINDS[kind]) for kind in kinds for name in ("first", "again")]
        all_at_once(folder, [(name, [*flags, *lengths(arguments.steps)]) for name, flags in runs])
        resumed = []
        for kind in kinds:
            checkpoint = folder / f"{kind}-first" / "checkpoints" / f"step-{half:08d}"
            flags = [*KINDS[kind], *lengths(arguments.steps), "--resume_from_checkpoint", str(checkpoint)]
            resumed.append((f"{kind}-resumed", flags))
        all_at_once(folder, resumed)
        for kind in kinds:
            first = folder / f"{kind}-first"
            figures[kind] = {name: compare(first, folder / f"{kind}-{name}") for name in ("again", "resumed")}
    print(json.dumps(figures, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def lengths(steps: int) -> list[str]:
    """Flags of how long a run is and when it saves."""
    return ["--max_train_steps", str(steps), "--checkpointing_steps", str(steps // 2), "--eval_steps", str(steps)]


def all_at_once(folder: Path, runs: list[tuple[str, list[str]]]) -> None:
    """Run jobs side by side. Raises RuntimeError, with what it has said, if one fails."""
    processes = []
    for name, flags in runs:
        command = [sys.executable, HERE.parent / "train_sst2.py", "--model_name_or_path", folder / "model"]
        command += ["--train_file", folder / "train.tsv", "--validation_file", folder / "validation.tsv"]
        command += ["--mixed_precision", "bf16", "--logging_steps", "1", *flags, "--output_dir", folder / name]
        words = [str(word) for word in command]
        environment = {"OMP_NUM_THREADS": "2"} | os.environ | {"HF_DATASETS_CACHE": str(folder / f"{name}-cache")}
        with (folder / f"{name}.log").open("wb") as log:
            processes.append((name, subprocess.Popen(words, stdout=log, stderr=log, env=environment)))
    failed = [name for name, process in processes if process.wait()]
    if failed:
        said = "\n".join((folder / f"{name}.log").read_text(encoding="utf-8")[-2000:] for name in failed)
        raise RuntimeError(f"failed: {', '.join(failed)}\n{said}")


def compare(run: Path, other: Path) -> dict[str, Any]:
    """How far two runs are the same."""
    import torch
    from safetensors.torch import load_file

    one, two = (load_file(folder / "model" / "model.safetensors") for folder in (run, other))
    distance = math.sqrt(sum(float((one[name].double() - two[name].double()).square().sum()) for name in one))
    size = math.sqrt(sum(float(weight.double().square().sum()) for weight in one.values()))
    losses, others = losses_by_step(run), losses_by_step(other)
    odd = [step for step in losses if step in others and losses[step] != others[step]]
    return {
        "same_hash": sha256(run) == sha256(other),
        "same_weights": all(torch.equal(one[name], two[name]) for name in one),
        "relative_distance_of_weights": distance / size,
        "first_step_with_another_loss": odd[0] if odd else None,
    }


def sha256(run: Path) -> str:
    """Of the exported weights, as the run has noted it."""
    noted: str = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["model_sha256"]
    return noted


def losses_by_step(run: Path) -> dict[int, float]:
    """What a run that logs each step has logged."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["step"]: line["loss"] for line in lines if line["split"] == "train"}


if __name__ == "__main__":
    main()
