"""Where the time of a step goes: launches and microseconds by class of kernel on a GPU, operators on a CPU.

    python benchmarks/profile_steps.py --output profile.txt --trace trace.json

The job is that of benchmarks/throughput.py, bf16 and packed. Five steps are recorded after all shapes are known.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # for benchmarks and train_sst2.py

STEPS = 5
WARM_UP = {"cuda": 300, "cpu": 3}  # until all shapes are captured
TIMED = {"cuda": 96, "cpu": 3}  # steps without the profiler


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
    from sst2.training.profiling import by_class, by_operator

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
    kernels = by_class(json.loads(trace.read_text(encoding="utf-8"))["traceEvents"], STEPS)
    return "\n\n".join([title, *([kernels] if on_gpu else []), by_operator(recorded, on_gpu)])


if __name__ == "__main__":
    main()
