"""The profile of some steps: a trace that holds them and their phases, tables that add up, and steps that are done."""

import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sst2.training.profiling import StepProfiler, by_class, by_phase, kernel_class, read_trace
from sst2.utils.device_timing import PHASES, Phases
from tests.support.running import Finished

CPU = torch.device("cpu")


def annotations(trace: Path) -> list[dict[str, Any]]:
    """The steps and phases that are marked in a trace, in the order of time."""
    with gzip.open(trace, "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    marks = (event for event in events if event.get("cat") == "user_annotation")  # some are torch's own
    ours = (mark for mark in marks if mark["name"] in PHASES or mark["name"].startswith("step "))
    return sorted(ours, key=lambda event: event["ts"])


def test_a_trace_and_a_table_of_the_steps_asked_for(
    train_here: Callable[..., Finished], small_job: list[object]
) -> None:
    plain = train_here(*small_job, "--max_train_steps", 6)
    weights = plain.metrics["model_sha256"]
    run = train_here(*small_job, "--max_train_steps", 6, "--profile_steps", "3:5", "--overwrite_output_dir")
    assert run.code == 0, run.stderr
    assert run.metrics["model_sha256"] == weights  # it only looks
    trace, table = (run.run_dir / "profile" / f"steps-3-5-rank0.{kind}" for kind in ("json.gz", "txt"))
    assert sorted((run.run_dir / "profile").iterdir()) == [trace, table]
    assert "profiler_st" not in run.stderr  # what the profiler's library says
    assert f"profile: open {trace} in https://ui.perfetto.dev; where the time goes: {table}" in run.stderr
    marks = annotations(trace)
    steps = [mark for mark in marks if mark["name"].startswith("step ")]
    assert [step["name"] for step in steps] == ["step 3", "step 4", "step 5"]
    for step in steps:
        end = step["ts"] + step["dur"]
        within = [mark for mark in marks if mark is not step and step["ts"] <= mark["ts"] < end]
        names = [mark["name"] for mark in within]
        assert names[0] == "data"
        assert names[-3:] == ["forward", "backward", "optimizer"]
        assert all(mark["ts"] + mark["dur"] <= end + 1 for mark in within)
    operators = {event["name"] for event in read_trace(trace) if event.get("cat") == "cpu_op"}
    assert {"aten::addmm", "aten::embedding"} <= operators
    text = table.read_text()
    assert text.startswith("steps 3 to 5 of rank 0 on ")
    rows = {words[0]: float(words[1]) for line in text.split("\n\n")[1].splitlines()[1:] if (words := line.split())}
    assert [*rows] == ["data", "forward", "backward", "optimizer", "rest", "step"]
    assert rows["step"] == pytest.approx(sum(rows.values()) - rows["step"], abs=0.01)
    assert rows["step"] == pytest.approx(sum(step["dur"] for step in steps) / 3000, abs=0.01)
    assert "aten::addmm" in text


@pytest.mark.slow
def test_steps_that_are_done_are_left_out(train_here: Callable[..., Finished], small_job: list[object]) -> None:
    flags = [*small_job, "--max_train_steps", 7, "--checkpointing_steps", 4]
    run = train_here(*flags)
    resume = ["--resume_from_checkpoint", run.run_dir / "checkpoints" / "step-00000004"]
    said = train_here(*flags, *resume, "--profile_steps", "2:4").stderr
    assert "--profile_steps 2:4: the run has done 4 steps: nothing is recorded" in said
    assert not (run.run_dir / "profile").exists()
    said = train_here(*flags, *resume, "--profile_steps", "3:6").stderr
    assert "--profile_steps 3:6: the run has done 4 steps: steps 5 to 6 are recorded" in said
    assert {file.name.split("-rank")[0] for file in (run.run_dir / "profile").iterdir()} == {"steps-5-6"}
    finished = train_here(*flags, "--resume_from_checkpoint", "auto", "--profile_steps", "2:4")
    assert "has finished already" in finished.stderr  # the flag makes it no other run


def profiled(folder: Path, steps: range) -> StepProfiler:
    """One that has seen three steps, and then the end of the run."""
    phases = Phases(CPU)
    profiler = StepProfiler(steps, done=0, phases=phases, folder=folder, rank=1, device=CPU)
    for number in (1, 2, 3):
        with profiler.step(number):
            phases.begin("forward")
            torch.ones(3).sum()
            phases.end()
        phases.begin("stop_check")
        phases.end()
    profiler.close()
    return profiler


def test_a_run_that_stops_amid_the_range_has_what_was_recorded(tmp_path: Path) -> None:
    profiled(tmp_path / "profile", range(2, 99)).close()
    files = sorted(file.name for file in (tmp_path / "profile").iterdir())
    assert files == ["steps-2-3-rank1.json.gz", "steps-2-3-rank1.txt"]
    names = [mark["name"] for mark in annotations(tmp_path / "profile" / files[0])]
    assert names == ["step 2", "forward", "stop_check", "step 3", "forward", "stop_check"]
    profiled(tmp_path / "other", range(4, 99))
    assert not (tmp_path / "other").exists()


def test_a_run_that_fails_amid_the_range_fails_as_without(
    train_here: Callable[..., Finished], small_job: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sst2.training.trainer.MAX_SKIPPED_STEPS", 0)  # each step counts as one too many
    run = train_here(*small_job, "--profile_steps", "1:20")
    assert run.code == 3
    assert "not finite" in run.stderr.splitlines()[-1]
    assert not (run.run_dir / "profile").exists()
    assert not torch._C._autograd._profiler_enabled()  # else torch would crash as this process exits


def test_a_profile_that_cannot_be_written_costs_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    profiled(tmp_path / "file", range(1, 3))
    assert f"the profile in {tmp_path / 'file'} cannot be written (File exists): going on without it" in caplog.text
    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", lambda _, file: gzip.open(file, "w").close())
    profiled(tmp_path / "profile", range(1, 3))  # as torch leaves it where the folder of its temporary file is full
    assert f"cannot be written (no JSON came out: {tempfile.gettempdir()} may be full)" in caplog.text
    assert not [*(tmp_path / "profile").glob("steps-*")]


def test_a_gpu_has_a_column_of_its_own() -> None:
    def mark(cat: str, name: str, ms: float) -> dict[str, Any]:
        return {"cat": cat, "name": name, "dur": 1000 * ms, "ts": 0}

    events = [mark("user_annotation", f"step {number}", 10.0) for number in (7, 8)]
    events += [mark("user_annotation", "graph", 4.0), mark("user_annotation", "stop_check", 50.0)]
    events += [mark("gpu_user_annotation", "graph", 16.0), mark("kernel", "graph", 1.0)]
    assert [line.split() for line in by_phase(events, steps=2).splitlines()] == [
        ["phase", "host,", "ms", "share", "GPU,", "ms", "of", "a", "step"],
        ["graph", "2.000", "20.0%", "8.000"],
        ["rest", "8.000", "80.0%"],
        ["step", "10.000", "100.0%"],
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("void multi_tensor_apply_kernel<TensorListMetadata, FusedAdamMathFunctor<float, 4, (ADAM_MODE)1>>", "AdamW"),
        ("void multi_tensor_apply_kernel<TensorListMetadata<1>, LpNormFunctor<float, (NormType)1>>", "gradient norm"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Flash_bwd_kernel_traits>", "attention"),
        ("nvjet_sm90_tst_128x64_64x8_2x4_h_bz_NTT", "matrix products"),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float>", "LayerNorm"),
        ("void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>", "casts, copies"),
        ("Memcpy HtoD (Pinned -> Device)", "casts, copies"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>", "fills"),
        ("void at::native::reduce_kernel<128, 4, at::native::ReduceOp<float, sum_functor>>", "sums"),
        ("void at::native::vectorized_elementwise_kernel<8, GeluCUDAKernelImpl>", "other elementwise"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "collectives"),
        ("something_new", "other"),
    ],
)
def test_kernels_have_a_class(name: str, expected: str) -> None:
    assert kernel_class(name) == expected


def test_launches_and_times_add_up() -> None:
    events = [{"cat": "kernel", "name": "nvjet_a", "ts": 10.0 * number, "dur": 4.0} for number in range(3 * 5)] + [
        {"cat": "gpu_memset", "name": "Memset (Device)", "ts": 1000.0, "dur": 10.0},
        {"cat": "cpu_op", "name": "x"},
    ]
    lines = by_class(events, steps=5).splitlines()
    assert lines[1].split() == ["matrix", "products", "3.0", "12.0", "85.7%"]
    assert lines[2].split()[:3] == ["fills", "0.2", "2.0"]
    assert lines[3].split()[:3] == ["all", "3.2", "14.0"]
