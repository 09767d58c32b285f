"""Model and data on each node's own disk: copied there once, verified, and read by all processes of the node.

A thousand processes that start at once ask a shared file system for the same few hundred megabytes a thousand times.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from sst2.config.flag_groups import DATA_FILES, SAMPLE
from sst2.config.settings import Settings
from sst2.data.hub import reading_from_hub
from sst2.utils.atomic_folder import write_atomic_folder
from sst2.utils.checksums import DamagedFolderError, describe_file, verify_folder
from sst2.utils.errors import UserError
from sst2.utils.file_system import expand_path, wait_for_lock

logger = logging.getLogger(__name__)

MODEL_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")  # what transformers reads of a checkpoint
_SOURCE, _FILES = "source.json", "files"  # in a copy's folder, beside the manifest


def stage(settings: Settings, base: Path | None = None, check_stop: Callable[[], object] = lambda: None) -> Settings:
    """Settings that name copies on this node's disk in place of model and data; the same ones without `--stage_dir`.

    The sentences of a hub's data set are read where they are, once; what training reads all the time are token ids, of
    which `tokenize` makes the copy.

    Args:
        settings: name what to copy, and where to.
        base: a checkpoint that stands for the base model. It is read where it is: of few kilobytes no copy is made.
        check_stop: called now and then; what it raises ends the copying, or the waiting for a process that does it.

    Raises:
        UserError: the folder cannot be written, or has no room; the checkpoint is not seen on this node.
    """
    if base is not None:
        if not base.is_dir():
            raise UserError(f"--output_dir {settings.run_dir} must be shared by all nodes: there is no {base} here")
        settings = replace(settings, model_name_or_path=str(base))
    if settings.stage_dir is None:
        return settings
    copies: dict[str, Any] = {}
    name = settings.model_name_or_path
    if name != SAMPLE and base is None:
        folder = Path(name)
        if not folder.is_dir():
            with reading_from_hub("--model_name_or_path", name, "model", settings.model_revision):
                folder = Path(
                    snapshot_download(name, revision=settings.model_revision, allow_patterns=list(MODEL_FILES))
                )
        copies["model_name_or_path"] = str(local_copy(folder, settings.stage_dir, MODEL_FILES, check_stop))
    for flag in ("dataset_name", *DATA_FILES):
        value = getattr(settings, flag)
        if value is not None and Path(value).exists():
            copies[flag] = str(local_copy(Path(value), settings.stage_dir, (), check_stop))
    return replace(settings, **copies)


def local_copy(
    source: Path,
    stage_dir: str,
    patterns: tuple[str, ...] = (),
    check_stop: Callable[[], object] = lambda: None,
) -> Path:
    """A verified copy of a file or folder below `stage_dir`. Any number of processes may ask for it at once.

    A copy that an earlier start has left is compared with its manifest, byte for byte, and with the source by names,
    sizes and times; only if something differs is it made anew.

    Variables in `stage_dir` such as $TMPDIR are looked up on this node. `patterns` are of the files directly in a
    folder to copy; without any, all files at any depth are.

    Raises:
        UserError: the folder cannot be written, or has no room.
    """
    source = Path(os.path.abspath(source))  # by its own name, where it is a link
    folder = expand_path(stage_dir)
    try:
        files = _files(source, patterns)
        facts = _facts(files)
    except OSError as error:
        raise UserError(f"{source} cannot be read, to copy it to --stage_dir ({error.strerror})") from None
    place = folder / f"{source.name}-{hashlib.sha256(str(source).encode()).hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if folder.stat().st_uid != os.geteuid():
            raise UserError(f"--stage_dir {folder} on {socket.gethostname()} is somebody else's: name one of your own")
        with os.fdopen(os.open(folder / f".{place.name}.lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)) as lock:
            waiting = f"waiting for another process that copies {source} to {folder} (it holds {lock.name})"
            wait_for_lock(lock, waiting, fcntl.LOCK_SH, check_stop)  # all look at once
            if not _is_current(place, facts):
                wait_for_lock(lock, waiting, fcntl.LOCK_EX, check_stop)  # the first one copies
                if not _is_current(place, facts):
                    _copy(files, facts, place, check_stop)
    except OSError as error:
        raise UserError(
            f"--stage_dir {folder} on {socket.gethostname()} cannot be written ({error.strerror}): make room, name "
            "another folder, or leave the flag out"
        ) from None
    return place / _FILES / source.name


def _files(source: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    """Files to copy, by their names in the copy. The hub's cache is made of links: what they point to is copied."""
    if not source.is_dir():
        return {source.name: source}
    found = [file for pattern in patterns or ("**/*",) for file in source.glob(pattern) if file.is_file()]
    return {str(source.name / file.relative_to(source)): file for file in sorted(found)}


def _facts(files: dict[str, Path]) -> dict[str, list[int]]:
    """By what a change of the source is noticed."""
    statuses = {name: file.stat() for name, file in files.items()}
    return {name: [status.st_size, status.st_mtime_ns] for name, status in statuses.items()}


def _is_current(place: Path, facts: dict[str, list[int]]) -> bool:
    try:
        verify_folder(place)
        is_same: bool = json.loads((place / _SOURCE).read_text(encoding="utf-8")) == facts
        return is_same
    except (DamagedFolderError, OSError, ValueError) as error:
        if place.exists():
            logger.warning("copying anew what is damaged: %s (%s)", place, error)
        return False


def _copy(files: dict[str, Path], facts: dict[str, list[int]], place: Path, check_stop: Callable[[], object]) -> None:
    def write(folder: Path) -> None:
        for name, file in files.items():
            check_stop()
            copy = folder / _FILES / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
            if describe_file(copy) != describe_file(file) or _facts({name: file}) != {name: facts[name]}:
                raise UserError(f"{file} changed while it was copied to --stage_dir, or was not read well: start again")
        (folder / _SOURCE).write_text(json.dumps(facts) + "\n", encoding="utf-8")

    logger.info("copying %.1f MB to %s", sum(size for size, _ in facts.values()) / 1e6, place)
    write_atomic_folder(place, write)
