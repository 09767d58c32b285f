"""The hub, when it fails: found out in seconds, told in one line, and worked around with the cache where that is warm.

Left to themselves the libraries retry a dead hub for 20 to 45 seconds per file, and a hub that accepts a connection
but never answers for minutes. One question with a timeout, asked first, decides whether there is a hub at all.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import huggingface_hub
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from sst2.errors import UserError, first_line

logger = logging.getLogger(__name__)

TIMEOUT = 10.0  # seconds until a hub that does not answer counts as down


@contextmanager
def reading_from_hub(flag: str, name: str, kind: str, revision: str) -> Iterator[None]:
    """Around code that loads `name` from the hub or a folder: its failures become a `UserError` that names `flag`.

    Args:
        flag: the flag that gave `name`.
        name: repository, or a local folder, for which the hub is not asked.
        kind: `model` or `dataset`.
        revision: branch, tag or commit.
    """
    if not Path(name).is_dir():
        _ask_hub(flag, name, kind, revision)
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # transformers and datasets stumble over odd files with exceptions of any kind
        reason = first_line(error)
        if isinstance(error, OSError) and huggingface_hub.is_offline_mode() and not Path(name).is_dir():
            reason = "not in the cache, and there is no hub (out of reach, or HF_HUB_OFFLINE is set)"
            reason += ": load it once where there is a network, or give a local folder or file"
        raise UserError(f"{flag} {name}: {reason}") from None


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


def _ask_hub(flag: str, name: str, kind: str, revision: str) -> None:
    if huggingface_hub.is_offline_mode():
        return
    try:
        huggingface_hub.HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=TIMEOUT)
    except RevisionNotFoundError:
        raise UserError(f"{flag} {name} has no revision {revision} on the hub: give a branch, tag or commit") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{flag} {name} is neither a local folder nor a {kind} on the hub that you may read: check its name"
        ) from None
    except ValueError as error:
        raise UserError(f"{flag} {name} is neither a local folder nor a name for the hub: {error}") from None
    except Exception as error:  # the HTTP library behind it, and so its exceptions, vary with huggingface_hub's version
        logger.warning("the hub does not answer (%s: %s): going on with what is cached", type(error).__name__, error)
        # What HF_HUB_OFFLINE=1 does at start; the libraries look here at every request.
        huggingface_hub.constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = True
