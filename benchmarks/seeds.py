"""Accuracy on SST-2 of several seeds, trained side by side.

    SST2_DATA_DIR=DIR SST2_MODEL_DIR=DIR python benchmarks/seeds.py --seeds 0 1 2 --output seeds.json

SST2_DATA_DIR holds GLUE's train.tsv and dev.tsv. The file is written whenever a run has ended.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # for benchmarks


def main() -> None:
    """Train, print the figures, and write them to `--output`."""
    from benchmarks.throughput import circumstances

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("flags", nargs="*", help="of train_sst2.py, after --")
    arguments = parser.parse_args()
    data, model = (Path(os.environ[name]) for name in ("SST2_DATA_DIR", "SST2_MODEL_DIR"))
    flags = ["--model_name_or_path", model, "--train_file", data / "train.tsv", "--validation_file", data / "dev.tsv"]
    flags += ["--num_train_epochs", 3, "--learning_rate", "5e-5", "--mixed_precision", "bf16", *arguments.flags]
    figures: dict[str, Any] = {
        "what": "accuracy on SST-2's validation sentences; the seeds ran at once: their seconds are no figures",
        **circumstances(),
        "flags": [str(flag) for flag in flags[6:]],
        "runs": {},
    }
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder, running = Path(temporary), {}
        for seed in arguments.seeds:
            command = [sys.executable, HERE.parent / "train_sst2.py", *flags, "--seed", seed]
            words = [*map(str, command), "--output_dir", str(folder / str(seed))]
            running[seed] = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        while running:
            time.sleep(0.5)
            for seed in [seed for seed, process in running.items() if process.poll() is not None]:
                if code := running.pop(seed).returncode:
                    figures["runs"][seed] = {"exit_code": code}
                else:
                    figures["runs"][seed] = json.loads((folder / str(seed) / "metrics.json").read_text("utf-8"))
                accuracies = [run["accuracy"] for run in figures["runs"].values() if "accuracy" in run]
                if len(accuracies) > 1:
                    spread = [statistics.mean(accuracies), statistics.stdev(accuracies)]
                    figures["accuracy, mean and standard deviation"] = spread
                if arguments.output:
                    arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))
    if any("exit_code" in run for run in figures["runs"].values()):
        sys.exit("a run has failed")


if __name__ == "__main__":
    main()
