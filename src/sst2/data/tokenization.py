"""Token ids on disk: written once for the same sentences, tokenizer and length, verified, and mapped.

A folder `KEY.tokens` holds all ids end to end, where each sentence begins and how many of them were cut, as plain
little-endian numbers. It is an atomic folder: whole or absent, with the size and SHA-256 of each file.
"""

import copy
import hashlib
import logging
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from sst2.data.mapped_dataset import batches_of_sentences
from sst2.utils.atomic_folder import write_atomic_folder
from sst2.utils.checksums import damage_of
from sst2.utils.console import Progress
from sst2.utils.errors import UserError
from sst2.utils.file_system import wait_for_lock
from sst2.utils.removal import discard, put_aside

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

CACHE_FORMAT = 4  # part of the key: raise it when the content of the files changes
INPUT_IDS, OFFSETS, CUT = "input_ids.int32", "offsets.int64", "cut.int64"


def require_tokens(
    name: str,
    data: "Dataset",
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    cache_dir: Path,
    check_stop: Callable[[], object],
) -> Path:
    """The folder with the token ids of these sentences, which is written if it is not there or not whole.

    Any number of processes may call this at once: the first takes a file lock and writes, the others wait at the lock.
    No collective is involved, so that a long tokenization cannot run into a process group's timeout. `cache_dir` need
    not be writable if the folder is there.

    Raises:
        UserError: the folder cannot be written, or has no room.
    """
    encoder = encoder_of(tokenizer, max_length)
    folder = cache_dir / f"{_cache_key(data, encoder)}.tokens"
    if damage_of(folder):  # seen without the lock: those that only read need not wait for each other
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            with Path(f"{folder}.lock").open("w") as lock:
                waiting = f"waiting for another process that tokenizes the {name} split (it holds {lock.name})"
                is_alone = wait_for_lock(lock, waiting, check_stop=check_stop)
                if found := damage_of(folder):
                    if folder.exists():
                        logger.warning("%s: tokenizing anew, %s is damaged: %s", name, folder, found)
                    logger.info("%s: tokenizing %d sentences", name, len(data))
                    put_in_place = write_atomic_folder if is_alone else _write_beside_others
                    put_in_place(folder, partial(_write, data, encoder, check_stop))
                    return folder
        except OSError as error:
            raise UserError(
                f"token ids cannot be written to {cache_dir} ({error.strerror or error}): make room, or name a folder "
                "that has some in the environment variable HF_DATASETS_CACHE"
            ) from None
    logger.info("%s: %d sentences, tokenized earlier (%s)", name, len(data), folder)
    return folder


def map_tokens(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Token ids, (tokens,) int32, and offsets, (sentences + 1,) int64, as pages of their files: read-only."""
    # plain arrays: indexing a memmap makes another memmap each time, which is slow
    return (
        np.asarray(np.memmap(folder / INPUT_IDS, "<i4", mode="r")),
        np.asarray(np.memmap(folder / OFFSETS, "<i8", mode="r")),
    )


def encoder_of(tokenizer: PreTrainedTokenizerBase, max_length: int) -> Tokenizer:
    """What encodes sentences in training and prediction: without padding and what earlier calls have left in it."""
    encoder: Tokenizer = copy.deepcopy(tokenizer.backend_tokenizer)
    encoder.no_padding()
    encoder.enable_truncation(max_length, direction=tokenizer.truncation_side)
    return encoder


def num_cut(folder: Path) -> int:
    """How many of the sentences had more tokens than `max_length`."""
    return int(np.fromfile(folder / CUT, "<i8")[0])


def encode(encoder: Tokenizer, sentences: Sequence[str]) -> tuple[list[list[int]], int]:
    """Token ids of each sentence, and how many sentences were cut. On all cores, in threads of the library's own."""
    encodings = encoder.encode_batch_fast(sentences)  # `fast` leaves out where in the text a token stands
    return [encoding.ids for encoding in encodings], sum(1 for encoding in encodings if encoding.overflowing)


def _cache_key(data: "Dataset", encoder: Tokenizer) -> str:
    key = hashlib.sha256(f"{CACHE_FORMAT} {len(data)} {encoder.to_str()}".encode())
    for batch in batches_of_sentences(data):
        key.update(np.fromiter(map(len, batch), "<i8", len(batch)).data)  # where one ends and the next begins
        key.update("".join(batch).encode())
    return key.hexdigest()[:32]


def _write_beside_others(folder: Path, write_files: Callable[[Path], None]) -> None:
    """`write_atomic_folder` without locks: each process writes a folder of its own, and the first takes the place."""
    own = folder.with_name(f"{folder.stem}-{socket.gethostname()}-{os.getpid()}.tokens")
    write_atomic_folder(own, write_files)
    try:
        os.rename(own, folder)
    except OSError:  # there is one: of another process, which was first, or damaged
        if damage_of(folder):
            discard(put_aside(folder))
            os.rename(own, folder)
    discard(own)


def _write(data: "Dataset", encoder: Tokenizer, check_stop: Callable[[], object], folder: Path) -> None:
    end = cut = 0
    with (
        (folder / INPUT_IDS).open("wb") as ids_file,
        (folder / OFFSETS).open("wb") as offsets_file,
        Progress(total=len(data), desc="tokenizing", unit=" sentences", unit_scale=True) as bar,
    ):
        offsets_file.write(bytes(8))
        for batch in batches_of_sentences(data):
            check_stop()
            ids, cut_here = encode(encoder, batch)
            cut += cut_here
            ends = end + np.cumsum(np.fromiter(map(len, ids), np.int64, len(ids)))
            ids_file.write(np.fromiter(chain.from_iterable(ids), "<i4").tobytes())
            offsets_file.write(ends.astype("<i8").tobytes())
            end = int(ends[-1])
            bar.update(len(ids))
    (folder / CUT).write_bytes(cut.to_bytes(8, "little"))
