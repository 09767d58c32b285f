"""Commands of the README and of docs/: they name what there is, and those that a CPU can run do what they say."""

import csv
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from sst2.config.arguments import read_settings
from sst2.data.sample import Split, sample_sentences
from tests.support.hub_server import HubServer
from tests.support.pages import blocks, commands, text_of, words_of
from tests.support.running import REPOSITORY

README = text_of("README.md")
DOCS = [f"docs/{path.name}" for path in sorted((REPOSITORY / "docs").glob("*.md"))]
# Pages whose commands a reader of the README runs next, in this place
FOLLOWED = ["docs/your_data.md", "docs/predict.md", "docs/export.md"]
# What other programs do: installing, watching, showing. Their names alone are looked at.
OTHERS = set(
    ". .ci/run .venv/bin/pip .venv/bin/python apptainer cat cd docker enroot export git grep jupyter kill less ls pip "
    "python3 release/bin/python scancel scontrol sleep slurm/python.sh squeue srun tail tensorboard touch".split()
)
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
SCRIPTS = ("train_sst2.py", "slurm/train.sh", "slurm/prefetch.sh")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader stands: the repository, and for docs/ the files of their own that its commands name."""
    for name in ("train_sst2.py", "accelerate_configs", "benchmarks", "containers", "examples", "slurm"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    write(tmp_path / "train.csv", ("sentence", "label"), ("0", "1"), "train", 0, 300)
    write(tmp_path / "dev.csv", ("sentence", "label"), ("0", "1"), "validation", 0, 70)
    write(tmp_path / "test.csv", ("sentence", "label"), ("0", "1"), "validation", 70, 30)
    write(tmp_path / "mails.csv", ("text", "verdict"), ("ham", "spam"), "train", 0, 300)
    write(tmp_path / "reviews.csv", ("sentence", "label"), ("0", "1"), "validation", 0, 50)
    (tmp_path / "reviews.txt").write_text("\n".join(sample_sentences("validation")[0][:50]) + "\n", encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(blocks(text_of("docs/your_data.md"), "yaml")[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(file: Path, columns: tuple[str, str], names: tuple[str, str], split: Split, first: int, count: int) -> None:
    sentences, labels = sample_sentences(split)
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows((sentences[row], names[labels[row]]) for row in range(first, first + count))


@pytest.mark.parametrize("name", ["README.md", *DOCS])
def test_commands_name_what_there_is(name: str, place: Path) -> None:
    (place / "runs" / "demo" / "model").mkdir(parents=True)
    for command in commands(text_of(name)):
        for part in re.split(r" (?:&&|\|) ", command):
            check(part, place)


def check(command: str, place: Path) -> None:
    """Files, make targets, modules and flags of a command exist."""
    words = words_of(command)
    for word in words:
        if re.match(r"(accelerate_configs|benchmarks|containers|examples|slurm)/[\w/.]+$", word):
            # what a benchmark writes may come later
            assert (place / word).exists() or word.startswith("benchmarks/results/"), word
    script = next((word for word in words if word in SCRIPTS), None)
    if words[:2] == ["sst2", "train"]:
        words, script = words[1:], "train"
    if words[0] == "make":
        missing = [word for word in words[1:] if not re.search(rf"^{word}:.*##", MAKEFILE, re.MULTILINE)]
        assert not missing
    elif script is not None:
        read_settings(words[words.index(script) + 1 :], "README", "")  # exits with 2 at a flag that is none
    elif words[0] == "sst2":
        assert words[1] == "--help" or importlib.util.find_spec(f"sst2.{words[1]}"), command
    elif " sst2." in command:
        module = next(word for word in words if word.startswith("sst2."))
        assert importlib.util.find_spec(module), command
    elif not words[0].startswith(("slurm/", "benchmarks/", "sbatch")) and words[:2] != ["python", "-m"]:
        assert words[0] in OTHERS or "benchmarks/" in command, f"nobody looks at {words[0]}"


def test_the_readme_is_a_front_door() -> None:
    """Set-up first, one picture, and all of it short."""
    assert len(README.splitlines()) <= 200
    assert [command.split()[:2] for command in commands(README)[:2]] == [["make", "demo"], ["make", "test"]]
    assert README.count("![") == 1


def on_a_cpu(command: str) -> bool:
    """Whether it is a command of the project that this machine can run. The sample's training is run once."""
    if "--smoke" in command and "runs/demo" not in command:
        return False
    if re.match(r"sst2 sweep|.*roberta|.*benchmarks/", command):  # tests/sweeps runs plans; another model to download
        return False
    config = re.search(r"accelerate_configs/(\w+)\.yaml", command)
    if config is not None:
        content = yaml.safe_load((REPOSITORY / "accelerate_configs" / f"{config[1]}.yaml").read_text())
        if not content.get("use_cpu"):
            return False
    return ("train_sst2.py" in command and "slurm" not in command) or re.search(r"\bsst2[ .]", command) is not None


@pytest.fixture
def hub(hub_root: Path) -> Iterator[HubServer]:
    with HubServer(hub_root) as server:
        yield server


@pytest.mark.slow
def test_they_do_what_they_say(place: Path, hub: HubServer) -> None:
    """In their order: later ones use what earlier ones have left."""
    pages = [README, *(text_of(name) for name in FOLLOWED)]
    own = [command for page in pages for command in commands(page) if on_a_cpu(command)]
    own = list(dict.fromkeys(own))
    assert len(own) >= 15
    bin_folder = str(Path(sys.executable).parent)
    variables = {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    variables |= {"HF_HOME": str(place / ".hf"), "PYTHONPATH": f"{REPOSITORY / 'src'}"}
    for command in own:
        done = subprocess.run(
            ["bash", "-c", command], cwd=place, env=os.environ | variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"
        if "runs/demo" in command and not (place / "runs" / "two").exists():
            shutil.copytree(place / "runs" / "demo", place / "runs" / "two")  # to compare; other tests run it on two
    for run in sorted((place / "runs").iterdir()):
        if (run / "config.yaml").exists():
            assert json.loads((run / "metrics.json").read_text())["count"] > 0
