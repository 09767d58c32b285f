"""Batch jobs of slurm/train.sh that a test can submit, watch and wait for."""

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.running import REPOSITORY
from tests.support.slurm_cluster import Cluster

SAMPLE = ["--smoke", "--max_train_steps", 80, "--logging_steps", 1, "--checkpointing_steps", 20, "--log_sample_ids"]
SAMPLE += ["--global_batch_size", 32]
ONE_NODE, TWO_NODES = ("--nodes", 1), ("--nodes", 2)

OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


@dataclass
class Job:
    """A batch job."""

    cluster: Cluster
    number: str
    output: Path
    run_dir: Path
    hurried: str = ""  # the last start that did not have to wait

    @property
    def facts(self) -> dict[str, str]:
        text = self.cluster.run("scontrol", "show", "job", self.number)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    @property
    def said(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def wait_for(self, condition: Callable[[], object], seconds: float = 180, pause: float = 0.1) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{self.facts}\n{self.said}\n{self.cluster.logs()}"
            time.sleep(pause)

    def wait_for_step(self, step: int) -> None:
        """Wait until at least `step` steps are logged. The job needs `--logging_steps 1`."""
        self.wait_for(lambda: self.has_logged(step))

    def wait_through_requeues(self, condition: Callable[[], object], seconds: float = 180, pause: float = 0.1) -> None:
        """Wait until `condition` holds, however often the job has to start before."""

        def holds() -> object:
            self.come_back()
            return condition()

        self.wait_for(holds, seconds, pause)

    def has_logged(self, step: int) -> bool:
        log = self.run_dir / "metrics.jsonl"
        return log.exists() and f'"split": "train", "step": {step},' in log.read_text()

    def has_said(self, text: str, times: int) -> bool:
        return self.said.count(text) == times

    def come_back(self) -> None:
        """Have a requeued job start soon: SLURM would have it wait for two minutes.

        Not at once: within the same second, SLURM takes the new start's credential for the old one's, and kills it.
        """
        facts = self.facts
        waits = facts["JobState"] == "PENDING" and facts["Reason"] == "BeginTime"
        if waits and facts["Restarts"] not in ("0", self.hurried):
            self.hurried = facts["Restarts"]
            command = ["scontrol", "update", f"JobId={self.number}", "StartTime=now+2"]
            subprocess.run(command, env=self.cluster.environment, capture_output=True, check=False)

    def end(self, seconds: float = 300) -> dict[str, str]:
        """Wait until it is over, however often it has to start. Returns its facts."""
        self.wait_through_requeues(lambda: self.facts["JobState"] in OVER, seconds, pause=0.5)
        return self.facts

    @property
    def weights(self) -> str:
        return hashlib.sha256((self.run_dir / "model" / "model.safetensors").read_bytes()).hexdigest()

    @property
    def sample_ids(self) -> str:
        return (self.run_dir / "samples.jsonl").read_text()

    @property
    def curve(self) -> list[tuple[int, float]]:
        """Step and loss of every logged step, as often as it was logged."""
        lines = map(json.loads, (self.run_dir / "metrics.jsonl").read_text().splitlines())
        return [(line["step"], line["loss"]) for line in lines if line["split"] == "train"]


def submit(cluster: Cluster, folder: Path, flags: Sequence[object], options: Sequence[object], **variables: str) -> Job:
    """`sbatch slurm/train.sh`, with its output and its run below `folder`."""
    environment = os.environ | cluster.environment | variables
    command = ["sbatch", "--parsable", f"--chdir={folder}", f"--output={folder / 'output'}", *options]
    words = [*map(str, [*command, "slurm/train.sh", *flags, "--output_dir", folder / "run"])]
    number = subprocess.check_output(words, env=environment, cwd=REPOSITORY, text=True).strip()
    return Job(cluster, number, folder / "output", folder / "run")


Submit = Callable[..., Job]


def injected(folder: Path) -> dict[str, str]:
    """The variable that has Python run the sitecustomize.py of `folder`."""
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}
