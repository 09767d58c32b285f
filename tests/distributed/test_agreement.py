"""Ranks that would not train the same do not train: what differs is said, and on which rank of which host."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sst2.distributed.agreement import differences
from sst2.runs.run_folder import MARK, OF_JOB
from tests.support.jobs import Forked
from tests.support.processes import free_port
from tests.support.running import SCRIPT


def run_two(
    flags: list[Any], of_each: list[list[Any]], run_dir: Path, caches: tuple[str, str] | None = None
) -> list[tuple[int, str]]:
    """Exit code and last line of two ranks, as two machines start them, each with flags, and a cache, of its own."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "ACCELERATE_USE_CPU": "true"}
    place |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    words = [*map(str, flags), "--output_dir", str(run_dir)]
    outputs = [run_dir.with_name(f"output-{rank}") for rank in range(2)]
    ranks: list[Forked | subprocess.Popen[bytes]] = []
    for rank, (own, output) in enumerate(zip(of_each, outputs, strict=True)):
        command, variables = [*words, *map(str, own)], os.environ | place | {"RANK": str(rank)}
        if caches is None:
            ranks.append(Forked(command, output, [variables]))
        else:  # which libraries read when they are imported
            variables["HF_HOME"] = caches[rank]
            with output.open("wb") as stream:
                ranks.append(subprocess.Popen([sys.executable, str(SCRIPT), *command], env=variables, stderr=stream))
    codes = [rank.wait(120) for rank in ranks]
    return [(code, output.read_text().strip().rpartition("\n")[2]) for code, output in zip(codes, outputs, strict=True)]


def cached(model: Path, home: Path) -> str:
    """A Hugging Face cache that has seen the model as the newest revision of `someone/model`."""
    folder, commit = home / "hub" / "models--someone--model", hashlib.sha1(str(home).encode()).hexdigest()
    shutil.copytree(model, folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    return str(home)


def flipped(file: Path, copy: Path) -> Path:
    """The same sentences with one label that is another."""
    header, first, *rest = file.read_text().splitlines(keepends=True)
    sentence, label = first.rstrip("\n").split("\t")
    copy.write_text("".join([header, f"{sentence}\t{1 - int(label)}\n", *rest]))
    return copy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("difference", "what"),
    [
        ("labels", "the train data of rank 1 on {host} is sha256 "),
        ("learning rate", "--learning_rate of rank 1 on {host} is 0.5, of the others 0.001: "),
        ("resuming", "--resume_from_checkpoint of rank 1 on {host} is given, of the others left out: "),
    ],
)
def test_two_ranks_that_differ_train_nothing(
    difference: str, what: str, small_job: list[Any], tsv_files: tuple[Path, Path], tmp_path: Path
) -> None:
    odd: dict[str, list[Any]] = {
        "labels": ["--train_file", flipped(tsv_files[0], tmp_path / "train.tsv")],
        "learning rate": ["--learning_rate", 0.5],
        "resuming": ["--resume_from_checkpoint", "auto"],
    }
    assert_refused(run_two(small_job, [[], odd[difference]], tmp_path / "run"), what, tmp_path / "run")


@pytest.mark.slow
def test_a_host_whose_cache_has_another_revision_trains_nothing(
    small_job: list[Any], tiny_model: Path, broken_model: Path, tmp_path: Path
) -> None:
    caches = cached(tiny_model, tmp_path / "newer"), cached(broken_model, tmp_path / "older")
    flags = [*small_job, "--model_name_or_path", "someone/model"]
    ended = run_two(flags, [[], []], tmp_path / "run", caches)
    assert_refused(ended, "the weights of the model of rank 1 on {host} is sha256 ", tmp_path / "run")


def assert_refused(ended: list[tuple[int, str]], what: str, run_dir: Path) -> None:
    for code, line in ended:
        assert code == 2, line
        assert "error: the ranks do not train the same: " + what.format(host=socket.gethostname()) in line
        assert "start all of them with the same flags, files and revisions" in line
    assert not run_dir.exists()


@pytest.mark.slow
def test_the_same_files_in_other_places_and_what_only_rank_0_goes_by_are_the_same(
    small_job: list[Any], tsv_files: tuple[Path, Path], tmp_path: Path
) -> None:
    copy = tmp_path / "copy.tsv"
    copy.write_bytes(tsv_files[0].read_bytes())
    of_each: list[list[Any]] = [["--overwrite_output_dir"], ["--train_file", copy, "--report_to", "none"]]
    for code, line in run_two([*small_job, "--max_train_steps", 2], of_each, tmp_path / "run"):
        assert code == 0, line


@pytest.mark.slow
def test_a_host_that_sees_an_older_state_of_the_folder_does_as_rank_0(
    small_job: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SST2_LAUNCH", "4f")  # of a job that is started again
    for name, mark in (("run", f"{MARK}\n{OF_JOB}4f\n"), ("stale", f"{MARK}\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(mark)
    flags = [*small_job, "--max_train_steps", 2, "--overwrite_output_dir"]  # which only rank 1 would still heed
    for code, line in run_two(flags, [[], ["--output_dir", tmp_path / "stale"]], tmp_path / "run"):
        assert code == 0, line


def test_most_ranks_are_right_and_the_odd_ones_are_named() -> None:
    usual = {"--seed": "1", "the train data": "a"}
    hosts = ["n1", "n1", "n2", "n2"]
    assert differences(hosts, [usual] * 4) == []
    found = differences(hosts, [usual | {"the train data": "b"}, usual, usual | {"--seed": "2"}, usual])
    assert found == [
        "--seed of rank 2 on n2 is 2, of the others 1",
        "the train data of rank 0 on n1 is b, of the others a",
    ]
    assert differences(["n1", "n2"], [usual, {"--seed": "1"}]) == [
        "the train data of rank 1 on n2 is missing, of the others a"
    ]
    many = differences([f"n{rank}" for rank in range(30)], [usual] * 20 + [usual | {"--seed": "2"}] * 10)
    assert many[0].count("rank") == 8
    assert "rank 27 on n27 and more is 2" in many[0]
