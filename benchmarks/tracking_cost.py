"""What watching a run costs: seconds in everything that writes for TensorBoard and the logs, beside the run's own.

    python benchmarks/tracking_cost.py --output FILE.json [flags of train_sst2.py]

It is `train_sst2.py` in this process, with a clock around the methods of the tracker, and of what measures the phases
of a step.
"""

import argparse
import functools
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # for train_sst2.py and benchmarks

from benchmarks.throughput import circumstances


def main() -> None:
    """Measure, print the figures, and write them to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments, flags = parser.parse_known_args()
    figures = measure(flags)
    print(json.dumps(figures, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure(flags: list[str]) -> dict[str, Any]:
    """Run the job once.

    Args:
        flags: of train_sst2.py.

    Returns:
        Seconds and calls by method, their sum, and its share of the time of `fit`.
    """
    import train_sst2
    from sst2.config.arguments import parse_arguments
    from sst2.distributed.stop_requests import StopRequests
    from sst2.tracking.dashboard import Dashboard
    from sst2.tracking.tracker import Tracker
    from sst2.utils.device_timing import Phases

    seconds: defaultdict[str, float] = defaultdict(float)
    calls: defaultdict[str, int] = defaultdict(int)

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def wrapper(*positional: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return work(*positional, **named)
            finally:
                seconds[name] += time.perf_counter() - started
                calls[name] += 1

        return wrapper

    watched = {
        Tracker: ("log", "show", "note_start", "note_end", "log_checkpoint", "flush"),
        Phases: ("begin", "end", "take"),
    }
    for owner, names in watched.items():
        for name in names:
            setattr(owner, name, timed(f"{owner.__name__}.{name}", getattr(owner, name)))
    pictures = "Dashboard._draw, part of Tracker.show"
    Dashboard._draw = timed(pictures, Dashboard._draw)  # type: ignore[method-assign]
    train_sst2.fit = timed("fit", train_sst2.fit)

    train_sst2.main(parse_arguments(flags), StopRequests())
    fit = seconds.pop("fit")
    total = sum(value for name, value in seconds.items() if name != pictures)
    return {
        "what": "seconds that watching a run takes, the final evaluation included, and their share of those of `fit`",
        **circumstances(),
        "fit_seconds": fit,
        "watching_seconds": total,
        "share": total / fit,
        "by_method": {name: {"seconds": seconds[name], "calls": calls[name]} for name in sorted(seconds)},
    }


if __name__ == "__main__":
    main()
