"""The hub, when it fails: found out in seconds, told in one line, and worked around with the cache where that is warm.

Left to themselves the libraries retry a dead hub for 20 to 45 seconds per file, and wait for days for one that sends a
byte every few seconds. One question with a timeout, asked first, decides whether there is a hub at all; what it then
sends must come at a speed that leads to an end.
"""

import errno
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any, TypeVar

import datasets
import huggingface_hub
from datasets.exceptions import DatasetGenerationError
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.file_download import repo_folder_name

from sst2.utils.console import Progress
from sst2.utils.errors import DISK_ERRORS, UserError, first_line, is_out_of_memory
from sst2.utils.redaction import redact

logger = logging.getLogger(__name__)

TIMEOUT = 10.0  # seconds without a byte after which a hub counts as down
ANSWER_TIMEOUT = 15.0  # seconds until its first answer must be complete
SLOWEST = 1024.0  # bytes a second of a download that is waited for, a mean over SLOW_FOR
SLOW_FOR = 30.0  # seconds

_SHARD = r"model-\d{5}-of-\d{5}\.safetensors"  # of weights that are in several files

_told: set[tuple[str, str]] = set()  # of which the log has said how large they are
_FULL = {errno.ENOSPC, errno.EDQUOT}
_UNWRITABLE = _FULL | {errno.EROFS, errno.EACCES, errno.EPERM}
_T = TypeVar("_T")


class SlowHubError(Exception):
    """The hub sends, but so slowly that it comes to no end. None of the errors after which the libraries try again."""


@contextmanager
def reading_from_hub(flag: str, name: str, kind: str, revision: str, config_name: str | None = None) -> Iterator[None]:
    """Around code that loads `name` from the hub or a folder: its failures become a `UserError` that names `flag`.

    The hub is not asked for a local folder. `kind` is `model` or `dataset`, `revision` a branch, tag or commit, and
    `config_name` that of a data set. Downloads of weights and data are said before, with their size.
    """
    if not Path(name).is_dir():
        if found := _find_on_hub(flag, name, kind, revision):
            _tell_size(found, name, kind, config_name)
        require_speed()
    try:
        with _plain_http():
            yield
    except Exception as error:  # transformers and datasets stumble over odd files with exceptions of any kind
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        raise UserError(f"{flag} {name}: {_reason(error, name, kind)}") from error


def require_revision(name: str, revision: str, loaded: datasets.DatasetDict) -> None:
    """Without a hub, datasets takes the revision that it prepared last, whichever was asked for: refuse another.

    Its cache knows commits alone. For a branch or tag, the hub's cache says which commit it was when last seen.

    Raises:
        UserError: the data are of another revision.
    """
    if not huggingface_hub.is_offline_mode():
        return
    commit = revision
    if not re.fullmatch("[0-9a-f]{40}", revision):
        file = huggingface_hub.try_to_load_from_cache(name, "README.md", repo_type="dataset", revision=revision)
        if not isinstance(file, str):
            return  # nothing is known of this branch or tag
        commit = Path(file).parent.name
    prepared = {Path(cached["filename"]).parent.name for split in loaded.values() for cached in split.cache_files}
    if prepared != {commit}:
        raise UserError(
            f"--dataset_revision {revision} of {name} is not in the cache (another revision is), and there is no hub: "
            "load it once where there is a network"
        )


def answer_in_time(question: Callable[[], _T]) -> _T:
    """What the hub answers, all of it, within `ANSWER_TIMEOUT`.

    The libraries' timeouts are of one read from the network: neither looking up the hub's name nor an answer of which
    a byte comes every few seconds is bounded by them.

    Raises:
        TimeoutError: it does not. What `question` raises comes through.
    """
    answer: Future[_T] = Future()

    def ask() -> None:
        try:
            answer.set_result(question())
        except BaseException as error:
            answer.set_exception(error)

    asking = threading.Thread(target=ask, name="question to the hub", daemon=True)  # left behind where it hangs
    asking.start()
    asking.join(ANSWER_TIMEOUT)
    if asking.is_alive():
        raise TimeoutError(f"no whole answer within {ANSWER_TIMEOUT:.0f} s")
    return answer.result()


@contextmanager
def _plain_http() -> Iterator[None]:
    """Have files come by plain HTTP, which every file of the hub can, unless HF_HUB_DISABLE_XET=0 asks for Xet.

    Most weights and data are kept in Xet, from which huggingface_hub downloads by hf_xet: a client in Rust with
    connections of its own, which pass by `_watch`. So one that stands still would be waited for, for hours (xet-core's
    issues 869 and 883), and where there is no terminal, nothing would say how far a download has come. What Xet gains
    by many connections counts for files of many gigabytes, as no encoder has; only above 50 GB is there no plain HTTP.
    Uploads stay as they are.
    """
    before = huggingface_hub.constants.HF_HUB_DISABLE_XET
    # What the variable does at start; huggingface_hub looks here at every download.
    huggingface_hub.constants.HF_HUB_DISABLE_XET = before or "HF_HUB_DISABLE_XET" not in os.environ
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_DISABLE_XET = before


def require_speed() -> None:
    """Have every answer of the hub fail from now on that comes more slowly than `SLOWEST`: see `SlowHubError`."""
    hooks = huggingface_hub.get_session().event_hooks["response"]
    if _watch not in hooks:
        hooks.append(_watch)


def _watch(response: Any) -> None:
    """To be called with a response of httpx, which huggingface_hub 2 has as httpx2, before its body is read."""
    length = response.headers.get("Content-Length", "")
    total = int(length) if length.isdecimal() else None
    response.iter_raw = lambda *size, read=response.iter_raw: _at_speed(read(*size), total)


def _at_speed(parts: Iterator[bytes], total: int | None) -> Iterator[bytes]:
    received, waited = 0, 0.0
    # on a terminal the libraries show a bar of their own
    bar = Progress(total=total, desc="downloading", unit=" bytes", hidden=sys.stderr is None or sys.stderr.isatty())
    while True:
        started = time.perf_counter()
        part = next(parts, None)
        waited += time.perf_counter() - started  # for the network alone: a slow disk is not the hub's fault
        received += len(part or b"")
        bar.update(len(part or b""))
        if waited > SLOW_FOR:
            if received < SLOWEST * waited:
                raise SlowHubError(f"{received / waited:.0f} bytes a second")
            received, waited = 0, 0.0
        if part is None:
            bar.close()
            return
        yield part


def _tell_size(found: Any, name: str, kind: str, config_name: str | None) -> None:
    """Say, once, which weights or data are going to be downloaded and how large they are.

    Said is only what is known to be fetched: of a model the weights that transformers takes, beside which the rest is
    small; of a data set the configuration's files, if they are in a folder of its name.
    """
    if (name, found.sha) in _told:
        return
    _told.add((name, found.sha))
    wanted = _weights(found.siblings or []) if kind == "model" else _data_files(found, config_name)
    missing = [file for file in wanted if not _is_cached(file, name, kind, found.sha)]
    if missing and None not in (sizes := [file.size for file in missing]):
        what = f"{len(missing)} files" if len(missing) > 1 else missing[0].rfilename
        size = f"{sum(sizes) / 1e6:,.1f} MB" if sum(sizes) >= 1e5 else f"{sum(sizes) / 1e3:,.1f} kB"
        logger.info("%s %s: downloading %s, %s, to %s", kind, name, what, size, huggingface_hub.constants.HF_HUB_CACHE)


def _weights(files: list[Any]) -> list[Any]:
    """Of a model's files on the hub those that transformers reads weights from."""
    whole = [file for file in files if file.rfilename == "model.safetensors"]
    return whole or [file for file in files if re.fullmatch(_SHARD, file.rfilename)]


def _data_files(found: Any, config_name: str | None) -> list[Any]:
    """Of a data set's files on the hub those of a configuration; none where datasets has prepared it already."""
    if not config_name or any(Path(datasets.config.HF_DATASETS_CACHE).glob(f"*/{escape(config_name)}/*/{found.sha}")):
        return []
    return [file for file in found.siblings or [] if file.rfilename.startswith(f"{config_name}/")]


def _is_cached(file: Any, name: str, kind: str, commit: str) -> bool:
    """Whether huggingface_hub's cache has a file: of this commit, or of another one in which it is the same."""
    content = file.lfs.sha256 if file.lfs else file.blob_id
    folder = Path(huggingface_hub.constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)
    cached = huggingface_hub.try_to_load_from_cache(name, file.rfilename, repo_type=kind, revision=commit)
    return isinstance(cached, str) or (folder / "blobs" / str(content)).is_file()


def _find_on_hub(flag: str, name: str, kind: str, revision: str) -> Any:
    """Ask the hub for a repository. Where it does not answer, or something else does, go offline.

    Returns:
        Its answer, with the sizes of files; None without one.
    """
    if huggingface_hub.is_offline_mode():
        return None
    try:
        api = huggingface_hub.HfApi()
        ask = partial(api.repo_info, name, repo_type=kind, revision=revision, timeout=TIMEOUT, files_metadata=True)
        return answer_in_time(ask)
    except RevisionNotFoundError:
        raise UserError(f"{flag} {name} has no revision {revision} on the hub: give a branch, tag or commit") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{flag} {name} is neither a local folder nor a {kind} on the hub that you may read: check its name"
        ) from None
    except HFValidationError as error:
        raise UserError(f"{flag} {name} is neither a local folder nor a name for the hub: {error}") from None
    except Exception as error:  # the HTTP library behind it, and so its exceptions, vary with huggingface_hub's version
        logger.warning("the hub does not answer (%s): going on with what is cached", in_words(error))
        # What HF_HUB_OFFLINE=1 does at start; the libraries look here at every request.
        huggingface_hub.constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = True
        return None


def in_words(error: Exception) -> str:
    """Why the hub has not answered, without the password that its address may hold."""
    if isinstance(error, ValueError):  # no JSON, but a hotel's page to log in, or a proxy's that says why not
        return redact(f"what answers at {huggingface_hub.constants.ENDPOINT} is no hub: a login page of this network?")
    return redact(f"{type(error).__name__}: {error}")


def _reason(error: Exception, name: str, kind: str) -> str:
    """What to say of an exception of the libraries."""
    chain = _chain(error)
    if disk := next((link for link in chain if isinstance(link, OSError) and _is_of_disk(link)), None):
        return _reason_of_disk(disk, name)
    if isinstance(error, OSError) and huggingface_hub.is_offline_mode() and not Path(name).is_dir():
        return (
            "not in the cache, and there is no hub (out of reach, or HF_HUB_OFFLINE is set): load it once where there "
            "is a network, or give a local folder or file"
        )
    if slow := next((link for link in chain if isinstance(link, SlowHubError)), None):
        return f"the hub sends {slow}: start again later, or set HF_HUB_OFFLINE=1 to take what is cached"
    if lost := next((link for link in chain if _is_of_connection(link)), None):
        return (
            f"the connection to the hub was lost ({type(lost).__name__}: {lost}): start again, or set HF_HUB_OFFLINE=1 "
            "to take what is cached"
        )
    if isinstance(error, DatasetGenerationError):
        cached = Path(huggingface_hub.constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)
        why = first_line(error.__cause__ or error)
        return f"its files are damaged ({why}): remove {cached} to load them anew"
    return first_line(error)


def _is_of_disk(error: OSError) -> bool:
    """Whether a disk or its permissions say so, and not a library that derives its errors from OSError."""
    return error.errno in _FULL or (error.errno in DISK_ERRORS | _UNWRITABLE and error.filename is not None)


def _reason_of_disk(error: OSError, name: str) -> str:
    is_full = error.errno in _FULL
    if is_full or (error.errno in _UNWRITABLE and not Path(name).is_dir()):
        where = "" if error.filename is None else f": {error.filename}"
        return (
            f"the cache {huggingface_hub.constants.HF_HOME} cannot be written ({error.strerror}{where}): "
            f"{'make room' if is_full else 'have it writable'}, or set HF_HOME to another folder"
        )
    return f"{error.filename} cannot be used ({error.strerror}): see to its disk and permissions"


def _chain(error: BaseException | None) -> list[BaseException]:
    """The error, and those that have led to it."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _is_of_connection(error: BaseException) -> bool:
    """Whether it is one of the HTTP library's, which varies with huggingface_hub's version, or the system's."""
    return isinstance(error, ConnectionError) or any(kind.__name__ == "TransportError" for kind in type(error).__mro__)
