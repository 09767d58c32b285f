"""What a file system lacks is warned of once, and nothing that a run can do without ends it."""

import errno
import fcntl
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sst2.runs.run_folder import RunFolder
from sst2.utils import file_system
from sst2.utils.atomic_folder import write_atomic_folder
from sst2.utils.checksums import verify_folder
from sst2.utils.file_system import copy_mode, missing_features, wait_for_lock
from tests.support.processes import results, start


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_system, "_warned", set())


def refuse(name: str, code: int, monkeypatch: pytest.MonkeyPatch, module: object = os) -> None:
    """No file system at hand answers so: the call is made to, for folders alone where it is of fsync."""
    real: Callable[..., object] = getattr(module, name)

    def call(first: object, *others: object, **named: object) -> object:
        if name == "fsync" and not Path(f"/proc/self/fd/{first}").is_dir():
            return real(first, *others, **named)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(module, name, call)


def write_something(folder: Path) -> None:
    (folder / "one").write_text("1")
    (folder / "other").write_text("2")


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_folder_is_written_where_folders_have_no_fsync(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refuse("fsync", code, monkeypatch)
    for step in range(3):
        write_atomic_folder(tmp_path / f"step-{step}", write_something)
        verify_folder(tmp_path / f"step-{step}")
    (said,) = caplog.messages
    assert "has no fsync for it (" in said
    assert os.strerror(code) in said


def test_a_disk_that_cannot_write_is_another_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse("fsync", errno.EIO, monkeypatch)
    with pytest.raises(OSError, match="Input/output error"):
        write_atomic_folder(tmp_path / "step", write_something)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder that may be passed and not opened, and in it one where everybody may write."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "user").mkdir()
        (Path(folder) / "user").chmod(0o777)
        Path(folder).chmod(0o711)
        yield Path(folder)


def write_as_nobody(place: Path) -> list[str]:
    if os.geteuid() == 0:
        os.setuid(65534)
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("sst2").addHandler(handler)
    write_atomic_folder(place, write_something)
    verify_folder(place)
    return messages


def test_a_folder_above_need_not_be_open_to_the_user(scratch: Path) -> None:
    (said,) = results(write_as_nobody, scratch / "user" / "step")[0]
    assert f"{scratch} cannot be opened to bring new names in it to disk (Permission denied)" in said


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.EIO])
def test_mode_bits_are_no_reason_to_lose_a_checkpoint(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_something(tmp_path)
    refuse("chmod", code, monkeypatch)
    for _ in range(2):
        copy_mode(tmp_path / "one", like=tmp_path / "other")
    (said,) = caplog.messages
    assert "who may read it cannot be set" in said
    assert os.strerror(code) in said


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_run_says_that_nothing_keeps_others_out(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refuse("flock", code, monkeypatch, fcntl)
    with RunFolder(tmp_path / "run") as run:
        run.lock()
    (said,) = caplog.messages
    assert said.startswith(f"nothing keeps another job out of --output_dir {tmp_path / 'run'}")


def hold(file: Path) -> None:
    with file.open("w") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        (file.parent / "held").touch()
        while not (file.parent / "asked").exists():
            pass


def test_waiting_for_a_lock_is_said_and_can_be_ended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sst2")
    process, _ = start(hold, tmp_path / "lock")
    while not (tmp_path / "held").exists():
        pass

    class StopError(Exception):
        pass

    def stop() -> None:
        raise StopError

    with (tmp_path / "lock").open("w") as file:
        with pytest.raises(StopError):
            wait_for_lock(file, "waiting", check_stop=stop)
        assert wait_for_lock(file, "waiting", check_stop=(tmp_path / "asked").touch)
    process.join()
    assert caplog.messages == 2 * ["waiting"]


@pytest.mark.parametrize(
    ("name", "module", "feature"),
    [("fsync", os, "fsync of folders"), ("chmod", os, "mode bits"), ("flock", fcntl, "locks")],
)
def test_what_is_missing_is_told_beforehand(
    name: str, module: object, feature: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert missing_features(tmp_path) == {}
    refuse(name, errno.EINVAL, monkeypatch, module)
    assert missing_features(tmp_path) == {feature: "Invalid argument"}
    assert list(tmp_path.iterdir()) == []
