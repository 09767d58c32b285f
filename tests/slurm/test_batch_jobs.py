"""`sbatch slurm/train.sh` on a real SLURM of two nodes: it finishes, comes back when stopped, and fails visibly."""

import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster import Cluster, running_cluster
from conftest import REPOSITORY
from processes import free_port

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

SAMPLE = ["--smoke", "--max_train_steps", 80, "--logging_steps", 1, "--checkpointing_steps", 20, "--log_sample_ids"]
SAMPLE += ["--global_batch_size", 32]
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("slurm")
    for parent in (folder, *folder.parents[:3]):
        parent.chmod(0o755)  # munge works as a user of its own
    with running_cluster(folder / "cluster", free_port()) as cluster:
        cluster.environment |= {"SST2_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
        yield cluster


@dataclass
class Job:
    """A batch job."""

    cluster: Cluster
    number: str
    output: Path
    run_dir: Path

    @property
    def facts(self) -> dict[str, str]:
        text = self.cluster.run("scontrol", "show", "job", self.number)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    @property
    def said(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def wait_for(self, condition: Callable[[], object], seconds: float = 180) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{self.facts}\n{self.said}"
            time.sleep(0.1)

    def wait_for_step(self, step: int) -> None:
        log = self.run_dir / "metrics.jsonl"
        self.wait_for(lambda: log.exists() and f'"split": "train", "step": {step},' in log.read_text())

    def end(self) -> dict[str, str]:
        """Wait for it; one that was requeued need not wait for its turn."""

        def is_over() -> bool:
            facts = self.facts
            if facts["JobState"] == "PENDING" and facts["Restarts"] != "0":
                subprocess.run(
                    ["scontrol", "update", f"JobId={self.number}", "StartTime=now"],
                    env=self.cluster.environment,
                    capture_output=True,
                    check=False,
                )
            return facts["JobState"] in OVER

        self.wait_for(is_over)
        return self.facts

    @property
    def weights(self) -> str:
        return hashlib.sha256((self.run_dir / "model" / "model.safetensors").read_bytes()).hexdigest()


Submit = Callable[..., Job]


@pytest.fixture
def submit(cluster: Cluster, tmp_path: Path) -> Iterator[Submit]:
    jobs = []

    def submit(*flags: object, options: tuple[object, ...] = ("--nodes", 2)) -> Job:
        output, run_dir = tmp_path / f"{len(jobs)}.out", tmp_path / f"run-{len(jobs)}"
        command = ["sbatch", "--parsable", f"--chdir={REPOSITORY}", f"--output={output}", *options, "slurm/train.sh"]
        number = cluster.run(*command, *flags, "--output_dir", run_dir, folder=REPOSITORY).strip()
        jobs.append(Job(cluster, number, output, run_dir))
        return jobs[-1]

    yield submit
    for job in jobs:
        subprocess.run(["scancel", job.number], env=cluster.environment, check=False)
        job.wait_for(lambda job=job: job.facts["JobState"] in OVER)


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hash of the weights, and sentence ids, of a job that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    command = ["sbatch", "--parsable", f"--chdir={REPOSITORY}", f"--output={folder / 'out'}", "--nodes", 2]
    number = cluster.run(*command, "slurm/train.sh", *SAMPLE, "--output_dir", folder / "run", folder=REPOSITORY).strip()
    job = Job(cluster, number, folder / "out", folder / "run")
    assert job.end()["JobState"] == "COMPLETED", job.said
    assert "start 1, 2 nodes, 2 processes" in job.said
    environment = json.loads((job.run_dir / "environment.json").read_text())
    assert environment["world_size"] == 2
    assert environment["variables"]["SLURM_JOB_ID"] == number
    assert len(list((job.run_dir / "tensorboard").iterdir())) == 1
    return {"weights": job.weights, "ids": (job.run_dir / "samples.jsonl").read_text()}


def assert_undisturbed(job: Job, undisturbed: dict[str, str]) -> None:
    assert (job.run_dir / "samples.jsonl").read_text() == undisturbed["ids"]
    assert job.weights == undisturbed["weights"]


def test_a_signal_has_the_job_saved_requeued_and_finished(submit: Submit, undisturbed: dict[str, str]) -> None:
    job = submit(*SAMPLE)
    job.wait_for_step(30)
    job.cluster.run("scancel", "--signal=USR1", job.number)
    job.wait_for(lambda: "stopped with a checkpoint: requeueing" in job.said)
    facts = job.end()
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), job.said
    assert "stopped by SIGUSR1" in job.said
    assert_undisturbed(job, undisturbed)


def test_a_job_of_higher_priority_takes_the_nodes_for_a_while(submit: Submit, undisturbed: dict[str, str]) -> None:
    job = submit(*SAMPLE)
    job.wait_for_step(30)
    options = ("--partition=high", "--nodes=2", "--exclusive", "--wrap", "sleep 2")
    job.cluster.run("sbatch", "--output=/dev/null", *options)
    job.wait_for(lambda: "stopped by SIGTERM" in job.said)
    facts = job.end()
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), job.said
    assert_undisturbed(job, undisturbed)


def test_a_mistake_is_not_tried_again_and_says_so_last(submit: Submit) -> None:
    job = submit("--smoke", "--learning_rate", 7)
    facts = job.end()
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "2:0", "0"), job.said
    said = [line for line in job.said.splitlines() if not line.startswith("srun: ")]
    assert said[-1].startswith("train_sst2.py: error: --learning_rate 7.0 cannot work"), job.said
    assert not job.run_dir.exists()


def test_what_is_preempted_for_ever_is_stopped_with_its_checkpoint(submit: Submit, cluster: Cluster) -> None:
    cluster.environment["SST2_REQUEUES"] = "1"
    try:
        job = submit(*SAMPLE)
    finally:
        del cluster.environment["SST2_REQUEUES"]
    for start, step in ((1, 15), (2, 40)):
        job.wait_for_step(step)
        cluster.run("scancel", "--signal=USR1", job.number)
        job.wait_for(lambda start=start: job.said.count("stopped by SIGUSR1") == 2 * start)  # a line of each node
        if start == 1:
            job.wait_for(lambda: job.facts["Restarts"] == "1")
            cluster.run("scontrol", "update", f"JobId={job.number}", "StartTime=now")
    facts = job.end()
    assert (facts["JobState"], facts["Restarts"]) == ("FAILED", "1"), job.said
    assert "requeued 1 times (SST2_REQUEUES): stopping for good; the last checkpoint is whole" in job.said
    assert re.search(r"goes on from .*/checkpoints/step-000000[4-9]\d", job.said)
