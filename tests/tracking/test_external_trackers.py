"""Trackers beside TensorBoard: one that does not start leaves nothing behind, one that fails ends no run."""

import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from sst2.config.arguments import parse_arguments
from sst2.config.flag_groups import TRACKERS
from sst2.config.settings import Settings
from sst2.distributed.stop_requests import StopRequests
from sst2.runs.run_folder import RunFolder
from sst2.tracking.external_trackers import ExternalTrackers
from sst2.utils.errors import StopRequestedError
from tests.support.running import Finished

Train = Callable[..., Finished]


class FileTracker(GeneralTracker):  # type: ignore[misc]  # accelerate has no annotations
    """Keeps runs as files of lines, under mlflow's name and by its rules: names of metrics, one thread for a run."""

    name = "mlflow"
    requires_logging_directory = False
    folder: Path
    fails_from = 10**9  # the step
    waits_for: threading.Event | None = None
    starts_after: threading.Event | None = None

    def __init__(self, run_name: str, run_id: str | None = None) -> None:
        super().__init__()
        self.run_id = run_id

    def start(self) -> None:
        if self.starts_after is not None:
            self.starts_after.wait()
        if not self.folder.is_dir():
            raise RuntimeError("no login here\n  in any configuration file")
        self.run_id = self.run_id or f"run{len(list(self.folder.iterdir()))}"
        self._thread = threading.get_ident()
        self._write("start", 0)

    @property
    def tracker(self) -> SimpleNamespace:
        return SimpleNamespace(info=SimpleNamespace(run_id=self.run_id))

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        if '"config"' in (self.folder / str(self.run_id)).read_text():
            raise ValueError("parameters do not change")
        self._write("config", 0)

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        assert threading.get_ident() == self._thread
        if self.waits_for is not None:
            self.waits_for.wait()
        if any("+" in name for name in values):
            raise ValueError(f"names may only contain letters: {list(values)}")
        if step is not None and step >= self.fails_from:
            raise ConnectionError("the server is gone")
        for name in values:
            self._write(name, step or 0)

    def finish(self) -> None:
        self._write("finish", 0)

    def _write(self, what: str, step: int) -> None:
        with (self.folder / str(self.run_id)).open("a") as file:
            file.write(json.dumps([what, step]) + "\n")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the tracker keeps its runs; it stands in for mlflow, whose package is there, but empty."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "mlflow.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "mlflow", FileTracker)
    monkeypatch.setattr(FileTracker, "folder", tmp_path / "server", raising=False)
    FileTracker.folder.mkdir()
    return FileTracker.folder


def lines(file: Path) -> list[list[Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_requeued_run_goes_on_with_its_run_there(train_here: Train, small_job: list[object], server: Path) -> None:
    flags = [*small_job, "--report_to", "mlflow", "--resume_from_checkpoint", "auto", "--checkpointing_steps", 5]
    for start in range(2):
        run = train_here(*flags, "--step_timeout", 300 + start)  # a setting that changes
        assert run.code == 0, run.stderr
        (run.run_dir / "metrics.json").unlink()  # as if it had been stopped before
    assert "left out" not in run.stderr
    assert json.loads((run.run_dir / "trackers.json").read_text()) == {"mlflow": "run0"}
    assert [file.name for file in server.iterdir()] == ["run0"]
    logged = lines(server / "run0")
    assert [what for what, _ in logged].count("start") == 2
    assert [what for what, _ in logged].count("config") == 1
    assert ["train/loss", 20] in logged
    assert ["eval/accuracy", 20] in logged
    afresh = train_here(*small_job, "--report_to", "mlflow", "--max_train_steps", 2, "--overwrite_output_dir")
    assert afresh.code == 0, afresh.stderr
    assert sorted(file.name for file in server.iterdir()) == ["run0", "run1"]


def test_one_that_does_not_start_is_refused_and_leaves_no_folder(
    train_here: Train, small_job: list[object], server: Path
) -> None:
    server.rmdir()
    run = train_here(*small_job, "--report_to", "mlflow")
    assert run.code == 2
    assert run.stderr.splitlines()[-1].endswith(
        "--report_to mlflow does not start (no login here): see to that, or leave it out"
    )
    assert not run.run_dir.exists()


def test_one_that_fails_later_is_left_out_with_a_warning(
    train_here: Train, small_job: list[object], server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileTracker, "fails_from", 4)
    flags = [*small_job, "--report_to", "mlflow", "--resume_from_checkpoint", "auto"]
    run = train_here(*flags)
    assert run.code == 0, run.stderr
    assert run.stderr.count("--report_to mlflow is left out from now on (the server is gone)") == 1
    assert ["train/loss", 3] in lines(server / "run0")
    assert lines(server / "run0")[-1] != ["finish", 0]
    (run.run_dir / "metrics.json").unlink()
    (server / "run0").unlink()
    server.rmdir()  # nor does it start: the job that goes on, perhaps by itself, does not end of that
    again = train_here(*flags)
    assert again.code == 0, again.stderr
    assert again.stderr.count("--report_to mlflow is left out from now on (no login here)") == 1
    assert json.loads((run.run_dir / "trackers.json").read_text()) == {"mlflow": "run0"}


def test_one_that_does_not_answer_holds_up_nobody(
    server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answer = threading.Event()
    monkeypatch.setattr(FileTracker, "waits_for", answer)
    monkeypatch.setattr("sst2.tracking.external_trackers.CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(logging.getLogger("sst2"), "propagate", True)
    trackers = ExternalTrackers()
    trackers.start(Settings(report_to=["mlflow"]), RunFolder(tmp_path / "run"))
    for step in range(3):
        trackers.log({"loss": 1.0}, step)  # which returns
    trackers.close()
    assert "the last numbers are not handed over after 0.1 s" in caplog.text
    answer.set()


@pytest.fixture
def nobody_answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    answer = threading.Event()
    monkeypatch.setattr(FileTracker, "starts_after", answer)
    yield
    answer.set()


@pytest.mark.usefixtures("nobody_answers")
def test_one_that_does_not_answer_at_the_start_is_given_up(
    train_here: Train, small_job: list[object], server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sst2.tracking.external_trackers.START_SECONDS", 0.3)
    run = train_here(*small_job, "--report_to", "mlflow")
    assert run.code == 2
    assert "--report_to mlflow does not start (no answer in 0.3 s): see to that, or leave it out" in run.stderr
    assert not run.run_dir.exists()
    monkeypatch.setattr(FileTracker, "starts_after", None)
    flags = [*small_job, "--report_to", "mlflow", "--checkpointing_steps", 5, "--resume_from_checkpoint", "auto"]
    assert train_here(*flags).code == 0
    (run.run_dir / "metrics.json").unlink()  # as if it had been stopped before
    before = lines(server / "run0")
    answer = threading.Event()
    monkeypatch.setattr(FileTracker, "starts_after", answer)
    again = train_here(*flags)
    answer.set()
    assert again.code == 0, again.stderr
    assert again.stderr.count("--report_to mlflow is left out from now on (no answer in 0.3 s)") == 1
    assert ["train/loss", 20] in before
    assert json.loads((run.run_dir / "trackers.json").read_text()) == {"mlflow": "run0"}


@pytest.mark.usefixtures("server", "nobody_answers")
def test_a_request_to_stop_ends_the_waiting_for_a_start(tmp_path: Path) -> None:
    requests = StopRequests()
    threading.Timer(0.5, requests._note, [signal.SIGTERM]).start()
    with pytest.raises(StopRequestedError, match="stopped by SIGTERM before training began"):
        ExternalTrackers().start(Settings(report_to=["mlflow"]), RunFolder(tmp_path), requests.raise_if_stopped)


@pytest.mark.usefixtures("server")
def test_all_and_none_are_as_in_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    def chosen(*names: str) -> list[str]:
        return parse_arguments(["--output_dir", "/nonexistent/run", "--report_to", *names]).report_to

    assert chosen("none") == []
    assert {"mlflow", "tensorboard"} <= set(chosen("all")) <= TRACKERS
    assert chosen("tensorboard", "mlflow", "mlflow") == ["tensorboard", "mlflow"]
    for names in (("none", "mlflow"), ("mlflow", "all")):
        with pytest.raises(SystemExit):
            chosen(*names)
        assert "contradicts itself: give" in capsys.readouterr().err
