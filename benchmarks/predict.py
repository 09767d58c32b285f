"""How fast `python -m sst2.predict` classifies, against transformers' pipeline, and how much memory a stream takes.

    python benchmarks/predict.py --rounds 5 --output benchmarks/results/predict.json

Speed: DistilBERT-base with random weights, in float32, on sentences of the lengths of SST-2's training and validation
sentences (benchmarks/data/sst2_lengths.json). Both ways are processes of their own with their model at hand, and take
turns on the same file: `pipeline("sentiment-analysis", batch_size=32)`, which a generator feeds line by line, and this
command from reading to writing. Their answers are compared.

Memory: the command as users start it, with a tiny model, on ten thousand and on a million sentences. The figure is the
largest resident set of the process (VmHWM, Linux).
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # for benchmarks.throughput

LENGTHS = Path(__file__).parent / "data" / "sst2_lengths.json"
PIPELINE_BATCH, SEED = 32, 0
Classify = Callable[[Path], list[float]]  # of a file's sentences, one a line; to the probabilities of POSITIVE
Rounds = dict[str, dict[str, list[float]]]  # seconds of each round, by workload and way


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sentences", type=int, default=1024, help="in a round, of each of the two mixes of lengths")
    parser.add_argument(
        "--memory_sentences", type=int, nargs="+", default=[10_000, 1_000_000], help="to measure the memory with"
    )
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), arguments.sentences)
        memory = {f"{count} sentences": peak_memory(Path(folder), count) for count in arguments.memory_sentences}
        seconds, difference = measure(Path(folder), arguments.rounds)
    figures = describe(seconds, difference, arguments, memory)
    print(json.dumps(figures, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def write_inputs(folder: Path, count: int) -> None:
    """The two models, and a file of sentences for each mix of lengths."""
    import torch
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    from sst2.sample import sample_config, sample_tokenizer

    tokenizer = sample_tokenizer()
    labels = {"id2label": {0: "NEGATIVE", 1: "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}}
    for name, config in (("base", DistilBertConfig()), ("tiny", sample_config(len(tokenizer)))):
        torch.manual_seed(SEED)
        config.update(labels)
        DistilBertForSequenceClassification(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for split in ("train", "validation"):
        write_sentences(folder / f"{split}.txt", split, count)


def write_sentences(file: Path, split: str, count: int) -> None:
    """One a line, of words that are one token each, in the mix of lengths of a split."""
    from sst2.sample import sample_sentences, sample_tokenizer

    tokenizer = sample_tokenizer()
    words = sorted({word for sentence in sample_sentences("train")[0] for word in sentence.split() if word.isalpha()})
    words = [word for word in words if len(tokenizer.tokenize(word)) == 1]
    histogram = json.loads(LENGTHS.read_text(encoding="utf-8"))[split]
    lengths, counts = np.array([*map(int, histogram)]), np.array([*histogram.values()])
    generator = np.random.default_rng(SEED)
    with open(file, "w", encoding="utf-8") as stream:
        for length in generator.choice(lengths, size=count, p=counts / counts.sum()):
            drawn = generator.integers(len(words), size=max(1, length - 2))  # without [CLS] and [SEP]
            stream.write(" ".join(words[number] for number in drawn) + "\n")


def by_pipeline(folder: Path) -> Classify:
    """As it is usually done."""
    import torch
    from transformers import pipeline

    device = 0 if torch.cuda.is_available() else "cpu"
    make: Any = pipeline  # whose many overloads take no device of two types
    classify = make("sentiment-analysis", str(folder / "base"), batch_size=PIPELINE_BATCH, device=device)

    def sentences(file: Path) -> Iterator[str]:
        with open(file, encoding="utf-8") as lines:
            for line in lines:
                yield line.rstrip("\n")

    def run(file: Path) -> list[float]:
        answers = classify(sentences(file), truncation=True)
        return [a["score"] if a["label"] == "POSITIVE" else 1 - a["score"] for a in answers]

    return run


def by_this_command(folder: Path) -> Classify:
    """What the command does once its model is there: read, classify, write."""
    from sst2 import predict
    from sst2.incoming import chunks, sentences_of
    from sst2.sinks import NewFile

    classifier = predict.load(str(folder / "base"), None, "no")

    def run(file: Path) -> list[float]:
        answers_file = folder / "answers.jsonl"
        flags = predict.parse(["base", "--file", str(file), "--output", str(answers_file)])
        parts = chunks(sentences_of([], str(file)), predict.CHUNK)
        with NewFile("--output", str(answers_file)) as output:
            answers = predict.answer(parts, classifier, explained=False, done=lambda count: None)
            predict.write(answers, classifier.labels, flags, output, page=None)
        lines = answers_file.read_text(encoding="utf-8").splitlines()
        answers_file.unlink()
        return [json.loads(line)["probability_positive"] for line in lines]

    return run


WAYS: dict[str, Callable[[Path], Classify]] = {"pipeline": by_pipeline, "sst2.predict": by_this_command}


def work(connection: Connection, way: str, folder: Path) -> None:
    """A process of its own: classifies the files that it is told, and says how long it took."""
    classify = WAYS[way](folder)
    for file in folder.glob("*.txt"):  # what the libraries prepare for shapes is there then
        classify(file)
    connection.send("ready")
    while file := connection.recv():
        started = time.perf_counter()
        probabilities = classify(file)
        connection.send((time.perf_counter() - started, probabilities))


def measure(folder: Path, rounds: int) -> tuple[Rounds, float]:
    """Have both ways take turns. Returns their seconds, and the largest difference between two probabilities."""
    context = multiprocessing.get_context("spawn")
    ends: dict[str, Connection] = {}
    processes = []
    for way in WAYS:
        ends[way], other = context.Pipe()
        processes.append(context.Process(target=work, args=(other, way, folder), daemon=True))
        processes[-1].start()
        other.close()  # else nobody would hear of its end
        assert ends[way].recv() == "ready"  # one after the other: they would slow each other down
    files = sorted(folder.glob("*.txt"))
    seconds: Rounds = {file.stem: {way: [] for way in WAYS} for file in files}
    difference = 0.0
    for _ in range(rounds):
        for file in files:
            answers = []
            for way, end in ends.items():
                end.send(file)
                taken, probabilities = end.recv()
                seconds[file.stem][way].append(taken)
                answers.append(np.array(probabilities))
            difference = max(difference, float(np.abs(answers[0] - answers[1]).max()))
    for end in ends.values():
        end.send(None)
    for process in processes:
        process.join()
    return seconds, difference


def peak_memory(folder: Path, count: int) -> dict[str, float]:
    """Peak resident MiB and seconds of one process that classifies so many sentences with the tiny model."""
    source, target = folder / "many.tmp.txt", folder / "many.csv"
    write_sentences(source, "train", count)
    started = time.perf_counter()
    command = [sys.executable, "-m", "sst2.predict", folder / "tiny", "--file", source, "--output", target]
    process = subprocess.Popen([*map(str, command)])
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, resident_peak_mib(process.pid))
        time.sleep(0.02)
    seconds = time.perf_counter() - started
    with open(target, encoding="utf-8") as lines:
        assert sum(1 for _ in lines) == count + 1
    source.unlink()
    target.unlink()
    return {"peak_resident_mib": round(peak, 1), "seconds_with_start": round(seconds, 2)}


def resident_peak_mib(pid: int) -> float:
    """The kernel's own record, so that no moment is missed; 0 when the process has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0.0
    found = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")]
    return found[0] / 2**10 if found else 0.0


def describe(
    seconds: Rounds, difference: float, arguments: argparse.Namespace, memory: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Medians over the rounds; ratios are of each round, so that a noisy moment strikes both sides."""
    from benchmarks.throughput import circumstances, ratio

    figures: dict[str, Any] = {
        "what": "sentences classified in a second, DistilBERT-base with random weights in float32, of SST-2's lengths; "
        f"pipeline with batch_size={PIPELINE_BATCH}, fed by a generator; and the peak memory of a stream through a "
        "tiny model",
        **circumstances(),
        "load_average": round(os.getloadavg()[0], 1),
        "rounds": arguments.rounds,
        "sentences_in_a_round": arguments.sentences,
        "largest_difference_of_probabilities": difference,
    }
    for split, of_way in seconds.items():
        speeds = {way: [arguments.sentences / taken for taken in rounds] for way, rounds in of_way.items()}
        figures[f"{split}_lengths"] = {
            "sentences_per_second": {way: statistics.median(rates) for way, rates in speeds.items()},
            "sst2.predict / pipeline": ratio(speeds["sst2.predict"], speeds["pipeline"]),
            "sentences_per_second_by_round": speeds,
        }
    figures["memory"] = memory
    peaks = [entry["peak_resident_mib"] for entry in memory.values()]
    figures["memory"]["last / first"] = {"peak_resident_mib": round(peaks[-1] / peaks[0], 4)}
    return figures


if __name__ == "__main__":
    main()
