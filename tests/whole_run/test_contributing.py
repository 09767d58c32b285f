"""What a contributor meets: workflows, forms, hooks and pages name what there is. `make checks` has their schemas."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import sst2
from tests.support.running import REPOSITORY

GITHUB = REPOSITORY / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(set((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")) - {GITHUB / "ISSUE_TEMPLATE" / "config.yml"})
PAGES = [REPOSITORY / name for name in ("AGENTS.md", "CONTRIBUTING.md", "SECURITY.md", "docs/releasing.md")]
PAGES += [GITHUB / "pull_request_template.md", *FORMS, *WORKFLOWS]
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
PYPROJECT = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
# Files that runs, releases and `make docs` write, and what GitHub calls its branches
ELSEWHERE = ("runs/", "dist/", "site/", "release/", "refs/", "/tmp/", "environment.json", "train.log")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def jobs() -> list[Any]:
    """(file and job's name, job) of all workflows."""
    return [(f"{path.name}: {name}", job) for path in WORKFLOWS for name, job in load(path)["jobs"].items()]


def steps() -> list[Any]:
    """(file and job's name, step) of all workflows."""
    return [(name, step) for name, job in jobs() for step in job.get("steps", [])]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_targets_paths_and_modules_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"`([^`\n]+)`", text) + re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    if page.suffix == ".yml":
        code += "\n" + "\n".join(re.findall(r"(?:run: |^ {10})(.*)$", text, re.MULTILINE))
    code = re.sub(r"\s#.*", "", code)
    targets = {word for words in re.findall(r"\bmake ([a-z -]+)", code) for word in words.split()}
    missing = [target for target in targets if not re.search(rf"^{target}:.*##", MAKEFILE, re.MULTILINE)]
    commands = re.findall(r"-m sst2\.(\w+)", code)
    missing += [name for name in commands if not (REPOSITORY / "src" / "sst2" / "cli" / f"{name}.py").is_file()]
    links = re.findall(r"\]\((?!https:)([^)#]+)", text)
    missing += [link for link in links if not (page.parent / link).exists()]
    words = [word.strip("\"',;()") for word in re.split(r"[\s=]+", code)]
    paths = [word for word in words if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", word) and is_path(word)]
    places = (REPOSITORY, page.parent, GITHUB / "workflows")
    missing += [path for path in paths if not any((place / path).exists() for place in places)]
    assert not missing
    assert targets or commands or links or paths or page in FORMS


def is_path(word: str) -> bool:
    """Whether a word means a file or folder of the repository; in .venv there is what `make test` has installed."""
    if word.startswith((*ELSEWHERE, ".venv", "pypa/", "actions/")):
        return False
    return "/" in word or word.endswith((".md", ".py", ".toml", ".txt", ".yml", ".cff", ".sh"))


def test_the_pythons_that_are_tested_are_those_of_the_project() -> None:
    matrix = load(GITHUB / "workflows" / "checks.yml")["jobs"]["tests"]["strategy"]["matrix"]["python"]
    assert matrix == re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)
    lowest = re.search(r'^requires-python = ">=(3\.\d+)"$', PYPROJECT, re.MULTILINE)
    assert lowest is not None
    assert matrix[0] == lowest[1]
    assert f'target-version = "py{matrix[0].replace(".", "")}"' in PYPROJECT
    set_up = [step["with"]["python-version"] for _, step in steps() if "setup-python" in step.get("uses", "")]
    assert set(set_up) <= {*matrix, "${{ matrix.python }}"}


def test_actions_are_pinned_to_one_commit_each_with_its_version() -> None:
    uses = re.findall(r"uses: ([\w/.-]+)@(\S+)(.*)", "\n".join(path.read_text() for path in WORKFLOWS))
    assert len(uses) == len([step for _, step in steps() if "uses" in step])
    for action, commit, comment in uses:
        assert re.fullmatch(r"[0-9a-f]{40}", commit), action
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action
    assert len(set(uses)) == len({action for action, _, _ in uses})


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_may_read_and_end(path: Path) -> None:
    assert load(path)["permissions"] == {"contents": "read"}
    for name, job in load(path)["jobs"].items():
        assert "uses" in job or 0 < job["timeout-minutes"] < 360
        # what may write runs nothing of the repository
        assert "permissions" not in job or not any("checkout" in step.get("uses", "") for step in job["steps"]), name


@pytest.mark.parametrize(
    ("tag", "section", "complaint"),
    [
        ("v1.2.0", "## [1.2.0] - 2026-01-31\n\n### Added\n\n- This.\n", ""),
        ("v1.2.1", "## [1.2.0] - 2026-01-31\n\n- This.\n", "the tag is v1.2.1 and src/sst2/__init__.py says 1.2.0"),
        ("1.2.0", "## [1.2.0] - 2026-01-31\n\n- This.\n", "the tag is 1.2.0"),
        ("v1.2.0", "", "no section '## [1.2.0]'"),
        ("v1.2.0", "## [1.2.0] - 2026-01-31\n\n", "no section '## [1.2.0]' with something in it"),
    ],
)
def test_a_tag_is_released_with_its_section_of_the_changelog(
    tag: str, section: str, complaint: str, tmp_path: Path
) -> None:
    (script,) = (
        step["run"] for name, step in steps() if name == "release.yml: build" and "tag" in step.get("name", "")
    )
    (tmp_path / "src" / "sst2").mkdir(parents=True)
    (tmp_path / "src" / "sst2" / "__init__.py").write_text('"""Doc."""\n\n__version__ = "1.2.0"\n')
    others = "## [1.2.0-rc.1] - 2026-01-01\n\n- That.\n\n## [1.1.0] - 2025-01-01\n\n- Before.\n"
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## [Unreleased]\n\n- Later.\n\n{section}\n{others}")
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script],  # as GitHub does with a shell that is named
        cwd=tmp_path,
        env=os.environ | {"GITHUB_REF_NAME": tag},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == (not complaint), done.stderr
    assert complaint in done.stdout
    if not complaint:
        assert (tmp_path / "release" / "notes.md").read_text().strip() == "### Added\n\n- This."


def test_the_citation_is_that_of_this_version() -> None:
    citation = load(REPOSITORY / "CITATION.cff")
    assert citation["version"] == sst2.__version__
    assert f'license = "{citation["license"]}"' in PYPROJECT


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_forms_ask_for_something(path: Path) -> None:
    form = load(path)
    assert {"name", "description", "labels", "body"} <= set(form)
    assert set(form["labels"]) <= {"bug", "enhancement", "question"}  # those that a new repository has
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_hooks_say_what_make_checks_says(tmp_path: Path) -> None:
    """In a repository with this environment as its .venv: a commit passes, is refused, or is formatted."""
    hooks = load(REPOSITORY / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    for hook in hooks:
        command = hook["entry"].replace(".venv/bin/", "$(BIN)/").removesuffix(" --force-exclude")
        assert command == "make checks" or f"\t{command} " in MAKEFILE

    for name in (".pre-commit-config.yaml", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "good.py").write_text('"""Good."""\n')
    (tmp_path / "unused.py").write_text('"""An import that nothing uses."""\n\nimport os\n')
    (tmp_path / "unformatted.py").write_text('"""Blanks."""\n\nx   =  1\n')
    (tmp_path / "unquoted.sh").write_text("#!/bin/sh\nrm $1\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"PRE_COMMIT_HOME": str(tmp_path / "home"), "PRE_COMMIT_COLOR": "never"}

    def commit(file: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pre_commit", "run", "--files", file]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    for words in (["init", "--quiet"], ["add", "--all", ":!.venv"]):
        subprocess.run(["git", *words], cwd=tmp_path, env=environment, check=True)
    done = commit("good.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "make checks" not in done.stdout  # before a push
    for file, complaint in (
        ("unused.py", "F401"),
        ("unquoted.sh", "SC2086"),
        ("unformatted.py", "files were modified"),
    ):
        done = commit(file)
        assert done.returncode == 1
        assert complaint in done.stdout
    assert (tmp_path / "unformatted.py").read_text() == '"""Blanks."""\n\nx = 1\n'
