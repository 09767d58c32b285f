"""Sentences from the hub, files or the embedded sample: split, compared, tokenised once and cached."""

import hashlib
import json
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from sst2.errors import UserError
from sst2.hub import reading_from_hub, require_revision
from sst2.reading import LabelledSentences, read_dataset, read_file
from sst2.sample import sample_sentences
from sst2.settings import SAMPLE, Settings
from sst2.staging import local_copy

logger = logging.getLogger(__name__)

GLUE_SST2 = {"train": 67_349, "validation": 872}  # sentences that the published data set has
CACHE_FORMAT = 1  # part of the key of tokenised files: raise it when their content changes


@dataclass
class Split:
    """One split, tokenised. Token ids lie end to end in one array, so that a batch is an indexing away.

    Attributes:
        name: `train`, `validation`, `holdout` or `test`.
        sentences: the texts.
        labels: (sentences,) int64; 0 negative, 1 positive, -1 unknown.
        input_ids: (tokens,) int32, with [CLS] and [SEP].
        offsets: (sentences + 1,) int64; sentence i is input_ids[offsets[i]:offsets[i + 1]].
    """

    name: str
    sentences: list[str]
    labels: np.ndarray
    input_ids: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(sentences,) tokens per sentence."""
        return np.diff(self.offsets)

    @property
    def fingerprint(self) -> str:
        """Tells whether two splits hold the same token ids and labels."""
        return hashlib.sha256(self.input_ids.tobytes() + self.offsets.tobytes() + self.labels.tobytes()).hexdigest()

    @property
    def is_labelled(self) -> bool:
        return bool((self.labels >= 0).all())


def load_sentences(settings: Settings) -> dict[str, LabelledSentences]:
    """Read all splits: `train`, then `holdout`, `validation` and `test` where there are any.

    Raises:
        UserError: data that cannot be had or used, with file and row where there is one.
    """
    if settings.dataset_name == SAMPLE:
        splits = {name: LabelledSentences(*sample_sentences(name)) for name in ("train", "validation")}
    elif settings.train_file:
        splits = _from_files(settings)
    else:
        splits = _from_dataset(settings)
    if settings.max_train_samples:
        splits["train"] = splits["train"].take(range(min(settings.max_train_samples, len(splits["train"]))))
    if settings.holdout_fraction:
        splits = _cut_holdout(splits, settings.holdout_fraction, settings.seed)
    for name in [name for name in splits if name != "train"]:
        if settings.max_eval_samples:
            splits[name] = splits[name].take(range(min(settings.max_eval_samples, len(splits[name]))))
        _warn_of_shared_sentences(splits["train"], name, splits[name])
    return splits


def tokenize_all(
    sentences: dict[str, LabelledSentences], tokenizer: PreTrainedTokenizerBase, settings: Settings
) -> dict[str, Split]:
    """Every split of a run, tokenised by `tokenize`."""
    return {
        name: tokenize(name, data, tokenizer, settings.max_length, stage_dir=settings.stage_dir)
        for name, data in sentences.items()
    }


def tokenize(
    name: str,
    data: LabelledSentences,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    cache_dir: Path | None = None,
    stage_dir: str | None = None,
) -> Split:
    """Tokenise a split, or map the file that an earlier start left in the datasets cache.

    Any number of processes may call this at once: the first takes a file lock and writes, the others wait at the lock.
    No collective is involved, so that a long tokenisation cannot run into a process group's timeout.

    Args:
        max_length: tokens per sentence at most.
        cache_dir: where the file is kept; the datasets cache if None.
        stage_dir: folder of the node's own disk to map a copy in; the file itself if None.
    """
    cache_dir = cache_dir or Path(datasets.config.HF_DATASETS_CACHE) / "sst2-tokenized"
    cache_dir.mkdir(parents=True, exist_ok=True)
    file = cache_dir / f"{_cache_key(data.sentences, tokenizer, max_length)}.arrow"
    with FileLock(f"{file}.lock"):
        if file.exists():
            logger.info("%s: %d sentences, tokenised earlier (%s)", name, len(data), file)
        else:
            logger.info("%s: tokenising %d sentences", name, len(data))
            _write_tokenized(data.sentences, tokenizer, max_length, file)
    if stage_dir is not None:
        file = local_copy(file, stage_dir)
    column = datasets.Dataset.from_file(str(file)).data.column("input_ids").combine_chunks()
    return Split(
        name=name,
        sentences=data.sentences,
        labels=np.array(data.labels, dtype=np.int64),
        input_ids=column.values.to_numpy(),
        offsets=column.offsets.to_numpy().astype(np.int64),
    )


def _from_files(settings: Settings) -> dict[str, LabelledSentences]:
    files = {"train": settings.train_file, "validation": settings.validation_file, "test": settings.test_file}
    return {name: read_file(file, labels_required=name != "test") for name, file in files.items() if file}


def _from_dataset(settings: Settings) -> dict[str, LabelledSentences]:
    name = str(settings.dataset_name)
    if Path(name).is_dir():
        try:
            loaded = datasets.load_from_disk(name)
        except (OSError, ValueError) as error:
            raise UserError(f"--dataset_name {name} was not written by save_to_disk: {error}") from None
    else:
        config_name, revision = settings.dataset_config_name, settings.dataset_revision
        with reading_from_hub("--dataset_name", name, "dataset", revision):
            try:
                loaded = datasets.load_dataset(name, config_name, revision=revision)
            except ValueError as error:
                raise UserError(f"--dataset_config_name {config_name} of {name}: {error}") from None
            require_revision(name, revision, loaded)
    if not isinstance(loaded, datasets.DatasetDict) or "train" not in loaded:
        raise UserError(f"--dataset_name {name} has no split named train: save a DatasetDict with train and validation")
    if "validation" not in loaded and not settings.holdout_fraction:
        raise UserError(f"--dataset_name {name} has no split named validation: add --holdout_fraction 0.1 to cut one")
    splits = {
        split: read_dataset(loaded[split], f"{name} {split}", labels_required=split != "test")
        for split in ("train", "validation", "test")
        if split in loaded
    }
    if name == "nyu-mll/glue":
        for split, expected in GLUE_SST2.items():
            if split in splits and len(splits[split]) != expected:
                logger.warning("%s %s has %d sentences, SST-2 has %d", name, split, len(splits[split]), expected)
    return splits


def _warn_of_shared_sentences(train: LabelledSentences, name: str, evaluated: LabelledSentences) -> None:
    """Say when metrics would be flattered by sentences that training has seen."""
    seen = {sentence.strip() for sentence in train.sentences}
    shared = [sentence for sentence in evaluated.sentences if sentence.strip() in seen]
    if shared:
        logger.warning(
            "%d of %d %s sentences stand in the training data as well, %r for one: their metrics flatter",
            len(shared),
            len(evaluated),
            name,
            shared[0],
        )
    unlabelled = evaluated.labels.count(-1)
    if 0 < unlabelled < len(evaluated):
        logger.warning("%d of %d %s sentences have no label: none is scored", unlabelled, len(evaluated), name)


def _cut_holdout(splits: dict[str, LabelledSentences], fraction: float, seed: int) -> dict[str, LabelledSentences]:
    train = splits["train"]
    size = round(len(train) * fraction)
    if not 0 < size < len(train):
        raise UserError(
            f"--holdout_fraction {fraction} of {len(train)} training sentences leaves a part empty: give another share"
        )
    rows_of: dict[str, list[int]] = {}  # by text: copies of a sentence stay on one side
    for row, sentence in enumerate(train.sentences):
        rows_of.setdefault(sentence.strip(), []).append(row)
    texts = list(rows_of)
    held: list[int] = []
    # a stream of its own: the epochs' orders draw from [seed, epoch]
    for number in np.random.default_rng([seed, 2**32]).permutation(len(texts)):
        if len(held) < size:
            held += rows_of[texts[number]]
    rest = set(range(len(train))).difference(held)
    parts = {"train": train.take(sorted(rest)), "holdout": train.take(sorted(held))}
    return parts | {name: data for name, data in splits.items() if name != "train"}


def _cache_key(sentences: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    # The rest of its state, which earlier calls left behind, does not count: `encode` sets truncation anew.
    backend = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    key = hashlib.sha256(f"{CACHE_FORMAT} {max_length} {json.dumps(backend)}".encode())
    for sentence in sentences:
        encoded = sentence.encode()
        key.update(len(encoded).to_bytes(8, "little") + encoded)
    return key.hexdigest()[:32]


def _write_tokenized(sentences: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int, file: Path) -> None:
    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"input_ids": tokenizer(batch["sentence"], truncation=True, max_length=max_length)["input_ids"]}

    # `map` writes to a temporary file beside it and renames: the file is whole or absent
    datasets.Dataset.from_dict({"sentence": sentences}).map(
        encode,
        batched=True,
        remove_columns=["sentence"],
        features=datasets.Features({"input_ids": datasets.List(datasets.Value("int32"))}),
        cache_file_name=str(file),
        new_fingerprint=file.stem,
        desc="Tokenising",
    )
