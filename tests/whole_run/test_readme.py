"""The README's commands: all of them name what there is, and those that a CPU can run do what they say."""

import csv
import importlib.util
import json
import os
import re
import shlex
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
from tests.support.running import REPOSITORY
from tests.support.topics import sentences_of, write_csv

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
# What other programs do: installing, watching, showing. Their names alone are looked at.
OTHERS = {"cd", "export", "git", "head", "jupyter", "pip", "python3", "sbatch", "tensorboard"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """A line each, without comments."""
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    without_comments = (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines)
    return list(dict.fromkeys(filter(None, without_comments)))


def words_of(command: str) -> list[str]:
    """Without the variables before it."""
    words = shlex.split(command)
    while re.fullmatch(r"\w+=.*", words[0]):
        words = words[1:]
    return words


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader stands: the repository, and the files that the commands name."""
    for name in ("train_sst2.py", "accelerate_configs", "slurm"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    write(tmp_path / "train.csv", ("sentence", "label"), ("0", "1"), "train", 0, 300)
    write(tmp_path / "dev.csv", ("sentence", "label"), ("0", "1"), "validation", 0, 70)
    write(tmp_path / "test.csv", ("sentence", "label"), ("0", "1"), "validation", 70, 30)
    write(tmp_path / "mails.csv", ("text", "verdict"), ("ham", "spam"), "train", 0, 300)
    topics = sentences_of({"sport": 100, "politics": 60, "science": 40}, seed=0)
    write_csv(tmp_path / "news.csv", topics, columns=("text", "topic"))
    write(tmp_path / "reviews.csv", ("sentence", "label"), ("0", "1"), "validation", 0, 50)
    (tmp_path / "reviews.txt").write_text("\n".join(sample_sentences("validation")[0][:50]) + "\n", encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(file: Path, columns: tuple[str, str], names: tuple[str, str], split: Split, first: int, count: int) -> None:
    sentences, labels = sample_sentences(split)
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows((sentences[row], names[labels[row]]) for row in range(first, first + count))


@pytest.mark.parametrize("command", commands())
def test_commands_name_what_there_is(command: str, place: Path) -> None:
    words = words_of(command)
    for word in words:
        if word.startswith("accelerate_configs/") or word.startswith("slurm/"):
            assert (place / word).is_file(), word
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:.*##", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    elif "train_sst2.py" in words or "slurm/train.sh" in words or words[0] == "slurm/prefetch.sh":
        script = next(word for word in words if word in ("train_sst2.py", "slurm/train.sh", "slurm/prefetch.sh"))
        read_settings(words[words.index(script) + 1 :], "README", "")  # exits with 2 at a flag that is none
    elif "sst2." in command:
        module = next(word for word in words if word.startswith("sst2."))
        assert importlib.util.find_spec(module)
    elif not words[0].startswith("slurm/"):
        assert words[0] in OTHERS, f"nobody looks at {words[0]}"


def test_pictures_and_links_are_there() -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", README)
    assert len(links) > 20
    missing = [link for link in links if not link.startswith("https://") and not (REPOSITORY / link).exists()]
    assert not missing


def on_a_cpu(command: str) -> bool:
    """Whether it is a command of the project that this machine can run. The sample's training is run once."""
    if "accelerate_configs/" in command and "--smoke" in command:
        return False
    config = re.search(r"accelerate_configs/(\w+)\.yaml", command)
    if config is not None:
        content = yaml.safe_load((REPOSITORY / "accelerate_configs" / f"{config[1]}.yaml").read_text())
        if not content.get("use_cpu"):
            return False
    return ("train_sst2.py" in command and "slurm" not in command) or "sst2." in command


@pytest.fixture
def hub(hub_root: Path) -> Iterator[HubServer]:
    with HubServer(hub_root) as server:
        yield server


@pytest.mark.slow
def test_they_do_what_they_say(place: Path, hub: HubServer) -> None:
    """In their order: later ones use what earlier ones have left."""
    own = [command for command in commands() if on_a_cpu(command)]
    assert len(own) >= 12
    bin_folder = str(Path(sys.executable).parent)
    variables = {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    variables |= {"HF_HOME": str(place / ".hf"), "PYTHONPATH": f"{REPOSITORY / 'src'}"}
    for command in own:
        done = subprocess.run(
            ["bash", "-c", command], cwd=place, env=os.environ | variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"
        if "runs/sample" in command and not (place / "runs" / "two").exists():
            shutil.copytree(place / "runs" / "sample", place / "runs" / "two")  # to compare; other tests run it on two
    for run in sorted((place / "runs").iterdir()):
        if (run / "config.yaml").exists():
            assert json.loads((run / "metrics.json").read_text())["count"] > 0
