"""Sentences from the hub, files or the embedded sample: split, compared, tokenized once and cached."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from sst2.config.class_names import in_words
from sst2.config.flag_groups import LABEL_NAMES, SAMPLE
from sst2.config.settings import Settings
from sst2.data.checked_rows import read_dataset, read_file, with_classes
from sst2.data.file_formats import Columns
from sst2.data.hub import reading_from_hub, require_revision
from sst2.data.mapped_dataset import (
    BATCH,
    batches_of_sentences,
    class_names_of,
    labels_of,
    mapped_dataset,
    rows_of,
)
from sst2.data.sample import sample_sentences
from sst2.data.staging import local_copy
from sst2.data.tokenization import map_tokens, num_cut, require_tokens
from sst2.utils.errors import UserError, first_line, quoted, shortened

logger = logging.getLogger(__name__)

MOST_TOLD = 1000  # characters of a list of classes

GLUE_SST2 = {"train": 67_349, "validation": 872}  # sentences that the published data set has


@dataclass
class Split:
    """One split, tokenized. Token ids lie end to end in one array, so that a batch is an indexing away.

    Sentences, token ids and offsets are pages of files, which the kernel reads when they are asked for and takes back
    when it needs the room: what a process has for itself grows by the label's two bytes a sentence.

    Attributes:
        name: `train`, `validation`, `holdout` or `test`.
        sentences: the texts; a slice of them is a list.
        labels: (sentences,) int16, numbers of classes; -1 unknown.
        input_ids: (tokens,) int32, with [CLS] and [SEP].
        offsets: (sentences + 1,) int64; sentence i is input_ids[offsets[i]:offsets[i + 1]].
        label_names: what 0, 1 and so on stand for.
        num_cut: sentences that had more tokens than are kept.
    """

    name: str
    sentences: Sequence[str]
    labels: np.ndarray
    input_ids: np.ndarray
    offsets: np.ndarray
    label_names: Sequence[str] = LABEL_NAMES
    num_cut: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def lengths(self, indices: np.ndarray | None = None) -> np.ndarray:
        """Tokens of these sentences, or of all of them, (indices,) int64."""
        return np.diff(self.offsets) if indices is None else self.offsets[indices + 1] - self.offsets[indices]

    @cached_property
    def fingerprint(self) -> str:
        """Tells whether two splits hold the same token ids and labels."""
        digest = hashlib.sha256()
        for array in (self.input_ids, self.offsets):
            digest.update(array.data)  # page by page: nothing is copied
        for start in range(0, len(self), BATCH):
            digest.update(self.labels[start : start + BATCH].astype("<i8").data)
        return digest.hexdigest()

    @property
    def is_labeled(self) -> bool:
        """Whether all labels are known."""
        return bool((self.labels >= 0).all())


def load_sentences(settings: Settings) -> dict[str, Dataset]:
    """Read all splits: `train`, then `holdout`, `validation` and `test` where there are any.

    All have the classes of `--label_names`, or those that are found in `train`: `class_names_of` names them.

    Raises:
        UserError: data that cannot be had or used, with file and row where there is one.
    """
    if settings.dataset_name == SAMPLE:
        splits = {name: mapped_dataset(zip(*sample_sentences(name), strict=True)) for name in ("train", "validation")}
    elif settings.train_file:
        splits = _from_files(settings)
    else:
        splits = _from_dataset(settings)
    splits["train"] = _first(splits["train"], settings.max_train_samples)
    if settings.holdout_fraction:
        splits = _cut_holdout(splits, settings.holdout_fraction, settings.seed)
    if not settings.label_names:
        _tell_classes(splits["train"])
    _warn_of_missing_classes("train", splits["train"])
    for name in [name for name in splits if name != "train"]:
        splits[name] = _first(splits[name], settings.max_eval_samples)
        _warn_of_missing_labels(name, splits[name])
        if name != "test":
            _warn_of_missing_classes(name, splits[name])
        if name != "holdout":  # which is cut so that it shares none
            _warn_of_shared_sentences(splits["train"], name, splits[name])
    return splits


def with_class_names(settings: Settings, train: Dataset) -> Settings:
    """The settings with the names of the classes of the training data.

    Raises:
        UserError: two classes have one name, or `--class_weights` are not as many.
    """
    try:
        return replace(settings, label_names=class_names_of(train))
    except ValueError as error:
        raise UserError(str(error)) from None


def tokenize_all(
    sentences: dict[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    check_stop: Callable[[], object] = lambda: None,
) -> dict[str, Split]:
    """Every split of a run, tokenized by `tokenize`."""
    splits = {}
    for name, data in sentences.items():
        split = tokenize(name, data, tokenizer, settings.max_length, None, settings.stage_dir, check_stop)
        splits[name] = split
        if split.num_cut:
            logger.warning(
                "%s: %d of %d sentences have more than --max_length %d tokens: their ends are cut off",
                *(name, split.num_cut, len(split), settings.max_length),
            )
    return splits


def tokenize(
    name: str,
    data: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    cache_dir: Path | None = None,
    stage_dir: str | None = None,
    check_stop: Callable[[], object] = lambda: None,
) -> Split:
    """Tokenize a split, or map the token ids that an earlier start left in `cache_dir`, the datasets cache by default.

    Any number of processes may call this at once: one of them tokenizes. What `check_stop` raises ends the work, or the
    waiting for it. With a `stage_dir` on the node's own disk, a copy there is mapped.

    Raises:
        UserError: one of the folders cannot be written, or has no room.
    """
    cache_dir = cache_dir or Path(datasets.config.HF_DATASETS_CACHE) / "sst2-tokenized"
    folder = require_tokens(name, data, tokenizer, max_length, cache_dir, check_stop)
    if stage_dir is not None:
        folder = local_copy(folder, stage_dir, check_stop=check_stop)
    ids, offsets = map_tokens(folder)
    return Split(name, data["sentence"], labels_of(data), ids, offsets, class_names_of(data), num_cut(folder))


def _from_files(settings: Settings) -> dict[str, Dataset]:
    files = {"train": settings.train_file, "validation": settings.validation_file, "test": settings.test_file}
    columns = with_classes(_columns(settings), str(settings.train_file), str(settings.train_file))
    return {name: read_file(file, name != "test", columns) for name, file in files.items() if file}


def _from_dataset(settings: Settings) -> dict[str, Dataset]:
    name = str(settings.dataset_name)
    if Path(name).is_dir():
        try:
            loaded = datasets.load_from_disk(name)
        except Exception as error:  # of any kind, as its files may be
            raise UserError(f"--dataset_name {name} was not written by save_to_disk: {first_line(error)}") from None
    else:
        config_name, revision = settings.dataset_config_name, settings.dataset_revision
        with reading_from_hub("--dataset_name", name, "dataset", revision, config_name):
            try:
                loaded = datasets.load_dataset(name, config_name, revision=revision)
            except ValueError as error:
                raise UserError(f"--dataset_config_name {config_name} of {name}: {error}") from None
            require_revision(name, revision, loaded)
    if not isinstance(loaded, datasets.DatasetDict) or "train" not in loaded:
        raise UserError(f"--dataset_name {name} has no split named train: save a DatasetDict with train and validation")
    if "validation" not in loaded and not settings.holdout_fraction:
        raise UserError(f"--dataset_name {name} has no split named validation: add --holdout_fraction 0.1 to cut one")
    columns = with_classes(_columns(settings), loaded["train"], f"{name} train")
    splits = {
        split: read_dataset(loaded[split], f"{name} {split}", split != "test", columns)
        for split in ("train", "validation", "test")
        if split in loaded
    }
    if name == "nyu-mll/glue":
        for split, expected in GLUE_SST2.items():
            if split in splits and len(splits[split]) != expected:
                logger.warning("%s %s has %d sentences, SST-2 has %d", name, split, len(splits[split]), expected)
    return splits


def _columns(settings: Settings) -> Columns:
    named_by = "--label_names" if settings.label_names else ""
    return Columns(settings.sentence_column, settings.label_column, tuple(settings.label_names), named_by=named_by)


def _first(data: Dataset, count: int | None) -> Dataset:
    return data.select(range(count)) if count and count < len(data) else data


def _warn_of_missing_labels(name: str, evaluated: Dataset) -> None:
    unlabeled = int((labels_of(evaluated) < 0).sum())
    if 0 < unlabeled < len(evaluated):
        logger.warning("%d of %d %s sentences have no label: none is scored", unlabeled, len(evaluated), name)


def _tell_classes(train: Dataset) -> None:
    """Say which classes were found, unless they are SST-2's: a misspelled label is a class of its own."""
    names = class_names_of(train)
    if tuple(names) == LABEL_NAMES:
        return
    counts = np.bincount(labels_of(train), minlength=len(names))
    found = [f"{name} ({count})" for name, count in zip(names, counts, strict=True)]
    positive = f"; precision, recall and F1 are of {names[1]}: --label_names sets the order" if len(names) == 2 else ""
    logger.info(
        "%d classes among the training labels: %s%s", len(names), shortened(", ".join(found), MOST_TOLD), positive
    )


def _warn_of_missing_classes(name: str, data: Dataset) -> None:
    names, labels = class_names_of(data), labels_of(data)
    counts = np.bincount(labels[labels >= 0], minlength=len(names))
    missing = [label_name for label_name, count in zip(names, counts, strict=True) if not count]
    if not missing or len(missing) == len(names):
        return
    told = shortened(in_words(missing, "or"), MOST_TOLD)
    if name == "train" and len(names) - len(missing) == 1:
        only, other = names[int(labels[0])], "the other class" if len(names) == 2 else "the other classes"
        logger.warning("all %d training sentences are %s: nothing can be learned of %s", len(data), only, other)
    elif name == "train":
        logger.warning("no training sentence is %s: nothing can be learned of it", told)
    else:
        logger.warning("no %s sentence is %s: its metrics say nothing of it", name, told)


def _warn_of_shared_sentences(train: Dataset, name: str, evaluated: Dataset) -> None:
    """Say when metrics would be flattered by sentences that training has seen."""
    sentences = evaluated["sentence"][:]
    texts = {sentence.strip() for sentence in sentences}  # the few of the two; training streams by
    seen = {text for batch in batches_of_sentences(train) for text in map(str.strip, batch) if text in texts}
    shared = [sentence for sentence in sentences if sentence.strip() in seen]
    if shared:
        logger.warning(
            "%d of %d %s sentences stand in the training data as well, %s for one: their metrics flatter",
            *(len(shared), len(evaluated), name, quoted(shared[0])),
        )


def _cut_holdout(splits: dict[str, Dataset], fraction: float, seed: int) -> dict[str, Dataset]:
    train, names = splits["train"], class_names_of(splits["train"])
    size = round(len(train) * fraction)
    is_held = _draw_holdout(train, size, seed)
    if not 0 < is_held.sum() < len(train):
        raise UserError(
            f"--holdout_fraction {fraction} of {len(train)} training sentences leaves a part empty: give another share"
        )
    # copies, since every pass over chosen rows of a dataset costs a second for each 200,000
    parts = {
        "train": mapped_dataset(compress(rows_of(train), ~is_held), names),
        "holdout": mapped_dataset(compress(rows_of(train), is_held), names),
    }
    return parts | {name: data for name, data in splits.items() if name != "train"}


def _draw_holdout(train: Dataset, size: int, seed: int) -> np.ndarray:
    """Whole groups of equal texts, drawn until they make `size` rows: copies of a sentence stay on one side.

    Returns:
        (sentences,) bool: whether a row is held out.
    """
    # Hashes in place of texts, 8 bytes each: two of a million texts meet with a chance of 3e-8, and then stay together.
    texts = (text for batch in batches_of_sentences(train) for text in map(str.strip, batch))
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    _, first_rows, text_of_row, copies = np.unique(
        np.frombuffer(digests, "<u8"), return_index=True, return_inverse=True, return_counts=True
    )
    by_appearance = np.argsort(first_rows)
    # a stream of its own: the epochs' orders draw from [seed, epoch]
    drawn = by_appearance[np.random.default_rng([seed, 2**32]).permutation(len(by_appearance))]
    rows_before = np.cumsum(copies[drawn]) - copies[drawn]
    is_held = np.zeros(len(drawn), dtype=bool)
    is_held[drawn[rows_before < size]] = True
    return is_held[text_of_row]
