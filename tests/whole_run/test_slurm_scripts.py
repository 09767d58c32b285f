"""What the scripts in slurm/ do where there is no SLURM; with one, tests/slurm/ runs them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sst2.distributed.stop_requests import SIGNALS
from tests.support.running import REPOSITORY

SCRIPTS = REPOSITORY / "slurm"


def run(script: str, *arguments: object, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SST2_", "SLURM_"))}
    command = [str(SCRIPTS / script), *map(str, arguments)]
    return subprocess.run(command, env=environment | variables, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("script", "variables", "message"),
    [
        ("train.sh", {}, "slurm/train.sh: error: this is a batch script: sbatch slurm/train.sh"),
        (
            "sweep.sh",
            {"SST2_PYTHON": sys.executable},
            "sst2 sweep: error: the following arguments are required",
        ),
        ("tensorboard.sh", {}, "slurm/tensorboard.sh: error: runs is not a folder"),
    ],
)
def test_mistakes_are_one_line(script: str, variables: dict[str, str], message: str, tmp_path: Path) -> None:
    done = run(script, folder=tmp_path, **variables)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("here", "first"), [("1", "2"), ("", "2"), ("2", "")])
def test_a_node_with_another_number_of_gpus_is_refused(here: str, first: str, tmp_path: Path) -> None:
    done = run("node.sh", "train_sst2.py", folder=tmp_path, SLURM_GPUS_ON_NODE=here, SST2_GPUS=first)
    assert done.returncode == 2
    assert f"error: {here or 'no'} GPUs on " in done.stderr
    assert done.stderr.endswith("ask for as many on each, by --gpus-per-node\n")


def test_both_images_are_made_alike() -> None:
    # Whether the Dockerfile can be read, hadolint says (`make checks`); for apptainer's file there is no such program.
    containers = REPOSITORY / "containers"
    docker, apptainer = ((containers / name).read_text() for name in ("Dockerfile", "sst2.def"))
    (base,), (paths,), (command,), (path,) = (
        re.findall(rf"^{words}(.*)$", docker, re.MULTILINE) for words in ("ARG BASE=", "COPY ", "RUN ", "ENV PATH=")
    )
    *files, folder = paths.split()
    assert all((REPOSITORY / file).is_file() for file in files)
    assert re.search(rf"^From: {re.escape(base)}$", apptainer, re.MULTILINE)
    sections = dict(re.findall(r"^%(\w+)\n((?: .*\n)+)", apptainer, re.MULTILINE))
    assert sections["files"].split() == [word for file in files for word in (file, folder + Path(file).name)]
    assert sections["post"].split() == json.loads(command)
    assert sections["environment"].split("PATH=")[1].strip() == path


def test_the_batch_script_outlives_every_request_to_stop_and_knows_the_exit_codes() -> None:
    text = (SCRIPTS / "train.sh").read_text()
    trapped = {name for line in re.findall(r"^trap '.*' ([A-Z0-9 ]+)$", text, re.MULTILINE) for name in line.split()}
    assert {f"SIG{name}" for name in trapped} == {number.name for number in SIGNALS}
    (codes,) = re.findall(r"^ +([\d| ]+)\) code=75 ;;", text, re.MULTILINE)
    assert {int(code) for code in codes.split(" | ")} == {128 + number for number in SIGNALS}


def test_python_is_the_one_that_is_named(tmp_path: Path) -> None:
    done = run("python.sh", "-c", "import sys; print(sys.executable)", folder=tmp_path, SST2_PYTHON=sys.executable)
    assert done.stdout.strip() == sys.executable


def test_a_sif_file_is_entered_with_the_folders_that_a_run_needs(tmp_path: Path) -> None:
    # No apptainer here: a stand-in that says how it was called.
    stand_in = tmp_path / "bin" / "apptainer"
    stand_in.parent.mkdir()
    stand_in.write_text('#!/usr/bin/env bash\necho "$@"\n')
    stand_in.chmod(0o755)
    variables = {
        "PATH": f"{stand_in.parent}:{os.environ['PATH']}",
        "SST2_CONTAINER": "/images/torch.sif",
        "SST2_MOUNTS": "/data,/shared/runs",
        "HF_HOME": "/shared/hf",
        "TMPDIR": str(stand_in.parent),
    }
    for gpus, flag in (({}, ""), ({"SLURM_GPUS_ON_NODE": "2"}, " --nv")):
        done = run("python.sh", "-m", "sst2.doctor", folder=tmp_path, **variables, **gpus)
        folders = f"{REPOSITORY},{tmp_path},/shared/hf,/data,/shared/runs,{stand_in.parent}"
        assert done.stdout.strip() == (
            f"exec --bind {folders} --pwd {tmp_path}{flag} /images/torch.sif python -m sst2.doctor"
        )
