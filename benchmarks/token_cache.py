"""Token ids from the project's cache and from `Dataset.map`'s: seconds of a second start, copies, and damage.

    python benchmarks/token_cache.py --output benchmarks/results/token_cache.json

Both sides tokenize the same generated sentences of SST-2's lengths once. Then, in interleaved rounds, each finds its
token ids in its cache as a second start does, and gives them as one flat array, which is what a batch is indexed from.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset
from memory import describe, write_sentences
from transformers import PreTrainedTokenizerBase

from sst2.data.checked_rows import read_file
from sst2.data.sample import sample_tokenizer
from sst2.data.splits import tokenize

MAX_LENGTH = 64


def main() -> None:
    """Measure, print the figures, and write them to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--times", type=int, default=1, help="of SST-2's number of sentences")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    tokenizer = sample_tokenizer()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_sentences(folder / "train.tsv", arguments.times)
        saved = read_file(str(folder / "train.tsv"), labels_required=True)
        saved.save_to_disk(str(folder / "saved"))  # a dataset with a name, so that map can keep its result beside it
        data = datasets.load_from_disk(str(folder / "saved"))
        ways: dict[str, Callable[[], np.ndarray]] = {
            "this job": lambda: tokenize("train", data, tokenizer, MAX_LENGTH, folder / "tokens").input_ids,
            "Dataset.map": lambda: mapped(data, tokenizer),
        }
        first = {name: seconds_of(way) for name, way in ways.items()}
        rounds = [{name: seconds_of(way) for name, way in ways.items()} for _ in range(arguments.rounds)]
        assert np.array_equal(ways["this job"](), ways["Dataset.map"]())
        figures = describe() | {
            "command": "python benchmarks/token_cache.py --output benchmarks/results/token_cache.json",
            "what": "seconds of a start that tokenizes, and of one that finds token ids, until they are a flat array",
            "sentences": len(data),
            "first_start_seconds": first,
            "second_start_seconds": {name: statistics.median(way[name] for way in rounds) for name in ways},
            "flat_array_is_a_copy": {name: way().base is None or not is_mapped(way()) for name, way in ways.items()},
            "a_changed_byte_is_noticed": {
                "this job": notices(folder / "tokens", "input_ids.int32", ways["this job"]),
                "Dataset.map": notices(folder / "saved", "cache-*.arrow", ways["Dataset.map"]),
            },
        }
    print(json.dumps(figures, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def mapped(data: Dataset, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Token ids as `Dataset.map` keeps them, (tokens,) int32."""

    def encode(batch: dict[str, Any]) -> dict[str, Any]:
        return {"input_ids": tokenizer(batch["sentence"], truncation=True, max_length=MAX_LENGTH)["input_ids"]}

    tokens = data.map(encode, batched=True, remove_columns=data.column_names)
    ids: np.ndarray = tokens.data.column("input_ids").combine_chunks().flatten().to_numpy()
    return ids


def seconds_of(way: Callable[[], np.ndarray]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    way()
    return round(time.perf_counter() - started, 4)


def is_mapped(array: np.ndarray) -> bool:
    """Whether an array lies in a mapped file."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        begin, end = (int(number, 16) for number in line.split()[0].split("-"))
        if begin <= address < end:
            return "/" in line
    return False


def notices(folder: Path, pattern: str, way: Callable[[], np.ndarray]) -> bool:
    """Whether a byte that has changed in the middle of the token ids leaves the ids what they were."""
    before = way().copy()
    (file,) = folder.rglob(pattern)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return bool(np.array_equal(way(), before))


if __name__ == "__main__":
    main()
