"""The training state besides weights: the step, the best evaluation, and the sums since the last logged point."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Fields that checkpoints of earlier versions lack: a run that goes on from one begins with their defaults.
ADDED_LATER = {"is_hopeless", "slow_ranks"}


@dataclass
class TrainingState:
    """Saved with every checkpoint, as JSON.

    Attributes:
        step: optimizer steps done.
        skipped_steps: those of them that changed nothing, since their gradients were not finite.
        skipped_in_a_row: those of them that came last, one after another.
        seconds: spent in optimizer steps, without evaluations and checkpoints, over all starts of the run.
        evaluated_step: step of the last evaluation; one that is due at a later step has been interrupted.
        is_hopeless: whether that one was worse than others were, as `--stop_below_median` has it.
        best_step: step of the best evaluation; the lower loss decides between equals.
        best_score: its `--metric_for_best_model`, less than 0 where a lower one is better.
        logged: sums since the last logged point, by name.
        logged_times: seconds since then, by phase of a step, and `waiting` of backward passes for other ranks.
        slow_ranks: those that the others have waited for, each once: `rank` and `host`; `first_step` and `last_step`,
            between which it was slow for so many `steps`; `slowdown`, the share by which it was slower at worst;
            `lacks_cores`, whether that was for other processes alone. On rank 0; others have those of earlier starts.
    """

    step: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    sentences: int = 0
    seconds: float = 0.0
    evaluated_step: int = 0
    is_hopeless: bool = False
    best_step: int | None = None
    best_score: float | None = None
    best_loss: float = 0.0
    evaluations_without_improvement: int = 0
    logged: dict[str, float] = field(default_factory=dict)
    logged_times: dict[str, float] = field(default_factory=dict)
    slow_ranks: list[dict[str, Any]] = field(default_factory=list)

    def count_step(self, sentences: int, tokens: int, busiest_tokens: int) -> None:
        """Count one optimizer step, by what is known of it beforehand. All figures are over all ranks.

        There would be `busiest_tokens` if each rank had as many as the one with the most.
        """
        self.step += 1
        self.sentences += sentences
        sums = {"steps": 1, "sentences": sentences, "tokens": tokens, "busiest_tokens": busiest_tokens}
        self.logged = _added(self.logged, sums)

    def add_measured(
        self, loss_sum: float, loss_weight: float, padded_tokens: int, times: dict[str, float], seconds: float
    ) -> None:
        """Add what was measured of some steps, over all ranks.

        Args:
            loss_sum: over the sentences of all steps that were not skipped, in nats.
            loss_weight: the sum of their weights, their number without `--class_weights`.
            padded_tokens: of all steps, padding included.
            times: seconds as in `logged_times`; means over the ranks.
            seconds: that the steps took.
        """
        self.seconds += seconds
        sums = {"loss": loss_sum, "loss_weight": loss_weight, "padded_tokens": padded_tokens, "seconds": seconds}
        self.logged, self.logged_times = _added(self.logged, sums), _added(self.logged_times, times)

    def count_evaluation(self, score: float, loss: float) -> bool:
        """Count one evaluation: the higher score is better. Returns whether it is the best so far."""
        self.evaluated_step = self.step
        is_better = self.best_score is None or score > self.best_score
        self.evaluations_without_improvement = 0 if is_better else self.evaluations_without_improvement + 1
        is_best = self.best_score is None or (score, -loss) > (self.best_score, -self.best_loss)
        if is_best:
            self.best_step, self.best_score, self.best_loss = self.step, score, loss
        return is_best

    def is_over(self, total_steps: int, patience: int | None) -> bool:
        """Whether all steps are done, `patience` evaluations in a row were no better, or others are too far ahead."""
        is_out_of_patience = patience is not None and self.evaluations_without_improvement >= patience
        return is_out_of_patience or self.is_hopeless or self.step == total_steps


def _added(sums: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    return {**sums} | {name: sums.get(name, 0) + value for name, value in more.items()}
