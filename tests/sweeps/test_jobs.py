"""Jobs of a sweep in a queue that is slow, forgetful or gone: by programs in place of SLURM's, which say so."""

import json
import os
import signal
import subprocess
import sys
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


def submit(*options: str) -> list[str]:
    """Queue the sweep. Returns the calls that have changed anything."""
    Path("calls").write_text("")
    main(["space.yaml", "--output_dir", "sweep", "--slurm", *options])
    return Path("calls").read_text().splitlines()


def squeue(programs: Path, script: str) -> None:
    (programs / "squeue").write_text(f"#!/bin/sh\n{script}\n")


def names() -> dict[str, str]:
    found: dict[str, str] = json.loads(Path("sweep/jobs.json").read_text())
    return found


def test_three_jobs_are_queued_each_after_the_one_before(programs: Path) -> None:
    trials, finals, tables = submit()
    assert "--array=0-1%4" in trials
    assert "--array=0-3%4" in finals
    assert "--dependency=afterany:1" in finals
    assert "--dependency=afterany:2" in tables
    for call, what in ((trials, "trials"), (finals, "finals"), (tables, "tables")):
        assert f"--job-name={names()[what]}" in call
    queued = [f"{number} {name}" for number, name in enumerate(names().values(), 1)]
    squeue(programs, f"printf '%s\\n' {' '.join(map(repr, queued))}")
    assert [call for call in submit() if call.startswith("sbatch")] == []


def test_a_job_is_known_by_a_name_that_no_other_sweep_has(programs: Path) -> None:
    trials, *_ = submit("--", "--job-name=mine")  # whatever the options say
    assert trials.split("--job-name=")[-1].split()[0] == names()["trials"]
    assert trials.endswith("slurm/train.sh")
    first = names()
    main(["space.yaml", "--output_dir", "other", "--slurm"])
    assert {*first.values()}.isdisjoint(json.loads(Path("other/jobs.json").read_text()).values())
    # SLURM has begun to count anew, and number 1 is somebody's.
    squeue(programs, "echo 1 somebody")
    assert len(submit()) == 3
    assert names() == first


def test_a_job_that_was_queued_by_a_process_which_was_killed_is_not_queued_again(programs: Path) -> None:
    (programs / "sbatch").write_text('#!/bin/sh\necho "sbatch $*" >> calls\nkill -9 $PPID\n')
    command = [sys.executable, "-m", "sst2.sweep", "space.yaml", "--output_dir", "sweep", "--slurm"]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    (queued,) = Path("calls").read_text().splitlines()
    assert f"--job-name={names()['trials']}" in queued
    (programs / "sbatch").write_text(SBATCH)
    squeue(programs, f"echo 7 {names()['trials']}")
    finals, _ = submit()
    assert names()["finals"] in finals
    assert "--dependency=afterany:7" in finals


def test_a_controller_that_does_not_answer_has_nothing_queued_twice(programs: Path) -> None:
    squeue(programs, "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(UserError, match=r"squeue does not say what of the sweep is queued .*Unable to contact"):
        submit()
    assert Path("calls").read_text() == ""


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "TypeError: list indices"),
        (
            '{"trials": "sweep-trials-1", "finals": "sweep-trials-1", "tables": "3"}',
            "sweep-trials-1 is no name of a",
        ),
        # By a development version: numbers, which name no job, and so would find none.
        ('{"trials": "17", "finals": "18", "tables": "19"}', "17 is no name of a job of trials"),
    ],
)
def test_without_the_names_of_jobs_nothing_is_queued(written: str, reason: str, programs: Path) -> None:
    submit()
    Path("sweep/jobs.json").write_text(written)
    with pytest.raises(UserError, match=rf"jobs\.json cannot be read \({reason}.*: end the sweep's jobs by scancel"):
        submit()
    assert Path("calls").read_text() == ""
    assert Path("sweep/jobs.json").read_text() == written


def test_jobs_that_another_user_has_queued_are_not_queued_again(programs: Path) -> None:
    submit()
    queued = "; ".join(f"echo {number} {name}" for number, name in enumerate(names().values(), 1))
    squeue(programs, f'case " $* " in *" --me "* | *" --user"*) ;; *) {queued} ;; esac')
    assert [call for call in submit() if call.startswith("sbatch")] == []


def test_finals_that_wait_already_wait_for_trials_that_are_queued_anew(programs: Path) -> None:
    submit()
    squeue(programs, f"echo 2 {names()['finals']}; echo 3 {names()['tables']}")  # the trials have ended
    calls = submit()
    assert calls[0].startswith("sbatch")
    assert calls[1:] == [
        "scontrol update JobId=2 Dependency=afterany:1",
        "scontrol update JobId=3 Dependency=afterany:2",
    ]
