"""Sweeps, arrays and jobs of one node on a real SLURM: also what is canceled, refused or given up; without a hub."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from scipy.stats import ttest_ind

from sst2.sweeps.starts import STAGES
from tests.support.hub_server import HubServer
from tests.support.running import REPOSITORY
from tests.support.slurm_cluster import Cluster
from tests.support.slurm_jobs import ONE_NODE, SAMPLE, Job, Submit, injected

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

QUICK_STEPS = 2  # as the fixture `brake` has it

SWEEP = """
fixed:
  {smoke: true, max_train_steps: 8, logging_steps: 1, checkpointing_steps: 2, global_batch_size: 32,
  max_eval_samples: 100, metric_for_best_model: loss}
baseline: {learning_rate: 1e-4}
space: {learning_rate: [1e-3, 2e-3, 3e-3, 4e-3], dropout: [0, 0.1]}
"""
# In place of sbatch: queues the finals, as is asked of it, and does not come back.
SBATCH = """#!/usr/bin/env bash
{sbatch} "$@" || exit
case "$*" in *" --job-name=sweep-finals-"*) touch '{queued}'; sleep 600 ;; esac
"""


def kill_when_there(file: Path, command: list[str], environment: dict[str, str]) -> None:
    """Run a command, and kill all of it as soon as there is a file."""
    shell = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not file.exists():
            assert shell.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()


def loss_of(run: Path) -> float:
    return float(json.loads((run / "metrics.json").read_text())["loss"])


def check_tables(sweep: Path) -> None:
    """Check that the tables have all eight trials, and the best of them on five seeds against the baseline."""
    runs = [sweep / "trials" / f"{number:03d}" for number in range(8)]
    rows = [*csv.DictReader((sweep / "trials.csv").open())]
    assert [(row["trial"], row["status"], row["step"]) for row in rows] == [(run.name, "finished", "8") for run in runs]
    tested = [*csv.DictReader((sweep / "finals.csv").open())]
    assert [row["runs"] for row in tested] == ["5 of 5", "5 of 5"]
    assert tested[0]["settings"] == "baseline: learning_rate 0.0001, dropout left open"
    best = min(runs, key=loss_of)
    assert tested[1]["settings"].startswith(f"trial{best.name}: learning_rate 0.00")
    baseline, winner = (
        [loss_of(sweep / "finals" / f"{arm}-seed{seed}") for seed in range(1, 6)]
        for arm in ("baseline", f"trial{best.name}")
    )
    assert (
        tested[1]["p (Holm)"] == tested[1]["p (Welch)"] == f"{ttest_ind(winner, baseline, equal_var=False).pvalue:.3g}"
    )
    assert tested[1]["at 0.05"] in ("better", "worse", "not significant")


@pytest.mark.timeout(1500)  # 18 runs, two at a time
def test_a_sweep_outlives_a_preemption_a_lost_node_and_the_killed_shell_that_queued_it(
    start: Submit, cluster: Cluster, brake: Path, tmp_path: Path
) -> None:
    (tmp_path / "space.yaml").write_text(SWEEP)
    sweep, queued, program = tmp_path / "a sweep", tmp_path / "queued", tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text(SBATCH.format(sbatch=shutil.which("sbatch"), queued=queued))
    program.chmod(0o755)
    options = ["--output_dir", str(sweep), "--at_once", "2", "--", f"--chdir={tmp_path}"]
    command = [str(REPOSITORY / "slurm" / "sweep.sh"), str(tmp_path / "space.yaml"), *options]
    environment = cluster.environment | injected(tmp_path)
    kill_when_there(queued, command, environment | {"PATH": f"{program.parent}:{environment['PATH']}"})
    in_queue = ["squeue", "--noheader", "--array-unique", "--format=%F %j"]
    before = {*cluster.run(*in_queue).splitlines()}
    assert len(before) == 2  # trials, and the finals, of which the shell has not heard
    again = subprocess.check_output(command, env=environment, text=True)
    assert re.sub(r"\d+", "N", again).splitlines()[:2] == [f"{what}: queued already, as job N" for what in STAGES]
    after = {*cluster.run(*in_queue).splitlines()}
    assert before < after
    trials, _, tables = re.findall(r"job (\d+)", again)
    assert {line.split()[0] for line in after - before} == {tables}

    tasks = [
        Job(cluster, f"{trials}_{number}", sweep / "logs" / f"trials-{trials}_{number}.out", run)
        for number, run in enumerate(sweep / "trials" / f"{number:03d}" for number in range(8))
    ]
    for task in tasks[:2]:
        task.wait_for_step(3)
    preempted, lost = (task.facts["NodeList"] for task in tasks[:2])
    high = ("--partition=high", "--nodelist", preempted, "--exclusive", "--wrap", "true")
    cluster.run("sbatch", "--output=/dev/null", *high)
    cluster.kill_node(lost, with_processes=True)
    try:
        tasks[0].wait_for(lambda: "stopped by SIGTERM" in tasks[0].said)
        tasks[1].wait_for(lambda: tasks[1].facts["Restarts"] == "1")
    finally:
        cluster.start_node(lost)
    brake.unlink()

    ends = [task.end() for task in tasks]
    assert [facts["JobState"] for facts in ends] == ["COMPLETED"] * 8
    assert [facts["Restarts"] for facts in ends[:2]] == ["1", "1"]
    for task in tasks[:2]:
        assert "resuming from" in task.said
        assert [step for step, _ in task.curve] == [*range(1, 9)]
    last = Job(cluster, tables, sweep / "logs" / f"tables-{tables}.out", sweep)
    assert last.end(seconds=600)["JobState"] == "COMPLETED", last.said
    assert "8 of 8 trials have finished." in last.said
    check_tables(sweep)


# In place of Python: gives a sweep's runs and their flags, says how else it was called, and refuses one learning rate.
# It cannot be started for the first time by one task, and another finds its run in use when it asks first.
WORDS = """#!/usr/bin/env bash
case " $* " in
    *" sst2.sweep a sweep/trials --start 0 ") run="my runs/first run" flags=(--output_dir "$run") ;;
    *" sst2.sweep a sweep/trials --start 2 ") [ -e been ] || { touch been && exit 127; } && exit ;;
    *" sst2.sweep a sweep/trials --start 3 ") [ -e asked ] || { touch asked && echo "my runs" && exit 75; } && exit ;;
    *" sst2.sweep "*) run="my runs/second" flags=(--output_dir "$run" --learning_rate 7) ;;
esac
[ -z "${run:-}" ] || { printf '%s\\n' "$run" "${flags[@]}" && exit; }
printf '[%s]' "$@"
case " $* " in *" --learning_rate 7 "*) echo; echo "train_sst2.py: error: too fast" && exit 2 ;; esac
"""


def test_spaces_in_the_names_of_all_folders_and_files(start: Submit, cluster: Cluster, tmp_path: Path) -> None:
    project, python = tmp_path / "my project", tmp_path / "my python"
    for name in ("slurm", "accelerate_configs"):
        shutil.copytree(REPOSITORY / name, project / name)
    shutil.copy(REPOSITORY / "train_sst2.py", project)
    script = (project / "slurm" / "train.sh").rename(project / "slurm" / "my job")  # with other #SBATCH lines, say
    config = (project / "accelerate_configs" / "single_cpu.yaml").rename(project / "my configuration.yaml")
    python.write_text(WORDS)
    python.chmod(0o755)
    (tmp_path / "my runs").mkdir()
    variables = {"SST2_PYTHON": str(python), "SST2_CONFIG": str(config), "SST2_SWEEP": "a sweep/trials"}
    variables["SST2_MAX_RESTARTS"] = "3"
    options = ["--parsable", "--array=0-3", f"--chdir={tmp_path}", f"--output={tmp_path}/my output %a"]
    array = subprocess.check_output(
        ["sbatch", *options, script, "--train_file", "my data.csv"],
        env=os.environ | cluster.environment | variables,
        text=True,
    ).strip()
    tasks = [Job(cluster, f"{array}_{task}", tmp_path / f"my output {task}", tmp_path) for task in range(4)]
    assert [task.end()["ExitCode"] for task in tasks] == ["0:0", "2:0", "0:0", "0:0"], "\n".join(
        task.said for task in tasks
    )
    flags = "[--train_file][my data.csv][--output_dir]"
    assert f"[{project}/train_sst2.py]{flags}[my runs/first run]" in tasks[0].said
    assert f"{flags}[my runs/second]" in tasks[1].said
    assert f"[--config_file][{config}]" in tasks[0].said
    assert "[--max_restarts][3]" in tasks[0].said
    assert tasks[1].said.splitlines()[-1].endswith("exit code 2, not requeued: train_sst2.py: error: too fast")
    assert (tmp_path / "my runs" / "second.exit").read_text() == "2\n"
    # What may pass is tried again, and nothing has failed by that.
    assert tasks[2].facts["Restarts"] == "1"
    assert "not started: requeueing" in tasks[2].said
    assert "nothing left to do for task 2 of a sweep/trials" in tasks[2].said
    # A run in use is waited for within the start.
    assert tasks[3].facts["Restarts"] == "0"
    waited, ended = tasks[3].said.splitlines()[-2:]
    assert waited == "slurm/train.sh: my runs is in use by another process: waiting 15 minutes at most for its end"
    assert ended == "slurm/train.sh: nothing left to do for task 3 of a sweep/trials"


def test_a_job_that_is_canceled_does_not_come_back(start: Submit) -> None:
    job = start(*SAMPLE, options=ONE_NODE)
    job.wait_for_step(10)
    job.cluster.run("scancel", job.number)
    facts = job.end()
    assert (facts["JobState"], facts["Restarts"]) == ("CANCELLED", "0"), job.said
    assert re.search(r"goes on from .*/checkpoints/step-000000\d\d", job.said)
    assert "requeueing" not in job.said


def test_a_mistake_is_not_tried_again_and_says_so_last(start: Submit) -> None:
    job = start("--smoke", "--learning_rate", 7, options=ONE_NODE)
    facts = job.end()
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "2:0", "0"), job.said
    last = job.said.splitlines()[-1]
    assert "exit code 2, not requeued: train_sst2.py: error: --learning_rate 7.0 cannot work" in last
    assert not job.run_dir.exists()


def test_what_is_preempted_for_ever_is_stopped_with_its_checkpoint(start: Submit) -> None:
    job = start(*SAMPLE, SST2_REQUEUES="1")
    for number, step in ((1, 15), (2, 40)):
        job.wait_through_requeues(partial(job.has_logged, step))
        job.cluster.run("scancel", "--signal=USR1", job.number)
        job.wait_for(partial(job.has_said, "stopped by SIGUSR1", 2 * number))  # a line of each node
    facts = job.end()
    assert (facts["JobState"], facts["Restarts"]) == ("FAILED", "1"), job.said
    assert (
        "requeued 1 times (SST2_REQUEUES), and now stopped on request: stopping for good; the last checkpoint"
        in job.said
    )
    assert re.search(r"goes on from .*/checkpoints/step-000000[4-9]\d", job.said)


def test_fetched_on_the_login_node_run_without_a_hub(start: Submit, hub_root: Path, tmp_path: Path) -> None:
    variables = {"HF_HOME": str(tmp_path / "huggingface"), "HF_HUB_OFFLINE": "0"}
    flags = ["--max_train_steps", "3", "--per_device_train_batch_size", "8"]
    with HubServer(hub_root) as hub:
        variables["HF_ENDPOINT"] = hub.url
        said = subprocess.check_output(
            [REPOSITORY / "slurm" / "prefetch.sh", *flags],
            env=os.environ | {"SST2_PYTHON": sys.executable} | variables,
            text=True,
            cwd=tmp_path,
        )
        assert hub.requests
    assert "all there, without asking the hub" in said
    stage = tmp_path / "of-the-node"
    job = start(*flags, "--stage_dir", stage, options=ONE_NODE, **variables)  # the hub is gone
    facts = job.end()
    assert facts["JobState"] == "COMPLETED", job.said
    assert "the hub does not answer" in job.said
    copies = [path for path in stage.iterdir() if path.is_dir()]
    assert sum((copy / "source.json").read_text().count(".safetensors") for copy in copies) == 1
    assert sum(".tokens" in copy.name for copy in copies) == 3  # train, validation, test
