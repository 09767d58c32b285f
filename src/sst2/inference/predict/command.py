"""Classify sentences with a trained model.

    sst2 predict runs/NAME "a gripping, funny film"
    sst2 predict runs/NAME --file reviews.csv --output answers.csv
    zcat reviews.txt.gz | sst2 predict NAME_ON_THE_HUB --format jsonl
    sst2 predict runs/NAME "a gripping, funny film" --explain --html why.html

Any number of sentences passes through in chunks, in memory that does not grow: each chunk is tokenized, sorted by
length, classified in packed batches and answered in its order. Exit code 0; 2 for a mistake, in one line; 141 where
the reader of the output has gone, as of other programs.
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from sst2.config.class_names import have_positive, in_words, number_of_class, order_of_classes
from sst2.config.command_line import OneLineParser
from sst2.config.flag_groups import LABEL_NAMES
from sst2.evaluation.predictions import log_probabilities
from sst2.inference.model_argument import MODEL_HELP, model_name
from sst2.inference.predict.formatters import Answer, answer_writer
from sst2.inference.predict.highlight import PAGE_END, page_row, page_start
from sst2.inference.predict.inputs import chunks, count_sentences, sentences_of
from sst2.inference.predict.writers import NewFile, StandardOutput, Writer
from sst2.utils.console import Progress, flush, reserve_standard_descriptors
from sst2.utils.errors import UserError, print_line
from sst2.utils.text_files import FILE_SUFFIXES, format_of, problem_of

if TYPE_CHECKING:  # they import torch, which is not needed to answer a mistake
    from sst2.config.flag_groups import Precision
    from sst2.inference.predict.classifier import Classifier

PROGRAM = "sst2 predict"
CHUNK, CHUNK_EXPLAINED = 4096, 32  # sentences: enough to find equally long ones; few where each takes a second
SUFFIX_FORMATS = {"": "text", ".txt": "text", ".csv": "csv", ".jsonl": "jsonl"}


def command_parser() -> OneLineParser:
    """The command's flags."""
    parser = OneLineParser(prog=PROGRAM, description="Classify sentences with a trained model.")
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "sentences",
        nargs="*",
        metavar="SENTENCE",
        help="default: those of --file, else of standard input, one a line",
    )
    parser.add_argument(
        "--file",
        metavar="FILE",
        help="txt with a sentence a line, or csv, tsv, json lines or parquet with a column of sentences; or compressed",
    )
    parser.add_argument("--sentence_column", metavar="NAME", help="that column; default: sentence")
    parser.add_argument("--output", metavar="FILE", help="where to write; default: standard output")
    parser.add_argument(
        "--format", choices=["text", "csv", "jsonl"], help="default: as --output's suffix says; text without one"
    )
    parser.add_argument(
        "--max_length", type=int, metavar="TOKENS", help="longer sentences are cut; default: as in training"
    )
    parser.add_argument("--mixed_precision", choices=["auto", "no", "bf16"], default="no", help="no is exact")
    parser.add_argument("--top_k", type=int, metavar="K", help="the K likeliest classes, with their probabilities")
    parser.add_argument("--explain", action="store_true", help="what each word did for the prediction (needs captum)")
    parser.add_argument("--explain_class", metavar="NAME", help="with --explain: what each word did for this class")
    parser.add_argument("--html", metavar="FILE", help="with --explain: a page of the sentences in color")
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Raises UserError: flags that cannot work."""
    arguments = command_parser().parse_intermixed_args(argv)
    if arguments.file is not None:
        if arguments.sentences:
            raise UserError("--file and sentences on the command line both name the input: give one")
        arguments.file = os.path.expanduser(arguments.file)
        if problem := problem_of(arguments.file, (".txt", *FILE_SUFFIXES), read_once=True):
            raise UserError(f"--file {arguments.file} {problem}")
    if arguments.sentence_column is not None:
        if arguments.file is None:
            raise UserError("--sentence_column needs --file beside it: --file /dev/stdin reads a table from a pipe")
        if format_of(arguments.file) == ".txt":
            raise UserError(f"--sentence_column names no column of --file {arguments.file}: a txt is a sentence a line")
    _check_what_is_told(arguments)
    places = [Path(file).expanduser().resolve() for file in (arguments.html, arguments.output) if file is not None]
    if len(places) > len(set(places)):
        raise UserError(f"--html and --output both name {arguments.html}: give two files")
    if arguments.format is None:
        suffix = Path(arguments.output or "").suffix
        if suffix not in SUFFIX_FORMATS:
            raise UserError(f"--output {arguments.output}: no format has the suffix {suffix}: give --format as well")
        arguments.format = SUFFIX_FORMATS[suffix]
    return arguments


def _check_what_is_told(arguments: argparse.Namespace) -> None:
    for flag in ("html", "explain_class"):
        if getattr(arguments, flag) is not None and not arguments.explain:
            raise UserError(f"--{flag} needs --explain beside it")
    if arguments.top_k is not None and arguments.top_k < 1:
        raise UserError(f"--top_k {arguments.top_k} cannot work: give at least 1")
    if arguments.explain and importlib.util.find_spec("captum") is None:
        raise UserError("--explain needs captum: pip install captum")


def main(argv: Sequence[str]) -> None:
    """Raises UserError: flags, model or sentences that cannot be used."""
    arguments = parse(argv)
    name = model_name(arguments.model)
    if arguments.output:
        reserve_standard_descriptors()
    by_hand = not arguments.sentences and not arguments.file and os.isatty(0)
    if by_hand:
        print("one sentence a line; Ctrl-D ends", file=sys.stderr)
    with ExitStack() as stack:
        output: Writer = NewFile("--output", arguments.output) if arguments.output else StandardOutput()
        stack.enter_context(output)
        page = stack.enter_context(NewFile("--html", arguments.html)) if arguments.html else None
        size = 1 if by_hand else CHUNK_EXPLAINED if arguments.explain else CHUNK
        parts = chunks(sentences_of(arguments.sentences, arguments.file, arguments.sentence_column), size)
        first = next(parts)  # a mistake in it is answered before the seconds that the model takes
        classifier = load(name, arguments.max_length, arguments.mixed_precision)
        class_explained = check_classes(arguments, classifier.labels)
        is_positive_told = arguments.format != "text" and arguments.top_k is None and len(classifier.labels) == 2
        if is_positive_told and not have_positive(classifier.labels):
            told = f"no class of the model is named POSITIVE: probability_positive is that of {classifier.labels[1]}"
            print_line(f"{PROGRAM}: {told}")
        total = count_sentences(arguments.file, arguments.sentence_column) if arguments.file else None
        hidden = by_hand or bool(arguments.sentences)
        bar = stack.enter_context(
            Progress(total=total, desc="classifying", unit=" sentences", unit_scale=True, hidden=hidden)
        )
        answers = answer(chain([first], parts), classifier, arguments.explain, bar.update, class_explained)
        write(answers, classifier.labels, arguments, output, page)
    if classifier.num_cut:
        remedy = f": --max_length takes up to {classifier.limit}" if classifier.max_length < classifier.limit else ""
        cut = "1 sentence has" if classifier.num_cut == 1 else f"{classifier.num_cut:,} sentences have"
        print_line(f"{PROGRAM}: {cut} more than {classifier.max_length} tokens, the rest is cut off{remedy}")


def check_classes(arguments: argparse.Namespace, labels: tuple[str, ...]) -> int | None:
    """Check the flags against the model's classes.

    Returns:
        The number of the class of `--explain_class`; None for the predicted one.

    Raises:
        UserError: the model has no such class, or fewer than `--top_k`.
    """
    if arguments.top_k is not None and arguments.top_k > len(labels):
        raise UserError(f"--top_k {arguments.top_k} cannot work: the model has {len(labels)} classes")
    if arguments.explain_class is None:
        return None
    number = number_of_class(labels, arguments.explain_class)
    if number is None:
        raise UserError(f"--explain_class {arguments.explain_class}: the model has the classes {in_words(labels)}")
    return number


@contextmanager
def _prints_aside() -> Iterator[None]:
    """Have what libraries print, such as tokenizers of a vocabulary with gaps, go to stderr: stdout is for answers."""
    flush()
    try:
        answers = os.dup(1)
    except OSError:  # closed: there is nobody to disturb
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(answers, 1)
        os.close(answers)


def load(name: str, max_length: int | None, mixed_precision: "Precision") -> "Classifier":
    """The classifier, on the device that a run would take.

    Raises:
        UserError: it is no classifier of classes, or cannot be had, or the device cannot do the precision.
    """
    import torch

    from sst2.distributed.cpu import keep_memory, limit_threads
    from sst2.distributed.devices import computes_on_cpu
    from sst2.distributed.precision import choose_precision
    from sst2.inference.predict.classifier import Classifier
    from sst2.models.loading import load_classifier
    from sst2.utils.logs import start_logging

    start_logging(is_main=True)
    device = torch.device("cpu") if computes_on_cpu() else torch.accelerator.current_accelerator()
    assert device is not None
    if device.type == "cpu":
        keep_memory()
    precision, _ = choose_precision(mixed_precision)
    with _prints_aside():
        model, tokenizer = load_classifier("MODEL", name)
        if device.type == "cpu":
            limit_threads(model)
        return Classifier(model, tokenizer, device, max_length, precision)


def answer(
    parts: Iterable[list[str]],
    classifier: "Classifier",
    explained: bool,
    done: Callable[[int], object],
    class_explained: int | None = None,
) -> Iterator[list[Answer]]:
    """Answers to some sentences at a time, in their order; `done` is called with numbers of sentences that are.

    What each word did is of the class `class_explained`, or of the predicted one if None.
    """
    if explained:
        from sst2.inference.predict.explain import Explainer

        explainer = Explainer(classifier)
    for sentences in parts:
        logits = classifier.logits(sentences, (lambda _: None) if explained else done)
        probabilities, predicted = np.exp(log_probabilities(logits)), logits.argmax(axis=1).tolist()
        of_each = probabilities.tolist()
        answers = []
        for row, sentence in enumerate(sentences):
            words = None
            if explained:
                target = predicted[row] if class_explained is None else class_explained
                words = explainer.explain(sentence, target).words
                done(1)
            answers.append(Answer(sentence, of_each[row], predicted[row], words))
        yield answers


def write(
    answers: Iterator[list[Answer]],
    labels: tuple[str, ...],
    arguments: argparse.Namespace,
    output: Writer,
    page: NewFile | None,
) -> None:
    """Write answers as they come, and the page where there is to be one.

    Raises:
        UserError: there is no room.
    """
    from sst2.utils.console import wants_color

    first = next(answers)  # before anything is written: a model that gives none leaves nothing
    in_color = not arguments.output and wants_color(1)
    write_answer = answer_writer(arguments.format, output, labels, arguments.explain, in_color, arguments.top_k)
    if page:
        what = "Sentiment" if order_of_classes(labels, LABEL_NAMES) else "Classes"
        page.write(page_start(f"{what} by {arguments.model}", arguments.explain_class))
    for some in chain([first], answers):
        with tqdm.external_write_mode():  # the bar makes room for lines on the same terminal
            for one in some:
                write_answer(one)
                if page and one.words is not None:
                    page.write(page_row(labels[one.predicted], one.probability, one.sentence, one.words))
            output.flush()
    if page:
        page.write(PAGE_END)
