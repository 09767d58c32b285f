"""Where the time of a step goes: launches and microseconds by class of kernel on a GPU, operators on a CPU.

    python benchmarks/profile_steps.py --output profile.txt --trace trace.json

The job is that of benchmarks/throughput.py, bf16 and packed. Five steps are recorded after all shapes are known.
"""

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # for benchmarks and train_sst2.py

STEPS = 5
WARM_UP = {"cuda": 300, "cpu": 3}  # until all shapes are captured
TIMED = {"cuda": 96, "cpu": 3}  # steps without the profiler
# The first pattern that is found in a kernel's name says what it does.
CLASSES = {
    "AdamW": r"adam",
    "gradient norm": r"lpnorm|l2norm|norm_except",
    "attention": r"flash|fmha|attention",
    "matrix products": r"gemm|nvjet|cutlass|cublas|splitk|xmma",
    "LayerNorm": r"layer_?norm|gammabeta",
    "softmax and loss": r"softmax|nll_loss|cross_entropy",
    "dropout, random numbers": r"dropout|distribution|philox|random",
    "casts, copies": r"copy|memcpy|catarray",
    "fills": r"fill|memset",
    "embedding, indexing": r"index|embedding|gather|scatter|sort|unique|krn_partial",
    "sums": r"reduce|sum",
    "Triton": r"triton",
    "other elementwise": r"elementwise|multi_tensor",
}


def main() -> None:
    """Record, print the tables, and write them to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--small", action="store_true", help="a tiny model: a trial of the benchmark, not a figure")
    parser.add_argument("--model", default="distilbert", help="one that benchmarks/throughput.py takes")
    parser.add_argument("--output", type=Path, help="text file for the tables")
    parser.add_argument("--trace", type=Path, help="JSON file for chrome://tracing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        text = profile(Path(folder), arguments)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")


def profile(folder: Path, arguments: argparse.Namespace) -> str:
    """Take steps, record some of them, and say where their time went."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    from benchmarks.throughput import circumstances, this_job, write_inputs
    from benchmarks.turns import synchronize

    write_inputs(folder, small=arguments.small, model=arguments.model)
    step = this_job(folder, arguments.batch_size, "bf16", "packed")
    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    for _ in range(WARM_UP[device]):
        step()
    synchronize()
    moments = [time.perf_counter()]
    for _ in range(TIMED[device]):
        step()
        moments.append(time.perf_counter())
    synchronize()
    each = (time.perf_counter() - moments[0]) / TIMED[device]
    on_host = statistics.median(end - begin for begin, end in pairwise(moments))  # few of them wait for the device
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profiler(activities=activities) as recorded:
        for _ in range(STEPS):
            step()
        synchronize()
    trace = arguments.trace or folder / "trace.json"
    recorded.export_chrome_trace(str(trace))
    title = f"{STEPS} steps of {arguments.batch_size} sentences, bf16, packed: {circumstances()['machine']}, torch "
    title += f"{torch.__version__}\nwithout the profiler, means of {TIMED[device]} steps: {1000 * each:.3f} ms a step; "
    title += f"the host takes {1000 * on_host:.3f} to ask for one (median)"
    kernels = by_class(json.loads(trace.read_text(encoding="utf-8"))["traceEvents"])
    order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    table = recorded.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=100)
    return "\n\n".join([title, *([kernels] if on_gpu else []), table])


def by_class(events: list[dict[str, Any]]) -> str:
    """Launches and time on the GPU of a step, by class of kernel, and the largest kernels of each class.

    Args:
        events: of a trace that torch.profiler has written.
    """
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    spans = []
    for event in events:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            found[kernel_class(event["name"])][event["name"]].append(event["dur"])
            spans.append((event["ts"], event["ts"] + event["dur"]))
    total = sum(sum(sum(times) for times in kernels.values()) for kernels in found.values())
    lines = [f"{'':32}{'launches':>10}{'us':>10}{'share':>8}   of a step"]
    classes = sorted(found.items(), key=lambda item: -sum(map(sum, item[1].values())))
    for name, kernels in classes:
        launches, time_of_it = sum(map(len, kernels.values())), sum(map(sum, kernels.values()))
        lines.append(f"{name:32}{launches / STEPS:10.1f}{time_of_it / STEPS:10.1f}{time_of_it / total:8.1%}")
    span = max(end for _, end in spans) - min(begin for begin, _ in spans) if spans else 0
    launches = len(spans)
    lines.append(f"{'all':32}{launches / STEPS:10.1f}{total / STEPS:10.1f}   from first to last {span / STEPS:.1f}")
    for name, kernels in classes:
        lines.append(f"\n{name}")
        for kernel, times in sorted(kernels.items(), key=lambda item: -sum(item[1]))[:6]:
            lines.append(f"  {len(times) / STEPS:8.1f}{sum(times) / STEPS:10.1f}  {kernel[:110]}")
    return "\n".join(lines)


def kernel_class(name: str) -> str:
    """What a kernel does, by its name."""
    return next((label for label, pattern in CLASSES.items() if re.search(pattern, name, re.IGNORECASE)), "other")


if __name__ == "__main__":
    main()
