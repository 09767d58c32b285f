"""One run of benchmarks/recipes.py, in a process of its own: the job itself, with what a flag cannot say changed.

    python benchmarks/recipe_worker.py RESULT.json ALTERATION [flags of train_sst2.py]

The alterations take hold from outside, so that the job holds nothing for them: before `setup` by other functions in
place of train_sst2's own, between `setup` and `fit` by a hook on the optimizer, after `fit` by other weights. Each run
is evaluated as it is then, on both splits.
"""

import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))  # for train_sst2.py

import train_sst2
from sst2.config.arguments import parse_arguments
from sst2.config.settings import Settings
from sst2.distributed.stop_requests import StopRequests
from sst2.runs.run_folder import RunFolder
from sst2.training import setup as job_setup
from sst2.training.optimizer import build_optimizer
from sst2.training.trainer import Trainer
from sst2.utils.atomic_file import write_json

EMA_SPAN = 0.1  # share of the run over which an exponential average reaches back
LAST_SHARE, LAST_SNAPSHOTS = 5, 30  # a uniform average: over the last fifth, every thirtieth of the run
LAYER_DECAY = 0.9


class Alteration:
    """Changes nothing; the base of those that do."""

    def before_setup(self) -> None:
        """Put something else in place of a function of train_sst2."""

    def before_fit(self, trainer: Trainer) -> None:
        """Change the prepared trainer."""

    def after_fit(self, trainer: Trainer) -> None:
        """Change the trained model."""


class Averaged(Alteration, ABC):
    """The model that is evaluated is an average over the weights of several steps."""

    def __init__(self) -> None:
        self.taken = 0
        self._averages: list[torch.Tensor] = []
        self._weights: list[torch.Tensor] = []

    @abstractmethod
    def share(self, step: int, total: int) -> float:
        """Weight of this step's weights in the average so far, from 0, which leaves it as it is, to 1.

        Args:
            step: counted from 1.
            total: steps of the run.
        """

    def before_fit(self, trainer: Trainer) -> None:
        """Have the optimizer's step take part in the average."""
        optimizer = trainer.strategy.optimizer
        self._weights = [parameter.detach() for group in optimizer.param_groups for parameter in group["params"]]
        # inside the optimizer's step, so that the time it takes counts as training
        optimizer.register_step_post_hook(lambda *_: self._take(trainer.state.step + 1, trainer.plan.total_steps))

    def after_fit(self, _trainer: Trainer) -> None:
        """Put the average in place of the weights."""
        for weight, average in zip(self._weights, self._averages, strict=True):
            weight.copy_(average)

    @torch.no_grad()
    def _take(self, step: int, total: int) -> None:
        share = self.share(step, total)
        if share == 0:
            return
        self.taken += 1
        if not self._averages:
            self._averages = [weight.clone() for weight in self._weights]
            return
        for average, weight in zip(self._averages, self._weights, strict=True):
            average.lerp_(weight, share)


class ExponentialAverage(Averaged):
    """Over all steps, the later the more: a tenth of the run ago, weights count 1/e of the last ones."""

    def share(self, _step: int, total: int) -> float:
        """The same at every step."""
        return min(1.0, 1 / (EMA_SPAN * total))


class LastAverage(Averaged):
    """The plain mean over snapshots at the end of the run, the last weights among them."""

    def share(self, step: int, total: int) -> float:
        """One n-th for the n-th snapshot, and 0 between snapshots."""
        left = total - step
        is_taken = left < max(1, total // LAST_SHARE) and left % max(1, total // LAST_SNAPSHOTS) == 0
        return 1 / (self.taken + 1) if is_taken else 0.0


class LayerWiseDecay(Alteration):
    """Lower layers, which hold what is common to all tasks, learn more slowly."""

    def before_setup(self) -> None:
        """Have the job build its optimizer by `slower_below`."""
        vars(job_setup)["build_optimizer"] = partial(slower_below, build_optimizer)

    def before_fit(self, trainer: Trainer) -> None:
        """Raises RuntimeError: all layers learn at one rate."""
        if len(set(trainer.schedule.base_lrs)) == 1:
            raise RuntimeError("the job has its optimizer from elsewhere now: all layers learn at one rate")


def slower_below(
    build: Callable[[nn.Module, Settings], torch.optim.Optimizer],
    model: nn.Module,
    settings: Settings,
    decay: float = LAYER_DECAY,
) -> torch.optim.Optimizer:
    """The job's optimizer, its groups split by layer, each with `decay` times the rate of the layer above it.

    The head has the whole rate, and the embeddings that of a layer below the first.
    """
    optimizer = build(model, settings)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    layers = max(_layer(name) for name in names.values()) + 1
    split: dict[tuple[int, int], dict[str, Any]] = {}
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            name = names[id(parameter)]
            below = 0 if not name.startswith("distilbert.") else layers - _layer(name)
            rate = group["lr"] * decay**below
            split.setdefault((below, number), {**group, "params": [], "lr": rate})["params"].append(parameter)
    # the head first: the first group's rate is the one that is logged
    optimizer.param_groups[:] = [group for _, group in sorted(split.items(), key=lambda item: item[0])]
    return optimizer


def _layer(name: str) -> int:
    """Number of a weight's layer, from 0; -1 if it is in none."""
    found = re.search(r"\.layer\.(\d+)\.", name)
    return int(found[1]) if found else -1


ALTERATIONS: dict[str, type[Alteration]] = {
    "none": Alteration,
    "ema": ExponentialAverage,
    "last_average": LastAverage,
    "layer_decay": LayerWiseDecay,
}


def train(settings: Settings, alteration: Alteration) -> dict[str, float]:
    """One whole run. Returns its figures; the hold-out is the job's `test` split.

    `load_average` is the host's at the end of training: seconds are worth something where it is about the number of
    threads, and little where it is more, since others have worked beside.
    """
    # Nobody goes on with these runs, and a disk may take a minute for it.
    train_sst2.save_checkpoint = lambda trainer: None  # noqa: ARG005 (named as the real one has it)
    alteration.before_setup()
    with RunFolder(settings.run_dir) as run, train_sst2.setup(settings, StopRequests(), run) as trainer:
        alteration.before_fit(trainer)
        train_sst2.fit(trainer)
        load = os.getloadavg()[0]
        alteration.after_fit(trainer)
        figures: dict[str, float] = {}
        for name, split in (("holdout", "test"), ("validation", "validation")):
            metrics, _ = train_sst2.evaluate(trainer, trainer.splits[split])
            figures |= {f"{name}_{figure}": metrics[figure] for figure in ("accuracy", "loss", "count")}
        state = trainer.state
        figures |= {
            "load_average": load,
            "seconds": state.seconds,
            "steps": state.step,
            "skipped_steps": state.skipped_steps,
        }
        return figures | {"sentences": state.sentences, "sentences_per_second": state.sentences / state.seconds}


if __name__ == "__main__":
    write_json(Path(sys.argv[1]), train(parse_arguments(sys.argv[3:]), ALTERATIONS[sys.argv[2]]()))
