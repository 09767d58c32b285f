"""Commands on terminals of every encoding, before readers that go, and in folders with files of the user's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sst2.inference.model_argument import model_name
from sst2.utils.errors import UserError
from tests.cli.test_compare import write_run
from tests.support.running import SCRIPT

COMMANDS = ("predict", "export", "compare", "doctor", "prefetch", "launch")
# As a terminal that knows ASCII alone, and with the buffers that a pipe has.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONUNBUFFERED": ""}


def command(*words: object, **variables: str) -> list[str]:
    return ["env", *(f"{name}={value}" for name, value in variables.items()), sys.executable, *map(str, words)]


def with_stdout(where: str, *words: object, **variables: str) -> tuple[int, str]:
    """Exit code and what is said on stderr, with standard output going to `full` (a disk) or `gone` (a reader)."""
    run = command(*words, **ASCII | variables)
    if where == "full":
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(run, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    else:
        receiver, sender = os.pipe()
        os.close(receiver)
        done = subprocess.run(run, stdout=sender, stderr=subprocess.PIPE, text=True, check=False)
        os.close(sender)
    return done.returncode, done.stderr


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three runs that differ by their seed, whose mean is written with a ±."""
    return [write_run(tmp_path / "runs" / f"é-{seed}", 0.8 + seed / 100, seed=seed) for seed in (1, 2, 3)]


def test_a_comparison_fits_an_ascii_terminal_and_a_reader_that_goes(runs: list[Path]) -> None:
    words = ("-m", "sst2.compare", *runs)
    done = subprocess.run(command(*words, **ASCII), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert " \\xb1 0.0100" in done.stdout
    assert with_stdout("gone", *words) == (141, "")
    for unbuffered in ("", "1"):  # written at the end, or line by line
        code, said = with_stdout("full", *words, PYTHONUNBUFFERED=unbuffered)
        assert (code, said.count("\n")) == (2, 1)
        assert "compare: error: standard output cannot be written (No space left on device): name another" in said


@pytest.mark.slow
@pytest.mark.parametrize("words", [*(("-m", f"sst2.{name}") for name in COMMANDS), (SCRIPT,)])
def test_every_command_ends_quietly_when_nobody_reads(words: tuple[object, ...]) -> None:
    code, said = with_stdout("gone", *words, "--help")
    assert said == ""
    assert code in (0, 141)  # argparse itself drops the error of a text that is longer than the buffer


def test_modules_of_the_users_are_not_taken_for_libraries(tmp_path: Path) -> None:
    for name in ("evaluate", "datasets", "accelerate", "yaml", "csv"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    done = subprocess.run(
        command("-m", "sst2.compare", tmp_path / "absent"), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "does not exist: give folders of runs" in done.stderr
    (tmp_path / "train_sst2.py").write_bytes(SCRIPT.read_bytes())  # beside which they lie as well
    done = subprocess.run(
        command("train_sst2.py", "--seed", -1), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stderr == "train_sst2.py: error: --seed -1 cannot work: give a number from 0 to 2147483647\n"


def test_a_module_that_the_metrics_need_is_the_librarys(tmp_path: Path) -> None:
    (tmp_path / "evaluate.py").write_text("raise SystemExit('the wrong module')\n")
    show = "import sys; sys.argv = ['-m']; import sst2, sst2.evaluation.metrics"
    done = subprocess.run(command("-c", show), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_folder_called_as_an_organization_does_not_hide_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "distilbert" / "notes").mkdir(parents=True)
    assert model_name("distilbert/distilbert-base-uncased") == "distilbert/distilbert-base-uncased"
    write_run(tmp_path / "runs" / "one", 0.8)
    for name in ("runs/two", "./distilbert/other", "a/b/c"):
        with pytest.raises(UserError, match="does not exist as a folder"):
            model_name(name)
