"""Checks of the disk that a job writes to: room, speed, what its file system can do, and which hosts see it."""

import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from sst2.distributed.doctor.machine import BASE_PARAMETERS, Check
from sst2.utils.atomic_folder import write_atomic_folder
from sst2.utils.file_system import FEATURES, missing_features
from sst2.utils.waiting import wait_until

RUN_BYTES = 4 * 3 * 4 * BASE_PARAMETERS  # weights and two moments, for the checkpoints that stand beside each other
WITHOUT = {
    "fsync of folders": "runs go on without; after a crash of the host, the newest checkpoint may be missing",
    "mode bits": "runs go on without; who may read the weights is decided by the mount",
    "locks": "two jobs in one folder would not notice each other: mount with flock",
}
PATIENCE = 5.0  # seconds until a network file system shows a host what another one has made


def check_disk(folder: Path, accelerator: Accelerator) -> Iterator[Check]:
    """Room where runs will be written; then whether a checkpoint can be put in place there, and every host sees it.

    All ranks call it. The folder need not be there.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    advice = f"a run of DistilBERT-base needs about {RUN_BYTES / 2**30:.1f} GiB" if free <= RUN_BYTES else ""
    yield Check(f"free space, {folder}", f"{free / 2**30:.1f} GiB", advice, is_fatal=bool(advice))
    written, problem, seconds = None, None, 0.0
    with ExitStack() as stack:
        if accelerator.is_main_process:
            try:
                temporary = tempfile.TemporaryDirectory(prefix=".sst2-doctor-", dir=there, ignore_cleanup_errors=True)
                place = Path(stack.enter_context(temporary), "checkpoint")
                began = time.perf_counter()
                write_atomic_folder(place, lambda unfinished: (unfinished / "file").write_bytes(bytes(8 << 20)))
                written, seconds = place, time.perf_counter() - began
            except OSError as error:
                problem = Check(f"writing, {there}", str(error.strerror), "name another --output_dir", is_fatal=True)
        written = gather_object([written])[0]
        sees = written is not None and wait_until(written.exists, PATIENCE)
        seen = gather_object([(socket.gethostname(), sees)])
    if problem:
        yield problem
    elif accelerator.is_main_process:
        yield from _file_system(there, seconds)
        blind = sorted({host for host, sees in seen if not sees})
        if len({host for host, _ in seen}) > 1 or blind:
            advice = f"{', '.join(blind)} cannot see it: name a folder on a shared file system" if blind else ""
            yield Check("shared by all hosts", "no" if blind else "yes", advice, is_fatal=bool(blind))


def _file_system(folder: Path, seconds: float) -> Iterator[Check]:
    slow = "checkpoints are written beside training, but stops wait for them: give enough grace time"
    yield Check("rename and fsync", f"{seconds * 1e3:.0f} ms for 8 MiB", slow if seconds > 1 else "")
    missing = missing_features(folder)
    for feature in FEATURES:
        yield Check(feature, missing.get(feature, "there"), WITHOUT[feature] if feature in missing else "")
