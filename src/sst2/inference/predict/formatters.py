"""Formatters of predictions: as text for a person, as csv, or as JSON lines."""

import csv
import json
from typing import NamedTuple, Protocol

from sst2.data.csv_cells import ANSWERS, ANSWERS_EXPLAINED, to_cell
from sst2.inference.predict.highlight import Word, in_colour, in_plain, printable
from sst2.inference.predict.writers import Sink


class Answer(NamedTuple):
    """What a sentence was taken for.

    Attributes:
        prediction: name of the likelier class.
        probability: of that class.
        probability_positive: of the positive class.
        words: what each word did for the prediction, in logits; None where nobody asked.
    """

    sentence: str
    prediction: str
    probability: float
    probability_positive: float
    words: list[Word] | None = None


class Lines(Protocol):
    """Writes answers in one of the formats."""

    def write(self, answer: Answer) -> None:
        """Write one answer."""


def lines_of(format: str, sink: Sink, labels: tuple[str, ...], explained: bool, colour: bool) -> Lines:
    """What writes answers in the format of this name.

    Args:
        format: `text`, `csv` or `jsonl`.
        sink: takes the text.
        labels: names of the classes.
        explained: whether the answers say what each word did.
        colour: whether text may be coloured.
    """
    if format == "csv":
        return CsvLines(sink, explained)
    return JsonLines(sink) if format == "jsonl" else TextLines(sink, labels, colour)


class TextLines:
    """Label, probability of that label, sentence. Characters that would move a terminal's cursor are spelled out."""

    def __init__(self, sink: Sink, labels: tuple[str, ...], colour: bool) -> None:
        self._sink, self._width, self._colour = sink, max(map(len, map(printable, labels))), colour

    def write(self, answer: Answer) -> None:
        """Write one answer."""
        sentence = printable(answer.sentence)
        if answer.words is not None:
            sentence = (in_colour if self._colour else in_plain)(answer.sentence, answer.words)
        self._sink.write(f"{printable(answer.prediction):{self._width}}  {answer.probability:.4f}  {sentence}\n")


class CsvLines:
    """As in a run's predictions.csv, safe for spreadsheets; with explanations, they are a column of JSON."""

    def __init__(self, sink: Sink, explained: bool) -> None:
        self._writer = csv.writer(sink)
        self._writer.writerow(ANSWERS_EXPLAINED if explained else ANSWERS)

    def write(self, answer: Answer) -> None:
        """Write one answer."""
        row = [to_cell(answer.prediction), f"{answer.probability_positive:.6f}", to_cell(answer.sentence)]
        if answer.words is not None:
            row.append(json.dumps(_pairs(answer), ensure_ascii=False))
        self._writer.writerow(row)


class JsonLines:
    """The same as an object a line."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def write(self, answer: Answer) -> None:
        """Write one answer."""
        values: dict[str, object] = {
            "prediction": answer.prediction,
            "probability_positive": round(answer.probability_positive, 6),
            "sentence": answer.sentence,
        }
        if answer.words is not None:
            values["attributions"] = _pairs(answer)
        self._sink.write(json.dumps(values, ensure_ascii=False) + "\n")


def _pairs(answer: Answer) -> list[tuple[str, float]]:
    return [(answer.sentence[word.start : word.stop], round(word.value, 6)) for word in answer.words or []]
