"""The check before training that the disk has room for what a run will write."""

import shutil
from pathlib import Path

from sst2.utils.errors import UserError


def require_free_space(run_dir: Path, folder: Path, num_bytes: int) -> None:
    """Stop before training when the disk cannot take what the run will write.

    Most of it goes to `folder`, perhaps by a link to another disk, which need not be there yet.

    Raises:
        UserError: less than `num_bytes` are free.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < num_bytes:
        raise UserError(
            f"--output_dir {run_dir} has {free / 2**20:.0f} MiB free and the run will write {num_bytes / 2**20:.0f}: "
            "make room, lower --checkpoints_total_limit, or name a folder on another disk"
        )
