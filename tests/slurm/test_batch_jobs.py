"""slurm/train.sh on a real SLURM of two nodes: jobs finish, come back when stopped, and fail visibly."""

import json
import re
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support.jobs import SLOW_DISK
from tests.support.running import REPOSITORY
from tests.support.slurm_cluster import Cluster
from tests.support.slurm_jobs import SAMPLE, TWO_NODES, Job, Submit, injected, submit

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

QUICK_STEPS = 20  # as the fixture `brake` has it


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job that nobody disturbs."""
    job = submit(cluster, tmp_path_factory.mktemp("undisturbed"), SAMPLE, TWO_NODES)
    facts = job.end()
    assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), job.said
    return job


def test_a_dry_run_gives_the_line_by_which_slurm_takes_the_run(start: Submit, cluster: Cluster, tmp_path: Path) -> None:
    dry = start(*SAMPLE, "--dry_run", "--json")
    facts = dry.end()
    assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), dry.said
    assert not dry.run_dir.exists()
    found = json.loads(dry.said[dry.said.index("\n{") : dry.said.rindex("\n}") + 2])
    assert (found["job"]["processes"], found["job"]["nodes"], found["steps"]["total"]) == (2, 2, 80)
    assert len(found["memory"]["nodes_mib"]) == 2
    line = found["commands"]["sbatch"]
    # with the variables of the job, of which the cluster's own environment has this one
    assert line.startswith(f"SST2_PYTHON={sys.executable} sbatch --nodes 2 --cpus-per-task 1 --time 00:0")
    assert f" --partition {facts['Partition']} " in line
    line = line.replace(" sbatch", f" sbatch --parsable --chdir={tmp_path} --output={tmp_path / 'output'}", 1)
    number = subprocess.check_output(["bash", "-c", line], env=cluster.environment, text=True).strip()
    job = Job(cluster, number, tmp_path / "output", dry.run_dir)
    facts = job.end()
    assert (facts["JobState"], facts["NumNodes"]) == ("COMPLETED", "2"), job.said
    assert facts["MinMemoryNode"] == f"{line.split('--mem ')[1].split()[0]}"
    assert job.has_logged(80)


def assert_same_result(job: Job, undisturbed: Job, starts: int | None = None) -> None:
    facts = job.end()
    assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), job.said
    if starts is not None:
        assert facts["Restarts"] == str(starts - 1), job.said
    starts_said = job.said.split("slurm/train.sh: job ")[1:]
    assert len(starts_said) == int(facts["Restarts"]) + 1 >= 2
    # One that was stopped before it had begun has lost nothing; of the others, all but the first go on.
    begun = ["resuming from " in said for said in starts_said if " steps of " in said]
    assert begun == [False, *[True] * (len(begun) - 1)]
    assert job.sample_ids == undisturbed.sample_ids
    assert job.curve == undisturbed.curve  # each step once
    assert job.weights == undisturbed.weights


def test_two_nodes_work_on_one_run(undisturbed: Job) -> None:
    assert "start 1, 2 nodes, 2 processes" in undisturbed.said
    environment = json.loads((undisturbed.run_dir / "environment.json").read_text())
    assert environment["world_size"] == 2
    assert environment["variables"]["SLURM_JOB_ID"] == undisturbed.number
    assert {"metrics.json", "predictions.csv", "model"} <= {path.name for path in undisturbed.run_dir.iterdir()}
    assert len([*undisturbed.run_dir.rglob("events.out.tfevents.*")]) == 1
    assert [step for step, _ in undisturbed.curve] == [*range(1, 81)]


def test_a_signal_has_the_job_saved_requeued_and_finished(start: Submit, undisturbed: Job) -> None:
    job = start(*SAMPLE)
    job.wait_for_step(30)
    job.cluster.run("scancel", "--signal=USR1", job.number)
    job.wait_for(lambda: "stopped on request: requeueing" in job.said)
    assert "stopped by SIGUSR1" in job.said
    assert_same_result(job, undisturbed, starts=2)


def test_a_job_of_higher_priority_takes_the_nodes_for_a_while(start: Submit, undisturbed: Job) -> None:
    job = start(*SAMPLE)
    job.wait_for_step(30)
    options = ("--partition=high", "--nodes=2", "--exclusive", "--wrap", "sleep 2")
    job.cluster.run("sbatch", "--output=/dev/null", *options)
    job.wait_for(lambda: "stopped by SIGTERM" in job.said)
    assert_same_result(job, undisturbed, starts=2)


def test_the_time_limit_is_heard_before_it_strikes(
    start: Submit, undisturbed: Job, brake: Path, tmp_path: Path
) -> None:
    # SLURM looks at its clock twice a minute.
    job = start(*SAMPLE, options=(*TWO_NODES, "--time=1", "--signal=USR1@50"), **injected(tmp_path))
    job.wait_through_requeues(lambda: "stopped by SIGUSR1" in job.said)  # before that, it may not have listened
    brake.unlink()
    job.wait_for(lambda: "stopped on request: requeueing" in job.said)
    # The next starts have the time that they need: on a slow machine, each would be stopped before its first step.
    job.cluster.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=10")
    assert_same_result(job, undisturbed)


def test_requeued_amid_a_checkpoint(start: Submit, undisturbed: Job, tmp_path: Path) -> None:
    quick = tmp_path / "quick"
    (tmp_path / "sitecustomize.py").write_text(SLOW_DISK.format(seconds=0.5, until=str(quick)))
    job = start(*SAMPLE, **injected(tmp_path))
    job.wait_for(lambda: [*job.run_dir.glob("checkpoints/.step-*.unfinished")])
    job.cluster.run("scontrol", "requeue", job.number)
    assert [*job.run_dir.glob("checkpoints/.step-*.unfinished")], "the checkpoint was too fast for this test"
    quick.touch()
    job.wait_for(lambda: "stopped by SIGTERM" in job.said)
    assert_same_result(job, undisturbed, starts=2)


@pytest.mark.parametrize(("node", "with_processes"), [("n1", False), ("n2", True)])
def test_a_node_is_lost(
    start: Submit, undisturbed: Job, cluster: Cluster, brake: Path, tmp_path: Path, node: str, with_processes: bool
) -> None:
    # Where SLURM's daemon alone dies, the processes on that node work on until they lose the others: as when the
    # network between them fails. SLURM waits for the node for some time, and the job has to last longer.
    job = start(*SAMPLE, **injected(tmp_path))
    job.wait_for_step(22)
    cluster.kill_node(node, with_processes)
    try:
        job.wait_for(lambda: job.facts["Restarts"] == "1")
    finally:
        cluster.start_node(node)
    # A new start beside what is left of the old one on the node would have SLURM drain the node. Left alone, it comes
    # two minutes later; here, it comes when the old one has ended.
    job.wait_for(lambda: not cluster.steps())
    brake.unlink()
    assert_same_result(job, undisturbed, starts=2)


def test_a_killed_rank_of_two_nodes_is_back_within_the_job(start: Submit, undisturbed: Job) -> None:
    job = start(*SAMPLE, SST2_MAX_RESTARTS="1")
    job.wait_for_step(30)
    rank_of(job, 1).kill()
    facts = job.end()
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "0"), job.said
    assert job.said.count("restart 1 of 1 of all ranks") == 2, job.said  # once a node
    assert job.said.count("resuming from ") == 1
    assert job.curve == undisturbed.curve
    assert job.weights == undisturbed.weights


def rank_of(job: Job, number: int) -> psutil.Process:
    """The process that trains as this rank of a job."""

    def is_it(process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            variables = process.environ()
            place = variables.get("SLURM_JOB_ID"), variables.get("RANK")
            return place == (job.number, str(number)) and "-u" in process.cmdline()
        return False

    (found,) = filter(is_it, psutil.process_iter())
    return found


def test_deepspeed_is_one_variable_away(start: Submit, undisturbed: Job) -> None:
    job = start(*SAMPLE, SST2_CONFIG="deepspeed_zero1", DS_ACCELERATOR="cpu")
    assert job.end()["JobState"] == "COMPLETED", job.said
    environment = json.loads((job.run_dir / "environment.json").read_text())
    assert (environment["strategy"], environment["world_size"]) == ("deepspeed", 2)
    assert job.sample_ids == undisturbed.sample_ids


def test_tensorboard_listens_on_loopback_alone(
    cluster: Cluster, start: Submit, undisturbed: Job, tmp_path: Path
) -> None:
    output = tmp_path / "tensorboard.out"
    command = ["sbatch", "--parsable", f"--output={output}", "slurm/tensorboard.sh", undisturbed.run_dir]
    job = Job(cluster, cluster.run(*command, folder=REPOSITORY).strip(), output, tmp_path)
    job.wait_for(lambda: "Press CTRL+C" in job.said)
    tunnel = re.search(r"ssh -N -L 6006:127\.0\.0\.1:(\d+) -J \S+ \S+", job.said)
    assert tunnel
    port = int(tunnel[1])
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/plugin/scalars/tags", timeout=30) as answer:
        assert "train/loss" in answer.read().decode()
    addresses = {c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port}
    assert addresses == {"127.0.0.1"}
