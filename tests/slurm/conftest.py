"""A SLURM for the tests of each file, so that two workers may have one each, and what jobs are disturbed with."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.jobs import SLOW_STEPS
from tests.support.slurm_cluster import Cluster, missing, running_cluster
from tests.support.slurm_jobs import TWO_NODES, Job, Submit, submit


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(f"a SLURM of its own {reason}")
    folder = tmp_path_factory.mktemp("slurm")
    for parent in (folder, *folder.parents[:3]):
        parent.chmod(0o755)  # munge works as a user of its own
    with running_cluster(folder / "cluster") as cluster:
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


@pytest.fixture
def brake(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A file: as long as it is there, the steps of jobs that get `injected(tmp_path)` take a second each.

    The first steps of a start are quick, as many as QUICK_STEPS in the test's file.
    """
    file = tmp_path / "brake"
    file.touch()
    (tmp_path / "sitecustomize.py").write_text(SLOW_STEPS.format(file=str(file), quick=request.module.QUICK_STEPS))
    return file
