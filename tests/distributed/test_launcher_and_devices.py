"""What the launcher and the machine say is followed, and what is recorded of them holds no secret."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from sst2.distributed import cpu
from sst2.distributed import precision as precision_module
from sst2.distributed.cpu import limit_threads, use_all_cores
from sst2.distributed.devices import overlooks_gpus, runs_on_cpu
from sst2.distributed.precision import choose_precision
from sst2.tracking.environment import RECORDED_VARIABLES, describe_environment
from sst2.training.step_metrics import peak_memory_mib
from sst2.utils.errors import UserError
from tests.support.running import REPOSITORY

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # the same on a machine with a GPU


@pytest.mark.parametrize(
    ("requested", "launcher", "expected"),
    [
        (None, None, "no"),
        (None, "no", "no"),
        (None, "", "no"),
        (None, "bf16", "bf16"),
        ("no", "bf16", "no"),
        ("no", "fp16", "no"),  # the flag has the last word, so the launcher's choice does not matter
        ("bf16", "no", "bf16"),
    ],
)
def test_the_flag_wins_over_the_launcher(
    requested: str | None, launcher: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if launcher is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    precision, reason = choose_precision(requested)  # type: ignore[arg-type]
    assert precision == expected
    assert ("--mixed_precision" in reason) == (requested is not None)
    assert ("set by ACCELERATE_MIXED_PRECISION" in reason) == (requested is None and bool(launcher))


@pytest.mark.parametrize(("gain", "expected"), [(0.5, "no"), (1.2, "no"), (4.0, "bf16")])
def test_auto_measures_the_processor_and_does_not_ask_the_launcher(
    gain: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision_module, "bf16_gain", lambda: gain)
    monkeypatch.setattr(precision_module, "_cpu_has_bf16", lambda: True)  # whichever CPU this is
    for launcher in ("no", "bf16", "fp16"):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
        precision, reason = choose_precision("auto")
        assert precision == expected
        assert f"{gain:.1f} times as fast" in reason


def test_a_cpu_without_bf16_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_module, "_cpu_has_bf16", lambda: False)
    monkeypatch.setattr(precision_module, "bf16_gain", lambda: pytest.fail("it would emulate"))
    assert choose_precision("auto")[0] == "no"


@pytest.mark.parametrize(("requested", "launcher"), [("fp16", "no"), (None, "fp16")])
def test_fp16_on_a_cpu_is_refused(requested: str | None, launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    with pytest.raises(UserError, match="--mixed_precision fp16 needs a GPU"):
        choose_precision(requested)  # type: ignore[arg-type]


def test_bf16_is_refused_where_the_gpu_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")  # such a GPU is not at hand
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(UserError, match="bf16: Tesla T4 has no bf16 matrix units: give fp16, no or auto"):
        choose_precision("bf16")
    assert choose_precision("auto")[0] == "fp16"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert choose_precision("bf16")[0] == "bf16"


def test_a_precision_that_only_the_launcher_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(UserError, match="the launcher asks for fp8: give --mixed_precision bf16, fp16, no or auto"):
        choose_precision(None)
    assert choose_precision("no")[0] == "no"


def test_the_cpu_is_used_when_the_launcher_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runs_on_cpu()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    assert runs_on_cpu() is not torch.accelerator.is_available()
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert not runs_on_cpu()


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees them")
def test_gpus_that_torch_does_not_see_are_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ACCELERATE_USE_CPU", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "nvidiactl").touch()
    assert not overlooks_gpus(tmp_path)
    (tmp_path / "nvidia0").touch()
    assert overlooks_gpus(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert not overlooks_gpus(tmp_path)
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not overlooks_gpus(tmp_path)


def test_only_named_variables_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "SLURM_JWT", "SLURM_JOB_ACCOUNT", "AWS_SECRET_ACCESS_KEY", "PASSWORD"):
        monkeypatch.setenv(name, "verysecret")
    for name in RECORDED_VARIABLES.split():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    record = describe_environment(3, CPU, "bf16", {"strategy": "no"})
    assert "verysecret" not in json.dumps(record)
    assert record["variables"] == {"SLURM_JOB_ID": "4711", "CUDA_VISIBLE_DEVICES": "0"}
    assert (record["world_size"], record["device"], record["mixed_precision"]) == (3, "cpu", "bf16")
    assert record["packages"]["torch"].startswith(torch.__version__.split("+")[0])
    assert record["device_name"]


def test_the_commit_is_that_of_the_checkout() -> None:
    command = ["git", "rev-parse", "HEAD"]
    head = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False).stdout.strip()
    recorded = describe_environment(1, CPU, "no", {})["git_commit"]
    if head:  # else the tests run from an unpacked archive
        assert recorded is not None
        assert re.fullmatch(rf"{head}(-dirty)?", recorded)
    else:
        assert recorded is None


@pytest.mark.parametrize(
    ("variables", "launcher"),
    [
        ({}, "python"),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, "python"),  # which somebody has exported
        ({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_MODE": "default"}, "accelerate launch"),
        ({"TORCHELASTIC_RUN_ID": "x"}, "python"),  # which a launcher has left
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "1"}, "torchrun"),
        (
            {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "1", "ACCELERATE_MIXED_PRECISION": "no"},
            "accelerate launch (torchrun)",
        ),
    ],
)
def test_the_launcher_is_recorded(variables: dict[str, str], launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert describe_environment(1, CPU, "no", {})["launcher"] == launcher


OF_SMOKE, OF_BASE = (64, 256), (768, 3072)  # the largest layers


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("local_processes", [1, 2, 10_000])
def test_cores_are_shared_out_where_a_launcher_left_one_thread(
    local_processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = min(psutil.cpu_count(logical=False) or 1, len(os.sched_getaffinity(0)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local_processes))
    use_all_cores()
    assert torch.get_num_threads() == 3  # without a launcher, torch has all cores, or what the user wants
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    use_all_cores()
    assert torch.get_num_threads() == 3  # nor does a variable make a launcher
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", str(local_processes))
    for is_chosen in (True, False):
        monkeypatch.setattr(cpu, "threads_are_chosen", lambda answer=is_chosen: answer)
        use_all_cores()
        shared_out = not is_chosen and not torch.cuda.is_available()
        assert torch.get_num_threads() == (max(1, cores // local_processes) if shared_out else 3)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize(
    ("shape", "asked_for", "expected"),
    [(OF_SMOKE, None, 1), (OF_SMOKE, "1", 1), (OF_SMOKE, "3", 3), (OF_BASE, None, 3), (OF_BASE, "1", 3)],
)
def test_a_small_model_takes_one_thread_unless_somebody_has_said_otherwise(
    shape: tuple[int, int], asked_for: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    if asked_for:
        monkeypatch.setenv("OMP_NUM_THREADS", asked_for)
    width, inner = shape
    limit_threads(torch.nn.Sequential(torch.nn.Embedding(30_000, width), torch.nn.Linear(width, inner)))
    assert torch.get_num_threads() == expected


def test_peak_memory_is_in_mebibytes() -> None:
    resident = psutil.Process().memory_info().rss / 2**20
    peak = peak_memory_mib(CPU)
    assert 0.9 * resident < peak < psutil.virtual_memory().total / 2**20
    ballast = b"x" * (400 * 2**20)
    assert peak_memory_mib(CPU) >= max(peak, len(ballast) / 2**20)


@pytest.mark.slow
def test_peak_memory_is_not_that_of_the_program_that_has_started_this_one() -> None:
    ballast = b"x" * (1200 * 2**20)  # from a program of that size, ru_maxrss would begin at as much
    code = "from sst2.training.step_metrics import peak_host_memory_mib; print(peak_host_memory_mib())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 50 < float(said) < len(ballast) / 2**20


def test_a_configuration_for_gpus_on_a_host_without_is_warned_of_unless_it_is_meant(tmp_path: Path) -> None:
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    script = tmp_path / "train_sst2.py"
    script.write_text(
        "import os\nfrom sst2.distributed.devices import gpu_flags_of_launcher as flags\n"
        "del os.environ['ACCELERATE_USE_CPU']\nos.environ.pop('CUDA_VISIBLE_DEVICES', None)\nfound = [flags()]\n"
        "for name in ('ACCELERATE_USE_CPU', 'CUDA_VISIBLE_DEVICES', 'SST2_BATCH_JOB'):\n"
        "    os.environ[name] = 'true'\n    found.append(flags())\n    del os.environ[name]\n"
        "os.environ |= {'SST2_BATCH_JOB': '1', 'SST2_CONFIG': 'multi_gpu'}\n"
        "print([*found, flags()])\n"
    )
    # the launcher's part is played by its parent, whose words are those that are looked at
    parent = "import subprocess, sys; subprocess.run([sys.executable, sys.argv[-1]], check=True)"
    words = [sys.executable, "-c", parent, "launch", "--config_file=multi_gpu.yaml", str(script)]
    done = subprocess.run(
        words, env=os.environ | {"ACCELERATE_DYNAMO_MODE": "default"}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "['multi_gpu.yaml', '', '', '', 'multi_gpu.yaml']\n", done.stderr
