"""A dry run says what the run then does, fails where the run would, and leaves nothing behind."""

import json
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sst2.config.arguments import read_settings
from sst2.training.dry_run.start_commands import time_limit
from tests.support.jobs import ONE_PROCESS, PYTHON, SLOW_DISK, TWO_PROCESSES, running
from tests.support.running import REPOSITORY, SCRIPT, Finished

Train = Callable[..., Finished]
ZERO_3 = [*ONE_PROCESS, "--config_file", REPOSITORY / "accelerate_configs" / "deepspeed_zero3.yaml"]
ZERO_3 += ["--num_processes", 2, "--mixed_precision", "no", "--main_process_port", 0]
# A disk that takes everything but a checkpoint, as sitecustomize.py of a folder in PYTHONPATH.
BROKEN_DISK = """
import errno, os, threading

def broken(descriptor, fsync=os.fsync):
    if threading.current_thread().name == "checkpoint writer":
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    fsync(descriptor)

os.fsync = broken
"""


def everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file and folder with its content and, of a file but the lock, the time of its last change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        has_time = path.is_file() and path.name != ".lock"  # which is opened for writing, and holds nothing
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = content, path.stat().st_mtime_ns if has_time else 0
    return found


def figures(finished: Finished) -> dict[str, Any]:
    """What `--json` printed, which is all that went to standard output."""
    assert finished.code == 0, finished.stderr
    found: dict[str, Any] = json.loads(finished.stdout)
    return found


@pytest.mark.parametrize("batching", ["packed", "padded"])
def test_it_counts_what_the_run_logs_and_leaves_nothing(
    batching: str, train_here: Train, small_job: list[Any], tmp_path: Path
) -> None:
    flags = [*small_job, "--batching", batching, "--global_batch_size", 40, "--per_device_train_batch_size", 20]
    flags += ["--eval_steps", 7, "--checkpointing_steps", 4]
    before = everything(tmp_path)
    dry = figures(train_here(*flags, "--dry_run", "--json", run_dir=tmp_path / "above" / "run"))
    assert everything(tmp_path) == before  # the folder above that of the run is gone, too
    run = train_here(*flags)
    assert run.code == 0, run.stderr
    logged = run.logged("train")
    known = {"left": 16, "done": 0, "total": len(logged), "per_epoch": 8, "sentences_each": 40, "passes_each": 2}
    assert dry["steps"] == known
    tokens = [line["tokens_per_second"] * line["step_seconds"] for line in logged]
    assert dry["tokens"] == round(sum(tokens))
    assert dry["sentences"] == round(sum(line["sentences_per_second"] * line["step_seconds"] for line in logged)) == 600
    padded = [count / (1 - line["padding_share"]) for count, line in zip(tokens, logged, strict=True)]
    assert dry["padding_share"] == pytest.approx(1 - sum(tokens) / sum(padded), abs=1e-9)
    assert (dry["padding_share"] > 0.01) == (batching == "padded")
    largest = dry["largest_step"]["number"]
    assert dry["largest_step"]["tokens"] == round(tokens[largest])
    if batching == "padded":
        assert dry["largest_step"]["padded"] == round(max(padded)) == round(padded[largest])
    assert dry["evaluations"] == len(run.logged("validation")) == 3  # after steps 7, 14 and 16
    assert dry["checkpoints"] == 4
    (*_, saved) = sorted((run.run_dir / "checkpoints").iterdir())
    size = sum(path.stat().st_size for path in saved.iterdir())
    assert dry["disk"]["checkpoint_bytes"] == pytest.approx(size, rel=0.01)
    assert dry["disk"]["run_bytes"] > 3 * size
    seconds = dict(dry["seconds"])
    assert min(seconds.values()) >= 0
    assert seconds.pop("total") == pytest.approx(sum(seconds.values()))


def test_the_table_says_it_for_people(train_here: Train, small_job: list[Any]) -> None:
    dry = train_here(*small_job, "--dry_run", "--price_per_hour", 3600)
    assert dry.code == 0, dry.stderr
    rows = dry.stdout.split("\n\n")[0].splitlines()
    assert rows[0].split() == ["dry", "run", "of", str(dry.run_dir)]
    names = ["steps", "tokens", "padding", "largest step", "evaluations", "parameters", "job", "peak memory, host"]
    names += ["checkpoint", "seconds a step", "time in all", "node-hours", "price"]
    assert [row[: len(name)] for row, name in zip(rows[1:], names, strict=True)] == names
    hours, minutes, seconds = map(int, rows[-3].split()[3].split(":"))
    assert float(rows[-1].split()[1].replace(",", "")) == pytest.approx(3600 * hours + 60 * minutes + seconds, abs=0.6)


def test_its_commands_start_this_very_run(train_here: Train, small_job: list[Any], tmp_path: Path) -> None:
    flags = [*small_job, "--label_names", "0", "1", "--stage_dir", tmp_path / "a place", "--load_best_model_at_end"]
    flags += ["--overwrite_output_dir", "--max_grad_norm", 0]
    dry = figures(train_here(*flags, "--dry_run", "--json", "--price_per_hour", 1))
    asked = read_settings([*map(str, flags)], "test", "")
    launch, submit = (shlex.split(dry["commands"][name]) for name in ("accelerate", "sbatch"))
    assert launch[:4] == ["accelerate", "launch", "--config_file", "accelerate_configs/single_cpu.yaml"]
    assert (REPOSITORY / launch[3]).is_file()
    for words, script in ((launch, "train_sst2.py"), (submit, "slurm/train.sh")):
        assert (REPOSITORY / script).is_file()
        settings = read_settings(words[words.index(script) + 1 :], "test", "")
        assert {name for name, value in settings.values().items() if value != getattr(asked, name)} == {
            "output_dir",
            "mixed_precision",
        }
        assert (settings.run_dir, settings.mixed_precision) == (tmp_path / "run", "no")
    limits = dict(pairwise(submit))
    hours, minutes, seconds = map(int, limits["--time"].split(":"))
    assert 1.25 * dry["seconds"]["total"] + 180 <= 3600 * hours + 60 * minutes + seconds
    assert 1.2 * max(dry["memory"]["nodes_mib"]) <= 1024 * int(limits["--mem"].removesuffix("G"))


@pytest.mark.parametrize(("minutes", "limit"), [(4, "00:04:00"), (125, "02:05:00"), (2 * 1440 + 61, "2-01:01:00")])
def test_time_limits_are_as_slurm_takes_them(minutes: int, limit: str) -> None:
    assert time_limit(minutes) == limit


def test_a_run_in_the_folder_is_left_as_it_is(train_here: Train, small_job: list[Any]) -> None:
    job = [*small_job, "--load_best_model_at_end", "--checkpointing_steps", 5]
    run = train_here(*job)
    assert run.code == 0, run.stderr
    before = everything(run.run_dir)
    earlier = run.run_dir / "checkpoints" / "step-00000015"
    for flags, done in ((["--overwrite_output_dir"], 0), (["--resume_from_checkpoint", earlier], 15)):
        dry = train_here(*job, *flags, "--dry_run", "--json")
        assert "taking the last" not in dry.stderr
        steps = figures(dry)["steps"]
        assert (steps["done"], steps["left"], steps["total"]) == (done, 20 - done, 20)
        assert everything(run.run_dir) == before
    again = train_here(*job, "--resume_from_checkpoint", "auto", "--dry_run", "--json")
    assert (again.code, again.stdout) == (0, "")
    assert "has finished already" in again.stderr
    assert everything(run.run_dir) == before


def test_a_run_that_has_taken_all_steps_has_its_end_left(train_here: Train, small_job: list[Any]) -> None:
    run = train_here(*small_job, "--load_best_model_at_end")
    (run.run_dir / "metrics.json").unlink()
    (run.run_dir / "checkpoints" / ".step-00000010.unfinished").mkdir()  # of a kill, which a start would remove
    before = everything(run.run_dir)
    dry = figures(
        train_here(*small_job, "--load_best_model_at_end", "--resume_from_checkpoint", "auto", "--dry_run", "--json")
    )
    assert (dry["steps"]["left"], dry["evaluations"], dry["checkpoints"], dry["seconds"]["steps"]) == (0, 0, 0, 0)
    assert dry["seconds"]["end"] > 0
    assert everything(run.run_dir) == before


def test_a_folder_that_the_run_is_refused(train_here: Train, small_job: list[Any], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    before = everything(tmp_path)
    dry, run = (train_here(*small_job, *flags) for flags in (["--dry_run"], []))
    assert (dry.code, dry.stderr) == (2, run.stderr)
    assert everything(tmp_path) == before


def test_a_folder_that_is_there_and_empty_stays_so(train_here: Train, small_job: list[Any], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert train_here(*small_job, "--max_train_steps", 2, "--dry_run").code == 0
    assert everything(tmp_path) == {"run": (b"", 0)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "config", "variables"),
    [([*TWO_PROCESSES], "multi_cpu", ""), (ZERO_3, "deepspeed_zero3", "SST2_CONFIG=deepspeed_zero3 ")],
    ids=["two processes", "ZeRO-3"],
)
def test_all_ranks_take_part(
    launcher: list[Any], config: str, variables: str, train: Train, small_job: list[Any], tmp_path: Path
) -> None:
    before = everything(tmp_path)
    finished = train(*small_job, "--dry_run", "--json", launcher=[*map(str, launcher)], run_dir=tmp_path / "run")
    dry = figures(finished)
    assert everything(tmp_path) == before
    assert [one["rank"] for one in dry["memory"]["ranks"]] == [0, 1]
    assert all(one["host_mib"] > 100 for one in dry["memory"]["ranks"])
    assert [one["launcher_mib"] > 100 for one in dry["memory"]["ranks"]] == [True, False]
    (node,) = dry["memory"]["nodes_mib"]
    assert node == pytest.approx(sum(one["host_mib"] + one["launcher_mib"] for one in dry["memory"]["ranks"]))
    assert (dry["job"]["processes"], dry["job"]["nodes"], dry["steps"]["total"]) == (2, 1, 10)
    assert (dry["gpu_hours"], dry["node_hours"]) == (None, pytest.approx(dry["seconds"]["total"] / 3600))
    assert f"/accelerate_configs/{config}.yaml --num_processes 2 " in dry["commands"]["accelerate"]
    assert dry["commands"]["sbatch"].startswith(f"{variables}SST2_PROCESSES=2 sbatch --cpus-per-task ")


@pytest.mark.slow
def test_a_stop_leaves_nothing_either(long_job: list[Any], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW_DISK.format(seconds=1))
    run_dir = tmp_path / "above" / "run"
    run_dir.parent.mkdir()
    with running([*long_job, "--dry_run"], run_dir, PYTHON, PYTHONPATH=str(tmp_path)) as job:
        job.wait_for(lambda: [*run_dir.glob(".dry-run.unfinished/checkpoints/.*.unfinished")])
        job.process.send_signal(signal.SIGTERM)
        ended = job.wait()
    assert ended.code == 75, ended.stderr
    assert ended.stderr.splitlines()[-1] == "train_sst2.py: stopped by SIGTERM"
    assert not run_dir.exists()


@pytest.mark.slow
def test_a_kill_leaves_hidden_files_that_the_next_start_removes(long_job: list[Any], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW_DISK.format(seconds=1))
    run_dir = tmp_path / "run"
    with running([*long_job, "--dry_run"], run_dir, PYTHON, PYTHONPATH=str(tmp_path)) as job:
        job.wait_for(lambda: [*run_dir.glob(".dry-run.unfinished/checkpoints/.*.unfinished")])
        job.process.send_signal(signal.SIGKILL)
        job.process.wait()
    assert {path.name for path in run_dir.iterdir()} == {".lock", ".dry-run.unfinished"}
    with running([*long_job, "--max_train_steps", 1], run_dir) as job:
        assert job.wait().code == 0
    assert not [*run_dir.glob(".dry-run*")]


@pytest.mark.slow
def test_a_disk_that_takes_no_checkpoint_is_found(long_job: list[Any], tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    (tmp_path / "sitecustomize.py").write_text(BROKEN_DISK)
    temporary = str(tmp_path / "temporary")
    with running([*long_job, "--dry_run"], tmp_path / "run", PYTHON, PYTHONPATH=str(tmp_path), TMPDIR=temporary) as job:
        ended = job.wait()
    assert ended.code == 2, ended.stderr
    assert "Input/output error" in ended.stderr.splitlines()[-1]
    assert not ended.run_dir.exists()
    assert [*(tmp_path / "temporary").iterdir()] == []  # where a run would save it instead


@pytest.mark.slow
def test_a_step_that_memory_does_not_suffice_for(long_job: list[Any], tmp_path: Path) -> None:
    sentence = "a gripping , funny film " * 30
    (tmp_path / "train.tsv").write_text("sentence\tlabel\n" + f"{sentence}\t1\n{sentence}\t0\n" * 40_000)
    flags = [*long_job, "--train_file", tmp_path / "train.tsv", "--global_batch_size", 80_000]
    flags += ["--per_device_train_batch_size", 80_000, "--max_train_steps", 1, "--output_dir", tmp_path / "run"]
    limit = 6 << 30
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, flags), "--dry_run"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("train_sst2.py: error: out of memory (")
    assert "in the dry run, for a step of 80000 sentences and 10240000 tokens, 80000 sentences at once" in line
    assert (
        "--per_device_train_batch_size 40000 --global_batch_size 80000 takes the same steps in smaller passes" in line
    )
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "run").exists()
