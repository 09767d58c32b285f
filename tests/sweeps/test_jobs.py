"""Jobs of a sweep in a queue that is slow, forgetful or gone: by programs in place of SLURM's, which say so."""

import json
import os
from pathlib import Path

import pytest

from sst2.cli.sweep import main
from sst2.utils.errors import UserError

PLAN = "final_seeds: 2\nfixed: {smoke: true}\nspace: {dropout: [0, 0.1]}\nbaseline: {dropout: 0.2}\n"
SBATCH = """#!/bin/sh
echo "sbatch $*" >> calls
wc -l < calls
"""
SCONTROL = """#!/bin/sh
echo "scontrol $*" >> calls
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs, which write how they were called to `calls` in the working folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("scontrol", SCONTROL), ("squeue", "#!/bin/sh\nexit 0\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    Path("space.yaml").write_text(PLAN)
    Path("train_sst2.py").touch()
    return folder


def submit() -> list[str]:
    """Queue the sweep. Returns the calls that have changed anything."""
    Path("calls").write_text("")
    main(["space.yaml", "--output_dir", "sweep", "--slurm"])
    return Path("calls").read_text().splitlines()


def squeue(programs: Path, script: str) -> None:
    (programs / "squeue").write_text(f"#!/bin/sh\n{script}\n")


def test_three_jobs_are_queued_each_after_the_one_before(programs: Path) -> None:
    trials, finals, tables = submit()
    assert "--job-name=sweep-trials --array=0-1%4" in trials
    assert "--job-name=sweep-finals --array=0-3%4" in finals
    assert "--dependency=afterany:1" in finals
    assert "--dependency=afterany:2" in tables
    assert json.loads(Path("sweep/jobs.json").read_text()) == {"trials": "1", "finals": "2", "tables": "3"}
    squeue(programs, "echo queued")
    assert [call for call in submit() if call.startswith("sbatch")] == []


def test_a_controller_that_does_not_answer_has_nothing_queued_twice(programs: Path) -> None:
    submit()
    squeue(programs, "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(UserError, match=r"squeue does not say whether job 1 is queued .*Unable to contact"):
        submit()
    assert Path("calls").read_text() == ""
    squeue(programs, "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert len(submit()) == 3  # SLURM has forgotten jobs that have ended


def test_finals_that_wait_already_wait_for_trials_that_are_queued_anew(programs: Path) -> None:
    submit()
    squeue(programs, 'case "$*" in *--jobs=1) exit 0 ;; *) echo queued ;; esac')  # the trials have ended
    calls = submit()
    assert calls[0].startswith("sbatch")
    assert calls[1:] == [
        "scontrol update JobId=2 Dependency=afterany:1",
        "scontrol update JobId=3 Dependency=afterany:2",
    ]
