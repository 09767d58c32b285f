"""Files of a run are whole or absent, and only the run's own are ever removed; everything said is in its log."""

import csv
import json
import logging
import os
import shutil
import signal
import threading
import time
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from sst2.config.arguments import write_settings
from sst2.config.output_dir import check_run_dir
from sst2.config.settings import Settings
from sst2.data.splits import Split
from sst2.distributed.stop_requests import StopRequests
from sst2.evaluation.predictions import write_predictions
from sst2.runs.run_folder import MARK, RunFolder, is_run
from sst2.utils.atomic_file import write_json, write_text
from sst2.utils.errors import StopRequestedError, UserError
from sst2.utils.logs import log_to_file, start_logging
from tests.support.processes import kill_at_change, start


def fill(run: RunFolder) -> None:
    run.lock()
    for folder in (run.model, run.onnx, run.checkpoints / "step-00000001"):
        folder.mkdir(parents=True)
        (folder / "file").write_text("old")
    for file in (run.config, run.environment, run.metrics_log, run.samples, run.metrics, run.predictions, run.log):
        file.write_text("old")
    for second in (1, 2):
        (run.path / f"events.out.tfevents.176437000{second}.host.7.0").write_text("old")


def test_only_overwriting_removes_and_only_what_runs_write(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "a" / "b")
    assert not run.path.exists()
    fill(run)
    (run.path / "notes.txt").write_text("mine")
    (run.path / "plots").mkdir()
    before = {str(path) for path in run.path.rglob("*")}
    run.lock()
    assert {str(path) for path in run.path.rglob("*")} == before
    run.begin(overwrite=False)
    assert {str(path) for path in run.path.rglob("*")} == before - {str(run.metrics)}  # it is not finished any more
    run.begin(overwrite=True)
    assert {path.name for path in run.path.iterdir()} == {".lock", "config.yaml", "notes.txt", "plots"}


def test_where_no_run_has_begun_all_is_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("mine")
    for folder in (tmp_path / "new" / "newer" / "run", tmp_path / "there"):
        with RunFolder(folder) as run:
            run.lock()
            scratch = run.make_scratch()
            assert scratch.name.startswith(".")
            fill(RunFolder(scratch))
        assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["there", "there/notes.txt"]


def overwrite(folder: Path, killed_at: int) -> bool:
    run = RunFolder(folder)
    run.lock()
    kill_at_change(killed_at)
    run.begin(overwrite=True)
    write_text(run.config, f"{MARK}\nnew: 1\n")
    return True


def test_a_kill_while_a_run_is_overwritten_leaves_a_run_that_can_be_overwritten(tmp_path: Path) -> None:
    fill(RunFolder(tmp_path / "before"))
    (tmp_path / "before" / "config.yaml").write_text(f"{MARK}\nold: 1\n")
    (tmp_path / "before" / "notes.txt").write_text("mine")
    for killed_at in count(1):
        folder = Path(shutil.copytree(tmp_path / "before", tmp_path / str(killed_at)))
        process, _ = start(overwrite, folder, killed_at)
        process.join()
        assert is_run(folder)
        for whole in ("model", "onnx", "checkpoints/step-00000001"):  # or gone, never half
            assert (folder / whole / "file").exists() or not (folder / whole).exists()
        assert not (folder / "metrics.json").exists() or (folder / "model").exists()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        RunFolder(folder).begin(overwrite=True)
        assert {path.name for path in folder.iterdir()} == {".lock", "config.yaml", "notes.txt"}
    assert killed_at > 20
    assert {path.name for path in folder.iterdir()} == {".lock", "config.yaml", "notes.txt"}


def begin_new(folder: Path, killed_at: int) -> bool:
    run = RunFolder(folder)
    run.lock()
    kill_at_change(killed_at)
    run.begin(overwrite=False)
    write_settings(run, Settings(output_dir=str(folder)))
    return True


def test_a_kill_while_a_run_begins_leaves_a_folder_that_the_same_command_takes(tmp_path: Path) -> None:
    for killed_at in count(1):
        folder = tmp_path / str(killed_at)
        process, _ = start(begin_new, folder, killed_at)
        process.join()
        check_run_dir(Settings(output_dir=str(folder), resume_from_checkpoint="auto"))
        check_run_dir(Settings(output_dir=str(folder), overwrite_output_dir=True))
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert killed_at > 4


def test_two_jobs_do_not_work_in_one_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sst2")
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.lock()
    (first.path / "config.yaml").touch()
    with pytest.raises(UserError, match=r"--output_dir .*run is in use by another job: end that, or name another"):
        second.lock(patience=0.3)
    threading.Timer(0.3, first.release).start()
    caplog.clear()
    second.lock(patience=30)  # a job that is about to end is waited for
    assert caplog.messages == [f"waiting 30 s at most for another job to leave {first.path}"]
    with pytest.raises(UserError, match="in use"):
        first.lock(patience=0)


def wait_for_another_job(folder: Path) -> str:
    requests = StopRequests().listen()
    (folder / "listening").touch()
    try:
        RunFolder(folder).lock(requests.raise_if_stopped, patience=60)
    except StopRequestedError as stop:
        return str(stop)
    return "locked"


def test_a_request_to_stop_ends_the_waiting_for_another_job(tmp_path: Path) -> None:
    first = RunFolder(tmp_path)
    first.lock()
    process, answer = start(wait_for_another_job, tmp_path)
    while not (tmp_path / "listening").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    assert answer.recv() == "stopped by SIGTERM before training began; nothing is lost"
    process.join()


def test_a_lock_does_not_outlive_its_process(tmp_path: Path) -> None:
    process, _ = start(hold, tmp_path / "run")
    while not (tmp_path / "run" / "claimed").exists():
        time.sleep(0.01)
    run = RunFolder(tmp_path / "run")
    with pytest.raises(UserError, match="in use"):
        run.lock(patience=0)
    process.kill()
    run.lock(patience=30)


def hold(folder: Path) -> None:
    run = RunFolder(folder)
    run.lock()
    (folder / "claimed").touch()
    time.sleep(600)


def test_a_link_to_another_disk_is_no_obstacle_and_its_target_is_spared(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "precious").write_text("mine")
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.checkpoints.symlink_to(tmp_path / "scratch")
    run.lock()
    run.begin(overwrite=True)
    assert not run.checkpoints.exists()
    assert (tmp_path / "scratch" / "precious").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=rf"--output_dir {tmp_path}/file/run cannot be written \(Not a directory\)"):
        RunFolder(tmp_path / "file" / "run").lock()


def test_a_folder_that_nothing_was_put_into_is_gone_again(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as run:
        run.lock()
        waiting = threading.Thread(target=hold_for_a_moment, args=(RunFolder(tmp_path / "run"),))
        waiting.start()
        time.sleep(0.3)
    waiting.join()  # it has not been content with the lock of the file that is gone
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]
    with RunFolder(tmp_path / "run") as run:
        run.lock()
    assert (tmp_path / "run" / "config.yaml").exists()


def hold_for_a_moment(run: RunFolder) -> None:
    with run:
        run.lock()
        (run.path / "config.yaml").touch()


def test_a_file_that_cannot_be_written_whole_stays_as_it_was(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "naïve\n")
    assert (tmp_path / "a.txt").read_bytes() == "naïve\n".encode()
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "a lot of text, and then \udcff")
    assert (tmp_path / "a.txt").read_bytes() == "naïve\n".encode()
    write_json(tmp_path / "a.json", {"loss": 0.5})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"loss": 0.5}


def test_predictions_come_back_as_they_were_made(tmp_path: Path) -> None:
    sentences = ['he said "no" , and left', "line\nbreak", "naïve — and moving", "=1+1"]
    empty, offsets = np.array([], dtype=np.int32), np.zeros(5, dtype=np.int64)
    validation = Split("validation", sentences, np.array([0, 1, 1, 0]), empty, offsets)
    test = Split("test", sentences[:1], np.array([-1]), empty, offsets[:2])
    logits = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0], [-500.0, 500.0]], dtype=np.float32)
    write_predictions(tmp_path / "p.csv", [(validation, logits), (test, logits[1:2])])
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["sentence"] for row in rows] == [
        *sentences[:3],
        "'=1+1",
        sentences[0],
    ]  # which no spreadsheet calculates
    assert [(row["split"], row["row"]) for row in rows] == [
        *(("validation", str(number)) for number in range(4)),
        ("test", "0"),
    ]
    assert [row["label"] for row in rows] == ["NEGATIVE", "POSITIVE", "POSITIVE", "NEGATIVE", ""]
    assert [row["prediction"] for row in rows] == ["NEGATIVE", "POSITIVE", "NEGATIVE", "POSITIVE", "POSITIVE"]
    expected = [1 / (1 + np.exp(2)), 1 / (1 + np.exp(-3)), 1 / (1 + np.exp(1)), 1.0, 1 / (1 + np.exp(-3))]
    assert [float(row["probability_positive"]) for row in rows] == pytest.approx(expected, abs=1e-6)


def test_the_log_file_has_what_was_said_before_there_was_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("sst2.somewhere")
    for beginning in ("first", "second"):
        start_logging(is_main=True)
        logger.info("%s: early detail", beginning)
        logger.warning("%s: early warning", beginning)
        log_to_file(tmp_path / "train.log")  # the second start, a resumed run, goes on in the same file
        logger.info("%s: naïve late line", beginning)
    said = [line.split(" ", 2)[2] for line in (tmp_path / "train.log").read_text(encoding="utf-8").splitlines()]
    assert said == [
        *("INFO first: early detail", "WARNING first: early warning", "INFO first: naïve late line"),
        *("INFO second: early detail", "WARNING second: early warning", "INFO second: naïve late line"),
    ]
    assert capsys.readouterr().err.splitlines() == [line.split(" ", 1)[1] for line in said]


def test_other_processes_only_report_errors(capsys: pytest.CaptureFixture[str]) -> None:
    start_logging(is_main=False)
    logger = logging.getLogger("sst2.somewhere")
    logger.warning("of no interest twice")
    logger.error("broken")
    assert capsys.readouterr().err == "broken\n"


def test_a_log_file_that_cannot_be_written_is_left_out_with_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("sst2.somewhere")
    (tmp_path / "folder.log").mkdir()
    (tmp_path / "full.log").symlink_to("/dev/full")
    for name, reason in (("folder.log", "Is a directory"), ("full.log", "No space left on device")):
        start_logging(is_main=True)
        logger.info("early")
        log_to_file(tmp_path / name)
        for number in range(3):
            logger.info("late %d", number)
        warning = f"{tmp_path / name} cannot be written ({reason}): going on without it"
        assert capsys.readouterr().err.splitlines() == ["early", warning, "late 0", "late 1", "late 2"]


def test_the_log_file_takes_names_that_are_no_utf_8(tmp_path: Path) -> None:
    start_logging(is_main=True)
    log_to_file(tmp_path / "train.log")
    logging.getLogger("sst2.somewhere").info("reading %s", os.fsdecode(b"caf\xe9.tsv"))
    assert (tmp_path / "train.log").read_text(encoding="utf-8").endswith("INFO reading caf\\udce9.tsv\n")
