"""How fast `sst2 predict` classifies, against transformers' pipeline, and how much memory a stream takes.

    python benchmarks/predict.py --rounds 5 --output benchmarks/results/predict.json

Speed: models of three sizes with random weights, in float32, on sentences of the lengths of SST-2's training and
validation sentences (benchmarks/data/sst2_lengths.json). Both ways are processes of their own with their models at
hand, and take turns on the same sentences, others in each round: `pipeline("sentiment-analysis", batch_size=32)`,
which a generator feeds line by line, and this command from reading to writing. Their answers are compared. The tiny
model's sentences are slices of a million.

Memory: the command as users start it, alone, with the tiny model, on ten thousand sentences and on the whole million.
The figure is the largest resident set of the process (VmHWM, Linux). All takes about eight minutes on two cores.
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
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # for benchmarks.throughput

LENGTHS = Path(__file__).parent / "data" / "sst2_lengths.json"
PIPELINE_BATCH, SEED = 32, 0
WARM_UP = 128  # sentences
Classify = Callable[[Path], tuple[float, list[float]]]  # a file's sentences, one a line; to seconds and probabilities
Rounds = dict[str, dict[str, list[float]]]  # sentences per second in each round, by workload and way


class Workload(NamedTuple):
    """What both ways classify.

    Attributes:
        model: its folder.
        split: whose lengths the sentences have.
        factor: how many times `--sentences` there are in a round: more for smaller models.
    """

    model: str
    split: str
    factor: int


MILLION = "tiny_train_lengths_of_a_million"
WORKLOADS = {
    "base_train_lengths": Workload("base", "train", 1),
    "base_validation_lengths": Workload("base", "validation", 1),
    "minilm_train_lengths": Workload("minilm", "train", 2),
    MILLION: Workload("tiny", "train", 20),
}


def main() -> None:
    """Measure, print the figures, and write them to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sentences", type=int, default=1000, help="in a round, for DistilBERT-base")
    parser.add_argument(
        "--memory_sentences", type=int, nargs=2, default=[10_000, 1_000_000], help="to measure the memory with"
    )
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    if arguments.memory_sentences[1] < arguments.rounds * arguments.sentences * WORKLOADS[MILLION].factor:
        parser.error("--memory_sentences are too few for the rounds, which take slices of them")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_models(folder)
        few, many = arguments.memory_sentences
        memory = {f"{count} sentences": peak_memory(folder, count) for count in (few, many)}
        speeds, difference = measure(folder, arguments.rounds, arguments.sentences, many)
    figures = describe(speeds, difference, arguments, memory)
    print(json.dumps(figures, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def write_models(folder: Path) -> None:
    """With random weights: DistilBERT-base, one of MiniLM's shape, and the sample's, whose tokenizer all have."""
    import torch
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    from sst2.data.sample import sample_config, sample_tokenizer

    tokenizer = sample_tokenizer()
    configs = {
        "base": DistilBertConfig(),
        "minilm": DistilBertConfig(vocab_size=len(tokenizer), dim=384, hidden_dim=1536, n_layers=6, n_heads=12),
        "tiny": sample_config(len(tokenizer)),
    }
    for name, config in configs.items():
        torch.manual_seed(SEED)
        config.update({"id2label": {0: "NEGATIVE", 1: "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}})
        DistilBertForSequenceClassification(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def write_sentences(file: Path, split: str, count: int) -> None:
    """One a line, of words that are one token each, in the mix of lengths of a split."""
    from sst2.data.sample import sample_sentences, sample_tokenizer

    tokenizer = sample_tokenizer()
    words = sorted({word for sentence in sample_sentences("train")[0] for word in sentence.split() if word.isalpha()})
    words = [word for word in words if len(tokenizer.tokenize(word)) == 1]
    histogram = json.loads(LENGTHS.read_text(encoding="utf-8"))[split]
    lengths, counts = np.array([*map(int, histogram)]), np.array([*histogram.values()])
    generator = np.random.default_rng(SEED)
    with file.open("w", encoding="utf-8") as stream:
        for length in generator.choice(lengths, size=count, p=counts / counts.sum()):
            drawn = generator.integers(len(words), size=max(1, length - 2))  # without [CLS] and [SEP]
            stream.write(" ".join(words[number] for number in drawn) + "\n")


def by_pipeline(model: Path) -> Classify:
    """As it is usually done."""
    import torch
    from transformers import pipeline

    device = 0 if torch.cuda.is_available() else "cpu"
    make: Any = pipeline  # whose many overloads take no device of two types
    classify = make("sentiment-analysis", str(model), batch_size=PIPELINE_BATCH, device=device)

    def sentences(file: Path) -> Iterator[str]:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                yield line.rstrip("\n")

    def run(file: Path) -> tuple[float, list[float]]:
        started = time.perf_counter()
        answers = [*classify(sentences(file), truncation=True)]
        seconds = time.perf_counter() - started
        return seconds, [a["score"] if a["label"] == "POSITIVE" else 1 - a["score"] for a in answers]

    return run


def by_this_command(model: Path) -> Classify:
    """What the command does once its model is there: read, classify, write."""
    from sst2.inference.predict import command
    from sst2.inference.predict.inputs import chunks, sentences_of
    from sst2.inference.predict.writers import NewFile

    classifier = command.load(str(model), None, "no")

    def run(file: Path) -> tuple[float, list[float]]:
        target = file.with_suffix(".jsonl")
        started = time.perf_counter()
        flags = command.parse([str(model), "--file", str(file), "--output", str(target)])
        parts = chunks(sentences_of([], str(file)), command.CHUNK)
        with NewFile("--output", str(target)) as output:
            answers = command.answer(parts, classifier, explained=False, done=lambda _: None)
            command.write(answers, classifier.labels, flags, output, page=None)
        seconds = time.perf_counter() - started
        lines = target.read_text(encoding="utf-8").splitlines()
        target.unlink()
        return seconds, [json.loads(line)["probability_positive"] for line in lines]

    return run


WAYS: dict[str, Callable[[Path], Classify]] = {"pipeline": by_pipeline, "sst2.predict": by_this_command}


def work(connection: Connection, way: str, folder: Path, warm_up: Path) -> None:
    """A process of its own: classifies the files that it is told with the models that it is told."""
    classify = {model: WAYS[way](folder / model) for model in sorted({load.model for load in WORKLOADS.values()})}
    for run in classify.values():
        run(warm_up)
    connection.send("ready")
    while told := connection.recv():
        model, file = told
        connection.send(classify[model](file))


def measure(folder: Path, rounds: int, sentences: int, many: int) -> tuple[Rounds, float]:
    """Have both ways take turns.

    Args:
        folder: of the models.
        rounds: in which both take their turn.
        sentences: in a round, times the workload's factor.
        many: sentences of which the tiny model's are slices.

    Returns:
        Their speeds, and the largest difference between two probabilities.
    """
    warm_up = folder / "warm_up.txt"
    write_sentences(warm_up, "train", WARM_UP)
    context = multiprocessing.get_context("spawn")
    ends: dict[str, Connection] = {}
    processes = []
    for way in WAYS:
        ends[way], other = context.Pipe()
        processes.append(context.Process(target=work, args=(other, way, folder, warm_up), daemon=True))
        processes[-1].start()
        other.close()  # else nobody would hear of its end
        assert ends[way].recv() == "ready"  # one after the other: they would slow each other down
    speeds: Rounds = {name: {way: [] for way in WAYS} for name in WORKLOADS}
    difference = 0.0
    for name, load in WORKLOADS.items():
        count, source = sentences * load.factor, folder / f"{name}.txt"
        write_sentences(source, load.split, many if name == MILLION else rounds * count)
        for number, file in enumerate(slices(source, rounds, count), start=1):
            answers = []
            for way, end in ends.items():
                end.send((load.model, file))
                taken, probabilities = end.recv()
                speeds[name][way].append(count / taken)
                answers.append(np.array(probabilities))
            difference = max(difference, float(np.abs(answers[0] - answers[1]).max()))
            done = ", ".join(f"{way} {rates[-1]:.1f} sentences/s" for way, rates in speeds[name].items())
            say(f"{name}, round {number} of {rounds}: {done}")
    for end in ends.values():
        end.send(None)
    for process in processes:
        process.join()
    return speeds, difference


def slices(source: Path, most: int, count: int) -> Iterator[Path]:
    """Files of so many lines each, one after another out of a longer one."""
    part = source.with_name("slice.txt")
    with source.open(encoding="utf-8") as lines:
        for _ in range(most):
            part.write_text("".join(islice(lines, count)), encoding="utf-8")
            yield part


def peak_memory(folder: Path, count: int) -> dict[str, float]:
    """Peak resident MiB and seconds of one process that classifies so many sentences with the tiny model."""
    source, target = folder / "many.txt", folder / "many.csv"
    write_sentences(source, WORKLOADS[MILLION].split, count)
    started = time.perf_counter()
    command = [sys.executable, "-m", "sst2.predict", folder / "tiny", "--file", source, "--output", target]
    process = subprocess.Popen([*map(str, command)])
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, resident_peak_mib(process.pid))
        time.sleep(0.02)
    seconds = time.perf_counter() - started
    with target.open(encoding="utf-8") as lines:
        assert sum(1 for _ in lines) == count + 1
    source.unlink()
    target.unlink()
    say(f"{count} sentences in one process: {seconds:.1f} s, {peak:.0f} MiB")
    return {"sentences": count, "peak_resident_mib": round(peak, 1), "seconds_with_start": round(seconds, 2)}


def resident_peak_mib(pid: int) -> float:
    """The kernel's own record, so that no moment is missed; 0 when the process has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0.0
    found = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")]
    return found[0] / 2**10 if found else 0.0


def describe(
    speeds: Rounds, difference: float, arguments: argparse.Namespace, memory: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Medians over the rounds; ratios are of each round, so that a noisy moment strikes both sides."""
    from benchmarks.throughput import circumstances, ratio
    from sst2.inference.predict.linear import onednn_gain

    figures: dict[str, Any] = {
        "what": "sentences classified in a second, models with random weights in float32, of SST-2's lengths; "
        f"pipeline with batch_size={PIPELINE_BATCH}, fed by a generator; and the peak memory of a stream through the "
        "tiny model",
        **circumstances(),
        "load_average": round(os.getloadavg()[0], 1),
        "onednn_gain": round(onednn_gain(), 2),  # over MKL, which the pipeline multiplies with
        "rounds": arguments.rounds,
        "largest_difference_of_probabilities": difference,
    }
    for name, of_way in speeds.items():
        figures[name] = {
            "sentences_in_a_round": arguments.sentences * WORKLOADS[name].factor,
            "sentences_per_second": {way: statistics.median(rates) for way, rates in of_way.items()},
            "sst2.predict / pipeline": ratio(of_way["sst2.predict"], of_way["pipeline"]),
            "sentences_per_second_by_round": of_way,
        }
    few, many = memory.values()
    more, seconds = many["sentences"] - few["sentences"], many["seconds_with_start"] - few["seconds_with_start"]
    figures["memory"] = {
        **memory,
        "last / first": {"peak_resident_mib": round(many["peak_resident_mib"] / few["peak_resident_mib"], 4)},
        "sentences_per_second_after_the_first": round(more / seconds, 1),
    }
    return figures


def say(text: str) -> None:
    """Print to standard error, at once."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
