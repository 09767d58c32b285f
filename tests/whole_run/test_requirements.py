"""requirements.lock: it pins all that the project and its tools need, and names nothing of one machine."""

import importlib.metadata
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.running import REPOSITORY

OF_THE_ENVIRONMENT = {"pip", "setuptools", "sst2"}  # which are there before anything is installed, or are not pinned


def requirements(*names: str) -> list[Requirement]:
    """The packages of requirements files, without those for other Pythons and systems."""
    lines = [line.partition(" #")[0] for name in names for line in (REPOSITORY / name).read_text().splitlines()]
    found = [Requirement(line) for line in lines if re.match(r"\w", line)]
    return [one for one in found if one.marker is None or one.marker.evaluate()]


def locked() -> dict[str, Version]:
    return {canonicalize_name(one.name): Version(str(one.specifier)[2:]) for one in requirements("requirements.lock")}


def needed() -> dict[str, Version]:
    """Every installed distribution that the project and the pinned packages need, and what these need, by name."""
    found: dict[str, Version] = {}
    seen: set[tuple[str, str]] = set()
    queue = [Requirement("sst2"), *requirements("requirements.txt", "requirements-dev.txt")]
    while queue:
        one = queue.pop()
        try:
            distribution = importlib.metadata.distribution(one.name)
        except importlib.metadata.PackageNotFoundError:
            continue  # another build needs less, as torch for CPUs
        found[canonicalize_name(one.name)] = Version(distribution.version.partition("+")[0])
        for extra in {"", *one.extras} - {extra for name, extra in seen if name == one.name}:
            seen.add((one.name, extra))
            others = map(Requirement, distribution.requires or [])
            queue += [other for other in others if other.marker is None or other.marker.evaluate({"extra": extra})]
    return {name: version for name, version in found.items() if name not in OF_THE_ENVIRONMENT}


def test_every_line_is_a_version_from_an_index() -> None:
    lines = (REPOSITORY / "requirements.lock").read_text().splitlines()
    assert all(re.match(r"#|[a-z0-9-]+==[\w.]+( ; .+)?$", line) for line in lines)


def test_what_is_installed_is_what_is_locked() -> None:
    versions, lock = needed(), locked()
    assert len(versions) > 100
    assert {name: lock.get(name) for name in versions} == versions, "run make lock"


def test_the_lock_keeps_to_the_bounds_of_the_package() -> None:
    lock = locked()
    extras = ["", *(importlib.metadata.metadata("sst2").get_all("Provides-Extra") or [])]
    for one in map(Requirement, importlib.metadata.requires("sst2") or []):
        if one.marker and not any(one.marker.evaluate({"extra": extra}) for extra in extras):
            continue  # of another system
        assert lock[canonicalize_name(one.name)] in one.specifier


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_a_lock_can_be_made_while_the_old_one_contradicts_what_has_been_raised(tmp_path: Path) -> None:
    """What is installed by requirements.txt keeps to the old one, so `make lock` installs uv alone."""
    command = ["make", "--dry-run", "lock", f"VENV={tmp_path}"]
    told = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"pip install (.*)", told) == ["--quiet \"$(grep '^uv==' requirements-dev.txt)\""]
    assert "uv pip compile" in told
