"""Latency: every classifier is called with everything, in turns, and the figures are in milliseconds."""

import time

from sst2.inference.onnx_export.latency import measure_latency


def test_they_take_turns_and_one_call_a_row_is_not_counted() -> None:
    calls: list[tuple[str, int]] = []
    classifiers = {name: lambda batch, name=name: calls.append((name, batch)) for name in ("one", "other")}
    figures = measure_latency(classifiers, [7, 8], rounds=2)
    assert calls == 2 * [*(("one", batch) for batch in (7, 7, 8)), *(("other", batch) for batch in (7, 7, 8))]
    assert {entry["calls"] for entry in figures.values()} == {4}


def test_the_figures_are_percentiles_in_milliseconds() -> None:
    waits = [0.002] * 18 + [0.03, 0.03]
    figures = measure_latency({"sleeper": time.sleep}, waits, rounds=1)["sleeper"]
    assert 2 <= figures["p5_ms"] <= figures["median_ms"] < figures["p95_ms"]  # a sleep never ends early
    assert figures["p95_ms"] >= 30
