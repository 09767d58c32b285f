"""The wheel: built, installed where nothing of this checkout is found, and run."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.running import REPOSITORY, SCRIPT

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def packages(folder: Path) -> set[str]:
    return {".".join(file.parent.relative_to(folder).parts) for file in folder.rglob("__init__.py")}


@pytest.mark.slow
def test_a_run_from_the_installed_wheel(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    ignored = shutil.ignore_patterns("*.egg-info", "__pycache__")
    shutil.copytree(REPOSITORY / "src", checkout / "src", ignore=ignored, symlinks=True)
    for name in ("pyproject.toml", "README.md", "LICENSE", SCRIPT.name):
        shutil.copy(REPOSITORY / name, checkout)
    added = checkout / "src" / "sst2" / "added"  # a package that nobody has listed anywhere
    added.mkdir()
    (added / "__init__.py").touch()
    # without isolation, and so without a network: this environment has setuptools
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(checkout)]
    subprocess.run([*PIP, *build], check=True)
    (wheel,) = tmp_path.glob("sst2-*.whl")

    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (site,) = (environment / "lib").glob("python*/site-packages")
    subprocess.run([*PIP, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    assert packages(site) == packages(checkout / "src")
    assert (site / "sst2" / "py.typed").is_file()  # by which type checkers read the package's annotations
    # This environment's libraries; the file by which it finds the checkout has no effect from there.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")

    work = tmp_path / "work"
    work.mkdir()
    shutil.rmtree(checkout)

    def python(*words: str) -> str:
        command = [str(environment / "bin" / "python"), *words]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert Path(python("-c", "import sst2; print(sst2.__file__)").strip()).is_relative_to(site)
    command = str(site / "bin" / "sst2")
    python(command, "train", "--smoke", "--max_train_steps", "5", "--output_dir", "run")
    assert (work / "run" / "model" / "model.safetensors").is_file()
    for predict in ([command, "predict"], ["-m", "sst2.predict"]):
        assert python(*predict, "run", "a gripping film").rstrip().endswith("a gripping film")
    assert "predict" in python(command, "--help")
