"""The documentation's site: what fails its build, and where links out of docs/ lead."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.running import REPOSITORY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.version_info < (3, 11), reason="the site is built with Python 3.11 or later"),
]
LINKS = """
[script](../train_sst2.py), [`train_sst2.py`](../train_sst2.py), [part](../README.md),
[map](architecture.md#the-map)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the docs with more links on the first page, and all that they link to."""
    ignored = shutil.ignore_patterns(".*", "runs", "site", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(REPOSITORY, tmp_path / "project", ignore=ignored, symlinks=True)
    append(tmp_path / "project", LINKS)
    return tmp_path / "project"


def append(project: Path, text: str) -> None:
    """Write more on the first page."""
    page = project / "docs" / "index.md"
    page.write_text(f"{page.read_text()}\n{text}\n")


def build(project: Path) -> tuple[int, str]:
    """Exit code, and what it warned of: the command of `make docs`."""
    options = ["--fresh-env", "--fail-on-warning", "--keep-going", "--quiet"]
    command = [sys.executable, "-m", "sphinx", *options, "docs", "site"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_links_out_of_the_docs_are_mentions_until_the_repository_has_an_address(project: Path) -> None:
    assert build(project) == (0, "")
    page = (project / "site" / "index.html").read_text()
    assert "../train_sst2.py" not in page
    assert "train_sst2.py</span></code>)" in page  # after the word script
    assert 'href="architecture.html#the-map"' in page
    settings = project / "pyproject.toml"
    urls = '\n[project.urls]\nRepository = "https://example.org/team/sst2"\n'
    settings.write_text(settings.read_text() + urls)
    assert build(project) == (0, "")
    page = (project / "site" / "index.html").read_text()
    assert 'href="https://example.org/team/sst2/blob/HEAD/train_sst2.py"' in page
    assert 'href="https://example.org/team/sst2/blob/HEAD/README.md"' in page


def test_a_broken_link_fails_the_build(project: Path) -> None:
    broken = ("none.md", "clusters.md#none", "#none", "../none.py")
    lines = [f"[{number}]({link})" for number, link in enumerate(broken)]
    append(project, "\n".join([*lines, "![image](images/none.png)"]))
    (project / "docs" / "left_out.md").write_text("# A page that no list has\n")
    code, warnings = build(project)
    assert code == 1
    for said in ("'none.md'", "doc 'clusters': 'none'", "'none' [", "../none.py", "images/none.png", "left_out.md"):
        assert said in warnings
