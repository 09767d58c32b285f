"""How long a classifier takes for a call, several of them taking turns so that a noisy moment strikes all."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

PAUSE = 0.05  # seconds until the threads of the one before have gone to sleep: they look out for work for a while
PERCENTILES = (5, 50, 95)


def measure_latency(
    classifiers: Mapping[str, Callable[[Any], object]],
    batches: Sequence[Any],
    rounds: int,
    round_done: Callable[[], object] = lambda: None,
) -> dict[str, dict[str, float]]:
    """Milliseconds of a call, by classifier: `median_ms`, 5th and 95th percentile `p5_ms`, `p95_ms`, number of `calls`.

    In each round, each classifier is called with all batches in a row, as in use, where its weights stay in the caches.
    A call before each row is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in classifiers}
    for _ in range(rounds):
        for name, classify in classifiers.items():
            time.sleep(PAUSE)
            classify(batches[0])
            for batch in batches:
                started = time.perf_counter()
                classify(batch)
                seconds[name].append(time.perf_counter() - started)
        round_done()
    figures = {}
    for name, taken in seconds.items():
        low, median, high = (float(value) * 1e3 for value in np.percentile(taken, PERCENTILES))
        figures[name] = {"median_ms": median, "p5_ms": low, "p95_ms": high, "calls": len(taken)}
    return figures
