"""Arrays in files without a name: as large as the disk allows, and no part of the process's own memory."""

import os
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np

from sst2.utils.errors import LocalError

BLOCK = 10_000  # rows that pass through memory at a time: few beside a library, enough for numpy to be fast


class MemoryMappedWriter:
    """An array that grows at its end and is then mapped.

    Its file lies in the folder for temporary files and is gone with the array, however the process ends. The kernel
    keeps as much of it in memory as nobody else needs.
    """

    def __init__(self, dtype: str) -> None:
        """Open a file that has no name.

        Args:
            dtype: of the numbers, with their byte order: "<i8".

        Raises:
            LocalError: no folder for temporary files can be written.
        """
        self._dtype = np.dtype(dtype)
        try:
            self._file = tempfile.TemporaryFile(buffering=1 << 20)  # noqa: SIM115 (open until finish)
        except OSError as error:
            raise no_room(error) from None

    def append(self, values: bytes) -> None:
        """Raises LocalError: the disk is full."""
        try:
            self._file.write(values)
        except OSError as error:
            raise no_room(error) from None

    def finish(self) -> np.ndarray:
        """All that was appended, read-only. Raises LocalError as `append`."""
        try:
            with self._file as file:
                file.flush()
                if os.fstat(file.fileno()).st_size == 0:  # which cannot be mapped
                    return np.empty(0, self._dtype)
                return np.asarray(np.memmap(file, self._dtype, mode="r"))
        except OSError as error:
            raise no_room(error) from None


def concat(parts: Iterable[np.ndarray], dtype: str) -> np.ndarray:
    """The parts end to end, in a `MemoryMappedWriter`."""
    scratch = MemoryMappedWriter(dtype)
    for part in parts:
        scratch.append(np.ascontiguousarray(part, dtype).tobytes())
    return scratch.finish()


def blocks(count: int) -> Iterator[slice]:
    """Slices of at most `BLOCK` rows that cover `count` of them."""
    return (slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK))


def no_room(error: OSError) -> LocalError:
    """The error to raise where the folder for temporary files is full or absent."""
    folder = f" in {tempfile.tempdir}" if tempfile.tempdir else ""
    return LocalError(
        f"no temporary file can be written{folder} ({error.strerror}): make room, or name a folder that has some in "
        "the environment variable TMPDIR"
    )
