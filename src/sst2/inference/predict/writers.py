"""Writers of predictions: to standard output, or to a file that appears when it is whole and replaces none."""

import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from sst2.utils.console import give_up
from sst2.utils.errors import UserError
from sst2.utils.file_system import fsync


class StandardOutput:
    """UTF-8 whatever the locale. Where its reader has gone, as behind `| head`, the process ends without a word."""

    def __init__(self) -> None:
        try:
            self._file = open(1, "w", encoding="utf-8", newline="", closefd=False)  # noqa: SIM115 (open until exit)
        except OSError as error:
            raise _unwritable("standard output", error) from None

    def write(self, text: str) -> None:
        """Raises UserError: it cannot be written. SystemExit: nobody reads it."""
        try:
            self._file.write(text)
        except OSError as error:
            give_up(error)

    def flush(self) -> None:
        """Raises as `write`."""
        try:
            self._file.flush()
        except OSError as error:
            give_up(error)

    def __enter__(self) -> "StandardOutput":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()


class NewFile:
    """Lies beside its place, under a hidden name, until it is whole; a mistake leaves it there as far as it got."""

    def __init__(self, flag: str, path: str) -> None:
        """Open the file under its hidden name; messages name the flag that named it.

        Raises:
            UserError: something is there already, or nothing can be written there.
        """
        self._flag, self._path = flag, Path(os.path.expanduser(path))
        self._unfinished = self._path.with_name(f".{self._path.name}.unfinished")
        self._is_empty = True
        self._require_free()
        try:
            self._file = self._unfinished.open("x", encoding="utf-8", newline="")
        except FileExistsError:
            raise UserError(
                f"{flag} {path}: {self._unfinished} is what another start is writing, or has left: move it away, or "
                "name another file"
            ) from None
        except OSError as error:
            raise _unwritable(f"{flag} {path}", error) from None

    def write(self, text: str) -> None:
        """Raises UserError: it cannot be written."""
        self._is_empty = False
        try:
            self._file.write(text)
        except OSError as error:
            raise _unwritable(f"{self._flag} {self._path}", error) from None

    def flush(self) -> None:
        """Raises as `write`."""
        try:
            self._file.flush()
        except OSError as error:
            raise _unwritable(f"{self._flag} {self._path}", error) from None

    def __enter__(self) -> "NewFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put it in its place; after a mistake, leave what there is of it beside.

        Raises:
            UserError, KeyboardInterrupt: what came, with the place of what was written before; or the file cannot be
                written, or another one has appeared in its place.
        """
        if error is None:
            self.flush()
            self._file.close()
            fsync(self._unfinished)
            self._require_free(f"; this one is in {self._unfinished}")
            os.replace(self._unfinished, self._path)
            return
        with suppress(OSError):  # a full disk, which has led here
            self._file.close()
        if self._is_empty:
            self._unfinished.unlink(missing_ok=True)
        elif isinstance(error, UserError | KeyboardInterrupt):
            kind = UserError if isinstance(error, UserError) else KeyboardInterrupt
            raise kind(f"{error}; what was written before is in {self._unfinished}") from None

    def _require_free(self, remark: str = "") -> None:
        if os.path.lexists(self._path):
            raise UserError(
                f"{self._flag} {self._path} is there already and is not overwritten: remove it, or name another{remark}"
            )


def _unwritable(place: str, error: OSError) -> UserError:
    return UserError(f"{place} cannot be written ({error.strerror}): name another place, or fix this one")


Writer = StandardOutput | NewFile
