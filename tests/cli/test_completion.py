"""Tab completion: the script that `sst2 --print_completion bash` writes, in a real bash."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sst2.__main__ import COMMANDS
from tests.support.running import REPOSITORY

ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_shtab_sst2 sst2 "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
OF_PATHS = [
    ["train", "--config", "LIC"],
    ["predict", "--file", "LIC"],
    ["doctor", "--folder", "LIC"],
    ["launch", "LIC"],
    *(["launch", flag, "LIC"] for flag in ("--config_file", "--log_dir", "--deepspeed_config_file")),
]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    written = subprocess.run(
        [sys.executable, "-m", "sst2", "--print_completion", "bash"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    file = tmp_path_factory.mktemp("completion") / "sst2.bash"
    file.write_text(written.stdout)
    return file


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([""], [*COMMANDS]),
        (["pre"], ["predict", "prefetch"]),
        (["train", "--learn"], ["--learning_rate"]),
        (["train", "--smoke", "--se"], ["--sentence_column", "--seed"]),
        (["train", "--lr_scheduler_type", "co"], ["constant", "constant_with_warmup", "cosine"]),
        (["train", "--train_file", "LIC"], ["LICENSE"]),
        (["predict", "CHANGE"], ["CHANGELOG.md"]),
        (["predict", "--explain_"], ["--explain_class"]),
        (["export", "--int"], ["--int8"]),
        (["compare", "--b"], ["--baseline"]),
        (["sweep", "--sl"], ["--slurm"]),
        (["doctor", "--conn"], ["--connect_timeout"]),
        (["launch", "--num_mach"], ["--num_machines"]),
        *((words, ["LICENSE"]) for words in OF_PATHS),
        (["prefetch", "--dataset_n"], ["--dataset_name"]),
    ],
)
def test_a_shell_completes(words: list[str], expected: list[str], script: Path, tmp_path: Path) -> None:
    """No Python is there that it could start, so it is at once."""
    command = [shutil.which("bash") or "", "-c", ASK, "bash", str(script), "sst2", *words]
    done = subprocess.run(
        command, cwd=REPOSITORY, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert sorted(done.stdout.split()) == sorted(expected)
