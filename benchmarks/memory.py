"""What a process has in memory of its own when it has read and tokenized 1, 10 and 100 times SST-2.

    python benchmarks/memory.py --output benchmarks/results/memory.json

Own memory is what the kernel calls anonymous (RssAnon): heap and stacks, which nothing but swap can take back. Pages of
mapped files are not in it, since the kernel drops them when it needs the room. Each figure is the peak over a process
of its own that reads a file, tokenizes it or finds the token ids of an earlier one, and then collates batches of random
rows from all over the data. Sentences have SST-2's lengths (benchmarks/data/sst2_lengths.json).
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

SST2 = 67_349  # training sentences
BATCHES, BATCH_SIZE, SEED = 20, 32, 42
LENGTHS = Path(__file__).parent / "data" / "sst2_lengths.json"


def main() -> None:
    """Measure, print the figures, and write them to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 10, 100], help="of SST-2's number of sentences")
    parser.add_argument("--folder", type=Path, help="where to write data and token ids; default: a temporary folder")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    figures = describe() | {"runs": {}}
    for times in arguments.times:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            bytes_of_file = write_sentences(Path(folder) / "train.tsv", times)
            figures["runs"][f"{times} x SST-2"] = {
                "sentences": times * SST2,
                "megabytes_of_file": round(bytes_of_file / 1e6, 1),
                "tokenizing": measure(Path(folder)),
                "token_ids_at_hand": measure(Path(folder)),
            }
        print(json.dumps(figures["runs"][f"{times} x SST-2"], indent=2), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def write_sentences(file: Path, times: int) -> int:
    """Write as many different sentences, in SST-2's mix of lengths, and a small validation file. Returns the bytes."""
    from sst2.data.sample import sample_sentences, sample_tokenizer

    tokenizer = sample_tokenizer()
    words = sorted({word for sentence in sample_sentences("train")[0] for word in sentence.split() if word.isalpha()})
    words = [word for word in words if len(tokenizer.tokenize(word)) == 1]
    generator = np.random.default_rng(SEED)
    histogram = json.loads(LENGTHS.read_text(encoding="utf-8"))["train"]
    lengths = np.repeat([*map(int, histogram)], [*histogram.values()])
    assert len(lengths) == SST2
    with file.open("w", encoding="utf-8") as stream:
        stream.write("sentence\tlabel\n")
        for _ in range(times):
            generator.shuffle(lengths)
            counts = np.maximum(lengths - 2, 1)  # words, without [CLS] and [SEP]
            drawn = iter(generator.integers(len(words), size=counts.sum()).tolist())
            labels = generator.integers(2, size=SST2).tolist()
            for count, label in zip(counts.tolist(), labels, strict=True):
                stream.write(" ".join(words[next(drawn)] for _ in range(count)) + f"\t{label}\n")
    (file.parent / "validation.tsv").write_text("sentence\tlabel\nfine\t1\n", encoding="utf-8")
    return file.stat().st_size


def measure(folder: Path) -> dict[str, Any]:
    """Figures of one process."""
    context = multiprocessing.get_context("spawn")
    connection, other = context.Pipe()
    process = context.Process(target=work, args=(other, folder))
    process.start()
    other.close()
    assert process.pid is not None
    peaks: dict[str, float] = {}
    answer: dict[str, Any] | str = "importing"
    while isinstance(answer, str):  # the name of what it does now
        while not connection.poll(0.005):
            peaks[answer] = max(peaks.get(answer, 0.0), anonymous_mib(process.pid))
        answer = connection.recv()
    process.join()
    load = round(os.getloadavg()[0], 1)  # other work on the machine costs seconds, not memory
    own = {stage: round(peak, 1) for stage, peak in peaks.items()}
    return {"peak_own_memory_mib": max(own.values()), "peak_own_memory_mib_while": own, "load_average": load} | answer


def work(connection: Connection, folder: Path) -> None:
    """Read, tokenize, collate; say what comes next, and in the end how long each took."""
    os.environ |= {"HF_DATASETS_CACHE": str(folder / "cache"), "TMPDIR": str(folder)}

    from sst2.config.settings import Settings
    from sst2.data.batch_plan import epoch_order
    from sst2.data.collation import collate
    from sst2.data.sample import sample_tokenizer
    from sst2.data.splits import load_sentences, tokenize_all

    tokenizer = sample_tokenizer()
    files = [str(folder / name) for name in ("train.tsv", "validation.tsv")]
    settings = Settings(output_dir=str(folder / "run"), train_file=files[0], validation_file=files[1])
    seconds: dict[str, float] = {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        connection.send(name)
        time.sleep(0.02)  # the other side looks every few milliseconds
        started = time.perf_counter()
        yield
        seconds[name] = round(time.perf_counter() - started, 4)
        time.sleep(0.02)

    with stage("reading"):
        sentences = load_sentences(settings)
    with stage("tokenizing"):
        split = tokenize_all(sentences, tokenizer, settings)["train"]
    with stage("fingerprint"):
        assert split.fingerprint
    with stage(f"{BATCHES} batches"):
        generator = np.random.default_rng(SEED)
        for _ in range(BATCHES):
            collate(split, generator.integers(len(split), size=BATCH_SIZE), tokenizer.pad_token_id, "packed")
    with stage("order of an epoch"):
        assert len(epoch_order(len(split), SEED, 0)) == len(split)
    connection.send({"seconds": seconds, "tokens": len(split.input_ids)})


def anonymous_mib(pid: int) -> float:
    """Anonymous memory of a process that is in use, MiB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = [int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:")]
    return found[0] / 2**10 if found else 0.0  # it has none when it has ended


def describe() -> dict[str, Any]:
    """The machine and the versions."""
    import datasets
    import tokenizers
    import torch
    import transformers

    from sst2.distributed.devices import processor

    libraries = {library.__name__: library.__version__ for library in (datasets, np, tokenizers, torch, transformers)}
    return {
        "what": "peak of a process's own (anonymous) host memory, and seconds, for reading and tokenizing sentences of "
        "SST-2's lengths; the order of an epoch is what training adds: a permutation of the row numbers",
        "command": f"python benchmarks/memory.py {' '.join(sys.argv[1:])}".strip(),
        "machine": f"{os.cpu_count()} x {processor()}",
        "versions": {"python": platform.python_version()} | libraries,
    }


if __name__ == "__main__":
    main()
