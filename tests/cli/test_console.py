"""`sst2 NAME`: every command by one name, and mistakes in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from sst2.__main__ import COMMANDS
from tests.support.running import REPOSITORY


def sst2(*words: str, folder: Path = REPOSITORY) -> tuple[int, str, str]:
    """Exit code, and what went to standard output and standard error."""
    command = [sys.executable, "-m", "sst2", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_help_lists_every_command_there_is() -> None:
    modules = {file.stem for file in (REPOSITORY / "src" / "sst2" / "cli").glob("*.py")} - {"__init__"}
    assert {*COMMANDS} == modules | {"train"}
    for words in ((), ("--help",)):
        code, said, errors = sst2(*words)
        assert (code, errors) == (0, "")
        assert all(f"\n    {name} " in said for name in COMMANDS)


@pytest.mark.parametrize(("word", "guess"), [("doctr", ", did you mean doctor?"), ("x", ":")])
def test_an_unknown_command_is_one_line(word: str, guess: str) -> None:
    assert sst2(word) == (2, "", f"sst2: error: {word} is no command{guess} sst2 --help lists all\n")


def test_the_version_is_the_packages() -> None:
    code, said, _ = sst2("--version")
    assert code == 0
    assert said.startswith("sst2 ")


def test_words_and_exit_codes_are_the_commands_own(tmp_path: Path) -> None:
    code, said, errors = sst2("compare", "nowhere", folder=tmp_path)
    assert (code, said) == (2, "")
    assert "nowhere does not exist: give folders of runs" in errors
    code, said, errors = sst2("train", "--learning_rat", "1", folder=tmp_path)
    assert (code, said) == (2, "")
    assert "--learning_rat is not a flag, did you mean --learning_rate?" in errors
