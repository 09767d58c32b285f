"""A checkpoint's folder is whole or absent: damage is named, and a kill at any moment costs one save at most."""

import errno
import hashlib
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from sst2.checkpoints.folders import (
    abandon_later,
    checkpoint_name,
    find_latest,
    import_checkpoints,
    list_checkpoints,
    newest_checkpoint,
    recover,
    rotate,
)
from sst2.runs.origin import is_origin, origin
from sst2.utils.atomic_folder import write_atomic_folder
from sst2.utils.checksums import DamagedFolderError, verify_folder
from sst2.utils.errors import UserError
from tests.support.processes import kill_at_change, start


def write(folder: Path, step: int, content: str = "first", size: int = 10_000) -> Path:
    """A checkpoint of three files."""

    def write_files(unfinished: Path) -> None:
        (unfinished / "model").write_bytes(random.Random(content).randbytes(size))
        (unfinished / "state").write_text(content)
        (unfinished / "empty").touch()

    write_atomic_folder(folder / checkpoint_name(step), write_files)
    return folder / checkpoint_name(step)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_listed_and_verified(tmp_path: Path) -> None:
    size = (1 << 24) + 5  # more than a block of the checksum's
    place = write(tmp_path / "a" / "checkpoints", 7, size=size)  # neither folder was there
    assert names(place.parent) == ["step-00000007"]
    manifest = json.loads((place / "manifest.json").read_text())
    assert {name: file["size"] for name, file in manifest["files"].items()} == {"empty": 0, "model": size, "state": 5}
    assert manifest["files"]["model"]["sha256"] == hashlib.sha256((place / "model").read_bytes()).hexdigest()
    verify_folder(place)


def test_all_is_on_disk_before_the_rename_and_the_rename_before_older_ones_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a crash of the host may undo is seen by no test, so this one watches the calls."""
    write(tmp_path, 1)
    calls: list[str] = []

    def fsync(descriptor: int, fsync: Callable[[int], None] = os.fsync) -> None:
        calls.append(f"sync {os.path.relpath(Path(f'/proc/self/fd/{descriptor}').readlink(), tmp_path)}")
        fsync(descriptor)

    def rename(old: Path, new: Path, rename: Callable[[Path, Path], None] = os.rename) -> None:
        calls.append(f"rename {old.name} {new.name}")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    rotate(tmp_path, write(tmp_path, 2), 1, best_step=None)
    unfinished = ".step-00000002.unfinished"
    written = {f"sync {unfinished}/{name}" for name in ("model", "state", "empty", "manifest.json")}
    moved = calls.index(f"rename {unfinished} step-00000002")
    assert {*calls[:moved]} == written | {f"sync {unfinished}"}
    assert calls[moved - 1] == f"sync {unfinished}"  # the names after what they name
    assert calls[moved + 1] == "sync ."
    assert calls.index("rename step-00000001 .step-00000001.removed") > moved + 1


def test_only_finished_checkpoints_are_found(tmp_path: Path) -> None:
    for name in (".step-00000300.unfinished", "step-00000400.old", "step-7", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000500").write_text("a file")
    assert list_checkpoints(tmp_path) == []
    assert newest_checkpoint(tmp_path) is None
    assert find_latest(tmp_path) is None
    for step in (20, 100, 3):
        write(tmp_path, step)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000003", "step-00000020", "step-00000100"]
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000100"
    assert find_latest(tmp_path) == tmp_path / "step-00000100"


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def become_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def manifest_with(changes: dict[str, Any]) -> Callable[[Path], object]:
    return lambda file: file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def replace_by_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def replace_by_device(file: Path) -> None:
    """Its size is 0, and it has no end."""
    file.unlink()
    file.symlink_to("/dev/zero")


DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    ("model", Path.unlink, "model cannot be read: No such file or directory"),
    ("model", lambda file: os.truncate(file, 1000), "model has 1000 bytes instead of 10000"),
    ("model", lambda file: os.truncate(file, 1 << 25), "model has 33554432 bytes instead of 10000"),
    ("model", flip_a_bit, "model has another SHA-256 than manifest.json says"),
    ("state", lambda file: file.write_text("FIRST"), "state has another SHA-256 than manifest.json says"),
    ("empty", lambda file: file.write_text("x"), "empty has 1 bytes instead of 0"),
    ("empty", become_a_folder, "empty "),
    ("manifest.json", Path.unlink, "manifest.json is missing"),
    ("manifest.json", lambda file: file.write_text("{"), "manifest.json cannot be read: "),
    ("manifest.json", lambda file: file.write_bytes(b"\x80\x04\x95"), "manifest.json cannot be read: "),
    ("manifest.json", lambda file: file.write_text("[]"), "manifest.json cannot be read: "),
    ("manifest.json", manifest_with({"files": ["model"]}), "manifest.json cannot be read: "),
    ("manifest.json", manifest_with({"files": {"model": {}}}), "model has 10000 bytes instead of None"),
    ("manifest.json", manifest_with({"files": {}}), "manifest.json lists no files"),
    ("manifest.json", manifest_with({"files": {"/dev/zero": {}}}), "manifest.json lists /dev/zero, which is not in"),
    ("manifest.json", manifest_with({"files": {"../a": {}}}), "manifest.json lists ../a, which is not in the folder"),
    ("manifest.json", manifest_with({"files": {"a\0": {}}}), "a\0 cannot be read: embedded null byte"),
    ("manifest.json", replace_by_fifo, "manifest.json cannot be read: .*not a file"),
    ("manifest.json", replace_by_device, "manifest.json cannot be read: .*not a file"),
    ("empty", replace_by_fifo, "empty cannot be read: not a file"),
    ("empty", replace_by_device, "empty cannot be read: not a file"),
    ("manifest.json", manifest_with({"format": 2}), "manifest.json has format 2, this version reads 1"),
]


@pytest.mark.parametrize(("file", "damage", "reason"), DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(
    file: str, damage: Callable[[Path], object], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, damaged = write(tmp_path, 3), write(tmp_path, 5)
    damage(damaged / file)
    with pytest.raises(DamagedFolderError, match=reason):
        verify_folder(damaged)
    assert find_latest(tmp_path) == whole
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert re.match(f"passing over {damaged}: {reason}", said)
    assert names(tmp_path) == ["step-00000003", "step-00000005"]  # nothing is removed that somebody may look into


def test_nothing_but_damaged_checkpoints_is_no_reason_to_begin_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (3, 5):
        flip_a_bit(write(tmp_path, step) / "state")
    with pytest.raises(UserError, match=f"auto: all 2 checkpoints in {tmp_path} are damaged: remove them to start"):
        find_latest(tmp_path)
    assert len(caplog.records) == 2


@pytest.mark.parametrize("there_before", [True, False])
def test_what_cannot_be_written_leaves_what_was_there(there_before: bool, tmp_path: Path) -> None:
    if there_before:
        write(tmp_path, 5)

    def write_files(unfinished: Path) -> None:
        (unfinished / "model").write_bytes(b"half")
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        write_atomic_folder(tmp_path / "step-00000005", write_files)
    assert names(tmp_path) == (["step-00000005"] if there_before else [])
    if there_before:
        verify_folder(tmp_path / "step-00000005")
        assert (tmp_path / "step-00000005" / "state").read_text() == "first"


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    def kept_after(step: int, best_step: int | None) -> list[int]:
        rotate(tmp_path, write(tmp_path, step), 2, best_step)
        return [int(path.name.removeprefix("step-")) for path in list_checkpoints(tmp_path)]

    assert kept_after(1, None) == [1]
    assert [kept_after(step, 1) for step in (2, 3, 4)] == [[1, 2], [1, 2, 3], [1, 3, 4]]
    assert [kept_after(step, 5) for step in (5, 6, 7, 8)] == [[4, 5], [5, 6], [5, 6, 7], [5, 7, 8]]
    assert names(tmp_path) == [checkpoint_name(step) for step in (5, 7, 8)]


def test_a_branch_from_an_earlier_checkpoint_replaces_the_later_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    rotate(tmp_path, write(tmp_path, 3, "second"), 2, None)
    # Neither is the new one rotated away, nor may a later start take the abandoned step 4 for the newest.
    assert names(tmp_path) == ["step-00000002", "step-00000003"]
    assert (tmp_path / "step-00000003" / "state").read_text() == "second"


def test_checkpoints_that_the_run_was_taken_back_from_are_left_out_until_its_next_save(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (1, 2, 3, 4):
        write(folder, step)
    link = tmp_path / "a link"
    link.symlink_to(folder / "step-00000002")
    abandon_later(link, folder)
    assert find_latest(folder) == newest_checkpoint(folder) == folder / "step-00000002"
    assert len(list_checkpoints(folder)) == 4  # until there is another one, the way back is open
    with pytest.raises(RuntimeError, match="no room"):
        write_atomic_folder(folder / "step-00000003", no_room)
    assert len(list_checkpoints(folder)) == 4
    new = write(folder, 3, "second")
    assert find_latest(folder) == new  # as after a kill before the next line
    rotate(folder, new, 2, None)
    assert names(folder) == ["step-00000002", "step-00000003"]


def no_room(folder: Path) -> None:
    raise RuntimeError("no room")


def test_what_is_saved_again_is_no_abandoned_checkpoint(tmp_path: Path) -> None:
    """Also where it has the very content, as the same steps have on a CPU, and the note is there still."""
    for step in (1, 2, 3):
        write(tmp_path, step)
    abandon_later(tmp_path / "step-00000001", tmp_path)
    rotate(tmp_path, write(tmp_path, 2), 2, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_only_abandoned_checkpoints_being_whole_they_are_the_way_out(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    abandon_later(tmp_path / "step-00000001", tmp_path)
    (tmp_path / "step-00000001" / "state").unlink()
    with pytest.raises(UserError, match=r"taken back from.* --resume_from_checkpoint \S*step-00000003$"):
        find_latest(tmp_path)


def test_an_abandoned_checkpoint_between_two_of_the_run_is_removed(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    abandon_later(tmp_path / "step-00000001", tmp_path)
    rotate(tmp_path, write(tmp_path, 4), 2, None)
    assert names(tmp_path) == ["step-00000001", "step-00000004"]


def test_going_on_from_the_newest_after_all_takes_the_note_back(tmp_path: Path) -> None:
    for step in (1, 2):
        write(tmp_path, step)
    abandon_later(tmp_path / "step-00000001", tmp_path)
    abandon_later(None, tmp_path)
    assert find_latest(tmp_path) == tmp_path / "step-00000001"
    abandon_later(tmp_path / "step-00000002", tmp_path)
    assert find_latest(tmp_path) == tmp_path / "step-00000002"


def test_where_only_abandoned_checkpoints_are_left_they_are_what_there_is(tmp_path: Path) -> None:
    for step in (1, 2):
        write(tmp_path, step)
    abandon_later(tmp_path / "step-00000001", tmp_path)
    shutil.rmtree(tmp_path / "step-00000001")
    assert find_latest(tmp_path) == tmp_path / "step-00000002"


def test_a_checkpoint_of_another_run_is_copied_with_the_best_beside_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    for step in (1, 2, 3):
        write(there, step)
    import_checkpoints(there / "step-00000003", here, step=3, best_step=1)
    assert names(here) == ["origin.json", "step-00000001", "step-00000003"]
    assert origin(here) == [there / "step-00000003"] * 2
    for place in list_checkpoints(here):
        verify_folder(place)
    import_checkpoints(
        here / ".." / "here" / "step-00000003", here, step=3, best_step=2
    )  # the run's own: nothing to do
    assert names(here) == ["origin.json", "step-00000001", "step-00000003"]
    flip_a_bit(there / "step-00000002" / "state")
    import_checkpoints(there / "step-00000003", tmp_path / "third", step=3, best_step=2)
    assert names(tmp_path / "third") == ["origin.json", "step-00000003"]
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"not copying {there / 'step-00000002'}: state has another SHA-256")


def test_a_checkpoint_of_any_name_is_copied_under_that_of_its_step(tmp_path: Path) -> None:
    there, copy, link = tmp_path / "there", tmp_path / "ck", tmp_path / "latest"
    for step in (1, 3):
        write(there, step)
    shutil.copytree(there / "step-00000003", copy)
    link.symlink_to(there / "step-00000003")
    import_checkpoints(copy, tmp_path / "of-copy", step=3, best_step=None)
    assert names(tmp_path / "of-copy") == ["origin.json", "step-00000003"]
    here = tmp_path / "of-link"
    import_checkpoints(link, here, step=3, best_step=1)  # which is beside what the link points to
    assert names(here) == ["origin.json", "step-00000001", "step-00000003"]
    for place in list_checkpoints(here):
        verify_folder(place)
    assert is_origin(link, here)
    assert is_origin(there / "step-00000003", here)
    assert not is_origin(copy, here)
    link.unlink()
    link.symlink_to(write(there, 4))  # the other run has gone on: the same command still means the same run
    assert is_origin(link, here)
    (here / "renamed").symlink_to(here / "step-00000003")
    import_checkpoints(here / "renamed", here, step=3, best_step=None)  # the run's own: nothing to do
    (here / "step-00000003").rename(here / "kept")
    import_checkpoints(here / "kept", here, step=3, best_step=None)
    assert find_latest(here) == here / "step-00000003"


def save_twice(folder: Path, killed_at: int) -> bool:
    """Write over step 3, go on to step 4, rotate; be killed at the given change of files."""
    kill_at_change(killed_at)
    for step in (3, 4):
        place = write(folder, step, "second")
        rotate(folder, place, 2, None)
    return True


@pytest.mark.parametrize("before", [[3], [1, 2, 3]])
def test_a_kill_at_any_change_of_files_leaves_a_whole_checkpoint(before: list[int], tmp_path: Path) -> None:
    seen = set()
    for step in before:
        write(tmp_path / "before", step)
    for killed_at in count(1):
        folder = Path(shutil.copytree(tmp_path / "before", tmp_path / str(killed_at)))
        process, answer = start(save_twice, folder, killed_at)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        seen |= {path.name.rpartition(".")[2] for path in folder.glob(".step-*")}
        recover(folder)
        assert not list(folder.glob(".*"))
        for place in list_checkpoints(folder):
            verify_folder(place)
        found = find_latest(folder)
        assert found is not None
        assert found.name >= "step-00000003"
        shutil.rmtree(folder)
    assert answer.recv() is True
    assert names(folder) == ["step-00000003", "step-00000004"]
    # Kills have struck while files were written, between the two renames, and while an old one was removed.
    assert seen >= {"unfinished", "replaced"} | ({"removed"} if len(before) > 1 else set())


def test_a_checkpoint_that_cannot_be_deleted_is_warned_of_and_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An NFS client says so of a folder with a file that somebody still reads. There is no NFS here, so it is told."""

    def rmdir(path: Any, **where: Any) -> None:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    for step in (1, 2):
        write(tmp_path, step)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", rmdir)
        rotate(tmp_path, write(tmp_path, 3), 2, None)
        rotate(tmp_path, write(tmp_path, 2, "second"), 1, None)  # on another way, over what is there, step 3 abandoned
        assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002"]
        said = [record.getMessage() for record in caplog.records]
        assert [line.split(" (")[0] for line in said] == [
            f"{tmp_path}/.step-0000000{step}.removed cannot be removed" for step in (1, 3)
        ]
        assert "(Directory not empty): it stays" in said[0]
        recover(tmp_path)
        assert find_latest(tmp_path) == tmp_path / "step-00000002"
    rotate(tmp_path, tmp_path / "step-00000002", 1, None)  # nobody reads any more
    recover(tmp_path)
    assert names(tmp_path) == ["step-00000002"]


def work_on_read_only_copies(folder: Path) -> list[list[str]]:
    """As a user whom modes stop. Returns the names after a rotation, after a kill's leftover, and in a new run."""
    os.chown(folder, 65534, 65534)
    os.chdir(folder)  # this user may not pass through the folders above
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    here, other, seen = Path("here"), Path("other"), []
    read_only(write(here, 1))
    rotate(here, write(here, 2), 1, None)
    seen.append(names(here))
    read_only(write(here, 9).rename(here / ".step-00000009.unfinished"))
    recover(here)
    seen.append(names(here))
    read_only(write(other, 2))
    import_checkpoints(other / "step-00000002", Path("new"), 2, None)
    rotate(Path("new"), write(Path("new"), 3), 1, None)
    return [*seen, names(Path("new"))]


def read_only(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_read_only_copies_are_removed_like_others(tmp_path: Path) -> None:
    process, answer = start(work_on_read_only_copies, tmp_path)
    process.join()
    after_rotation, after_a_kill, taken_over = answer.recv()
    assert after_rotation == ["step-00000002"]
    assert after_a_kill == ["step-00000002"]
    assert taken_over == ["origin.json", "step-00000003"]


def adopt(source: Path, folder: Path, killed_at: int) -> bool:
    kill_at_change(killed_at)
    import_checkpoints(source, folder, 3, 1)
    return True


def test_a_kill_while_a_checkpoint_is_taken_over_leaves_all_of_it_or_nothing(tmp_path: Path) -> None:
    for step in (1, 3):
        write(tmp_path / "there", step)
    place, before, after = tmp_path / "there" / "step-00000003", 0, 0
    for killed_at in count(1):
        folder = tmp_path / str(killed_at) / "checkpoints"
        folder.parent.mkdir()
        process, answer = start(adopt, place, folder, killed_at)
        process.join()
        if folder.exists():
            after += 1
            assert origin(folder) == [place] * 2
            assert names(folder) == ["origin.json", "step-00000001", "step-00000003"]
            for copied in list_checkpoints(folder):
                verify_folder(copied)
        else:
            before += 1
            assert all(name.startswith(".checkpoints.") for name in names(folder.parent))
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert answer.recv() is True
    assert before > 8
    assert after >= 1
    assert names(folder.parent) == ["checkpoints"]


@pytest.fixture
def image_layer(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """Mounts a folder as containers do that have it in their image: its folders can be deleted, but not renamed."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts file systems")
    top, place = tmp_path / "layers", tmp_path / "overlay"

    def mount(lower: Path) -> Path:
        top.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(top)], check=True)
        for folder in (top / "upper", top / "work", place):
            folder.mkdir()
        layers = f"lowerdir={lower},upperdir={top}/upper,workdir={top}/work,redirect_dir=off"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, str(place)], check=True)
        return place

    yield mount
    for folder in (place, top):
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


@pytest.mark.slow
@pytest.mark.fault
def test_checkpoints_in_the_image_of_a_container_are_replaced_and_removed(
    image_layer: Callable[[Path], Path], tmp_path: Path
) -> None:
    for step in (1, 2, 3):
        write(tmp_path / "image", step)
    (tmp_path / "image" / "step-00000003").rename(tmp_path / "image" / ".step-00000003.replaced")
    folder = image_layer(tmp_path / "image")
    with pytest.raises(OSError, match="Invalid cross-device link"):
        os.rename(folder / "step-00000001", folder / "elsewhere")
    recover(folder)
    rotate(folder, write(folder, 2, "second"), 1, None)
    assert [path.name for path in list_checkpoints(folder)] == ["step-00000002"]
    verify_folder(folder / "step-00000002")
    assert (folder / "step-00000002" / "state").read_text() == "second"
