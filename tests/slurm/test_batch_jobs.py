"""The scripts in slurm/ on a real SLURM of two nodes: jobs finish, come back when stopped, and fail visibly."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.support.hub_server import HubServer
from tests.support.jobs import SLOW_DISK, SLOW_STEPS
from tests.support.processes import free_port
from tests.support.running import REPOSITORY
from tests.support.slurm_cluster import Cluster, missing, running_cluster
from tests.support.slurm_jobs import OVER, Job, submit

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

SAMPLE = ["--smoke", "--max_train_steps", 80, "--logging_steps", 1, "--checkpointing_steps", 20, "--log_sample_ids"]
SAMPLE += ["--global_batch_size", 32]
ONE_NODE, TWO_NODES = ("--nodes", 1), ("--nodes", 2)

Submit = Callable[..., Job]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(f"a SLURM of its own {reason}")
    folder = tmp_path_factory.mktemp("slurm")
    for parent in (folder, *folder.parents[:3]):
        parent.chmod(0o755)  # munge works as a user of its own
    with running_cluster(folder / "cluster", free_port()) as cluster:
        cluster.environment |= {"SST2_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
        yield cluster


@pytest.fixture
def start(cluster: Cluster, tmp_path: Path) -> Iterator[Submit]:
    """Submit jobs, and see that none is left."""
    jobs: list[Job] = []

    def start(*flags: object, options: tuple[object, ...] = TWO_NODES, **variables: str) -> Job:
        folder = tmp_path / str(len(jobs))
        folder.mkdir()
        jobs.append(submit(cluster, folder, flags, options, **variables))
        return jobs[-1]

    yield start
    subprocess.run(["scancel", "--user=root"], env=cluster.environment, check=False)
    cluster.wait_for_nodes()


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job that nobody disturbs."""
    job = submit(cluster, tmp_path_factory.mktemp("undisturbed"), SAMPLE, TWO_NODES)
    facts = job.end()
    assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), job.said
    return job


@pytest.fixture
def brake(tmp_path: Path) -> Path:
    """A file: as long as it is there, the steps of jobs that get `injected(tmp_path)` take a second each."""
    file = tmp_path / "brake"
    file.touch()
    (tmp_path / "sitecustomize.py").write_text(SLOW_STEPS.format(file=str(file)))
    return file


def injected(folder: Path) -> dict[str, str]:
    """The variable that has Python run the sitecustomize.py of `folder`."""
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


def test_a_dry_run_gives_the_line_by_which_slurm_takes_the_run(start: Submit, cluster: Cluster, tmp_path: Path) -> None:
    dry = start(*SAMPLE, "--dry_run", "--json")
    facts = dry.end()
    assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), dry.said
    assert not dry.run_dir.exists()
    found = json.loads(dry.said[dry.said.index("\n{") : dry.said.rindex("\n}") + 2])
    assert (found["job"]["processes"], found["job"]["nodes"], found["steps"]["total"]) == (2, 2, 80)
    assert len(found["memory"]["nodes_mib"]) == 2
    line = found["commands"]["sbatch"]
    assert line.startswith("sbatch --nodes 2 --cpus-per-task 1 --time 00:0")
    line = line.replace("sbatch", f"sbatch --parsable --chdir={tmp_path} --output={tmp_path / 'output'}", 1)
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
    (tmp_path / "sitecustomize.py").write_text(SLOW_DISK.format(seconds=0.5))
    job = start(*SAMPLE, **injected(tmp_path))
    job.wait_for(lambda: [*job.run_dir.glob("checkpoints/.step-*.unfinished")])
    job.cluster.run("scontrol", "requeue", job.number)
    assert [*job.run_dir.glob("checkpoints/.step-*.unfinished")], "the checkpoint was too fast for this test"
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


# In place of Python: gives a sweep's runs and their flags, says how else it was called, and refuses one learning rate.
WORDS = """#!/usr/bin/env bash
case " $* " in
    *" sst2.sweep a sweep/trials --start 0 ") run="my runs/first run" flags=(--output_dir "$run") ;;
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
    options = ["--parsable", "--array=0-1", f"--chdir={tmp_path}", f"--output={tmp_path}/my output %a"]
    array = subprocess.check_output(
        ["sbatch", *options, script, "--train_file", "my data.csv"],
        env=os.environ | cluster.environment | variables,
        text=True,
    ).strip()
    tasks = [Job(cluster, f"{array}_{task}", tmp_path / f"my output {task}", tmp_path) for task in range(2)]
    assert [task.end()["ExitCode"] for task in tasks] == ["0:0", "2:0"], tasks[0].said + tasks[1].said
    flags = "[--train_file][my data.csv][--output_dir]"
    assert f"[{project}/train_sst2.py]{flags}[my runs/first run]" in tasks[0].said
    assert f"{flags}[my runs/second]" in tasks[1].said
    assert f"[--config_file][{config}]" in tasks[0].said
    assert "[--max_restarts][3]" in tasks[0].said
    assert tasks[1].said.splitlines()[-1].endswith("exit code 2, not requeued: train_sst2.py: error: too fast")
    assert (tmp_path / "my runs" / "second.exit").read_text() == "2\n"


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
    assert "requeued 1 times (SST2_REQUEUES): stopping for good; the last checkpoint is whole" in job.said
    assert re.search(r"goes on from .*/checkpoints/step-000000[4-9]\d", job.said)


def test_deepspeed_is_one_variable_away(start: Submit, undisturbed: Job) -> None:
    job = start(*SAMPLE, SST2_CONFIG="deepspeed_zero1", DS_ACCELERATOR="cpu")
    assert job.end()["JobState"] == "COMPLETED", job.said
    environment = json.loads((job.run_dir / "environment.json").read_text())
    assert (environment["strategy"], environment["world_size"]) == ("deepspeed", 2)
    assert job.sample_ids == undisturbed.sample_ids


SWEEP = """
fixed: {smoke: true, max_train_steps: 16, logging_steps: 1, checkpointing_steps: 4, global_batch_size: 32}
baseline: {learning_rate: 1e-4}
space: {learning_rate: [5e-4, 1e-3, 2e-3, 3e-3], dropout: [0, 0.1]}
"""


@pytest.mark.timeout(1200)  # 18 runs, two at a time
def test_a_sweep_outlives_a_preemption_a_lost_node_and_the_shell_that_queued_it(
    start: Submit, cluster: Cluster, brake: Path, tmp_path: Path
) -> None:
    (tmp_path / "space.yaml").write_text(SWEEP)
    sweep = tmp_path / "a sweep"
    options = ["--output_dir", str(sweep), "--at_once", "2", "--", f"--chdir={tmp_path}"]
    command = [str(REPOSITORY / "slurm" / "sweep.sh"), str(tmp_path / "space.yaml"), *options]
    environment = cluster.environment | injected(tmp_path)
    shell = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert shell.stdout is not None
    said = "".join(iter(shell.stdout.readline, ""))
    with suppress(ProcessLookupError):
        os.killpg(shell.pid, signal.SIGKILL)
    shell.wait()
    trials, _, tables = re.findall(r"job (\d+)", said)
    tasks = [
        Job(
            cluster,
            f"{trials}_{number}",
            sweep / "logs" / f"sweep-trials-{trials}_{number}.out",
            sweep / "trials" / f"{number:03d}",
        )
        for number in range(8)
    ]
    for task in tasks[:2]:
        task.wait_for_step(6)
    preempted, lost = (task.facts["NodeList"] for task in tasks[:2])
    high = ("--partition=high", "--nodelist", preempted, "--exclusive", "--wrap", "true")
    cluster.run("sbatch", "--output=/dev/null", *high)
    cluster.kill_node(lost, with_processes=True)
    try:
        tasks[0].wait_for(lambda: "stopped by SIGTERM" in tasks[0].said)
        again = subprocess.check_output(command, env=environment, text=True)
        assert again.count("queued already, as job") == 3
        tasks[1].wait_for(lambda: tasks[1].facts["Restarts"] == "1")
    finally:
        cluster.start_node(lost)
    brake.unlink()

    ends = [task.end() for task in tasks]
    assert [facts["JobState"] for facts in ends] == ["COMPLETED"] * 8
    assert [facts["Restarts"] for facts in ends[:2]] == ["1", "1"]
    for task in tasks[:2]:
        assert "resuming from" in task.said
        assert [step for step, _ in task.curve] == [*range(1, 17)]
    last = Job(cluster, tables, sweep / "logs" / f"sweep-tables-{tables}.out", sweep)
    last.wait_for(lambda: last.facts["JobState"] in OVER, 300)
    assert last.facts["JobState"] == "COMPLETED", last.said
    assert "8 of 8 trials have finished." in last.said
    rows = [*csv.DictReader((sweep / "trials.csv").open())]
    assert [(row["trial"], row["status"], row["step"]) for row in rows] == [
        (f"{number:03d}", "finished", "16") for number in range(8)
    ]
    tested = [*csv.DictReader((sweep / "finals.csv").open())]
    assert [row["runs"] for row in tested] == ["5 of 5", "5 of 5"]
    assert tested[0]["settings"] == "baseline: learning_rate 0.0001, dropout left open"
    assert tested[1]["p (Holm)"] == tested[1]["p (Welch)"] != ""


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


def read(file: Path) -> str:
    return file.read_text() if file.exists() else ""
