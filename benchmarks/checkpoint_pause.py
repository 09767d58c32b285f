"""How long training stands still for a checkpoint: in the background, synchronously, and with accelerate's save_state.

    python benchmarks/checkpoint_pause.py --output benchmarks/results/checkpoint_pause.json

All three save the same state, a DistilBERT-base with random weights and AdamW's moments, in turn, several rounds in one
run. accelerate's save_state writes neither manifest nor checksum and does not wait for the disk. During the background
writes training goes on, and the steps beside them are timed as well.
"""

import argparse
import json
import platform
import statistics
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from sst2.checkpoints.checkpointer import Checkpointer
from sst2.checkpoints.training_state import TrainingState
from sst2.config.settings import Settings
from sst2.distributed.devices import runs_on_cpu
from sst2.distributed.strategies import prepare
from sst2.tracking.environment import describe_environment
from sst2.training.optimizer import build_optimizer, build_schedule

SENTENCES, TOKENS = 8, 32  # of one training step


def main() -> None:
    """Measure, print the figures, and write them to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write checkpoints; default: a temporary folder")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        figures = measure(Path(folder), arguments.rounds)
    print(json.dumps(figures, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure(folder: Path, rounds: int) -> dict[str, object]:
    """Save in several ways by turns, between steps of training.

    Args:
        folder: to write to.
        rounds: saves of each way; one more comes first and does not count.

    Returns:
        The figures.
    """
    accelerator = Accelerator(cpu=runs_on_cpu())
    bare_model = DistilBertForSequenceClassification(DistilBertConfig())
    settings = Settings(output_dir=str(folder), num_warmup_steps=0, max_train_steps=10_000)
    strategy = prepare(accelerator, bare_model, build_optimizer(bare_model, settings))
    schedule = build_schedule(strategy.optimizer, settings)
    ids = torch.randint(1000, (SENTENCES, TOKENS), device=accelerator.device)
    labels = torch.zeros(SENTENCES, dtype=torch.long, device=accelerator.device)

    def step() -> float:
        started = time.perf_counter()
        strategy.backward(strategy.model(input_ids=ids, labels=labels).loss)
        strategy.clip_and_step(max_norm=0)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def background(state: TrainingState) -> dict[str, float]:
        checkpoints.save(state)
        beside = []
        while any(thread.name == "checkpoint writer" for thread in threading.enumerate()):
            beside.append(step())
        checkpoints.wait()
        (times,) = checkpoints.take_times()
        return {"pause": times.pause, "total": times.total, "step_beside": statistics.median(beside)}

    def synchronous(state: TrainingState) -> dict[str, float]:
        started = time.perf_counter()
        checkpoints.save(state)
        checkpoints.wait()
        checkpoints.take_times()
        return {"pause": time.perf_counter() - started}

    def save_state(_: TrainingState) -> dict[str, float]:
        started = time.perf_counter()
        accelerator.save_state(str(folder / "save_state"))
        return {"pause": time.perf_counter() - started}

    checkpoints = Checkpointer(folder / "checkpoints", accelerator, strategy, schedule, None, settings, {})
    steps = [step() for _ in range(3)]
    state = TrainingState()
    seconds: dict[str, list[dict[str, float]]] = {}
    for number in range(rounds + 1):
        for way in (background, synchronous, save_state):
            steps.append(step())
            state = replace(state, step=state.step + 1)
            measured = way(state)
            assert not checkpoints.has_failed
            if number:  # the first round allocates the host copy, and warms the file system up
                seconds.setdefault(way.__name__, []).append(measured)
    pauses = {way: [entry["pause"] for entry in entries] for way, entries in seconds.items()}
    return {
        "what": "Seconds that training stands still for one checkpoint of DistilBERT-base with AdamW's state",
        "command": f"python benchmarks/checkpoint_pause.py --rounds {rounds}",
        "machine": describe_environment(1, accelerator.device, "no", {})["device_name"],
        "environment": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
        },
        "parameters": sum(parameter.numel() for parameter in bare_model.parameters()),
        "seconds": pauses,
        "seconds_until_written_in_background": [entry["total"] for entry in seconds["background"]],
        "median_seconds": {way: statistics.median(values) for way, values in pauses.items()},
        "step_seconds_median": {
            "alone": statistics.median(steps[3:]),
            "beside_a_write": statistics.median(entry["step_beside"] for entry in seconds["background"]),
        },
        "ratio_synchronous_to_background": ratios(pauses, "synchronous"),
        "ratio_save_state_to_background": ratios(pauses, "save_state"),
    }


def ratios(pauses: dict[str, list[float]], way: str) -> dict[str, object]:
    """How many times as long the pause is as in the background, round by round."""
    each = [other / own for other, own in zip(pauses[way], pauses["background"], strict=True)]
    return {"per_round": each, "median": statistics.median(each)}


if __name__ == "__main__":
    main()
