"""Formatters of predictions: as text for a person, as csv, or as JSON lines."""

import csv
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sst2.config.class_names import positive_class
from sst2.data.csv_cells import answers_header, probability_columns, to_cell
from sst2.inference.predict.highlight import Word, in_color, in_plain, printable
from sst2.inference.predict.writers import Writer


class Answer(NamedTuple):
    """What a sentence was taken for.

    Attributes:
        probabilities: of the classes, in the order of their numbers.
        predicted: number of the likeliest class.
        words: what each word did for the prediction, in logits; None where nobody asked.
    """

    sentence: str
    probabilities: Sequence[float]
    predicted: int
    words: list[Word] | None = None

    @property
    def probability(self) -> float:
        """Of the prediction."""
        return self.probabilities[self.predicted]

    def likeliest(self, count: int) -> list[int]:
        """Numbers of so many classes, the prediction first."""
        numbers = range(len(self.probabilities))
        return sorted(numbers, key=lambda number: (number != self.predicted, -self.probabilities[number]))[:count]


def answer_writer(
    format: str, writer: Writer, labels: tuple[str, ...], explained: bool, color: bool, top_k: int | None = None
) -> Callable[[Answer], object]:
    """What writes an answer as `text`, `csv` or `jsonl`. Answers that say what each word did have one column more.

    Of two classes, csv and JSON lines have the probability of the positive one, of more that of each; with `top_k`, all
    formats have the likeliest classes, so many of them.
    """
    reported = range(len(labels)) if len(labels) > 2 else [positive_class(labels)]
    if format == "csv":
        rows = csv.writer(writer)
        rows.writerow(answers_header(labels, top_k, explained))
        return lambda answer: rows.writerow(_csv_row(answer, labels, reported, top_k))
    if format == "jsonl":
        columns = dict(zip(probability_columns(labels), reported, strict=True))
        return lambda answer: writer.write(_json_line(answer, labels, columns, top_k))
    width = max(map(len, map(printable, labels)))
    mark = in_color if color else in_plain
    return lambda answer: writer.write(_text_line(answer, labels, width, mark, top_k or 1))


def _text_line(
    answer: Answer, labels: tuple[str, ...], width: int, mark: Callable[[str, list[Word]], str], count: int
) -> str:
    """Label, probability of that label, sentence. Characters that would move a terminal's cursor are spelled out."""
    sentence = printable(answer.sentence) if answer.words is None else mark(answer.sentence, answer.words)
    likeliest = (
        f"{printable(labels[number]):{width}}  {answer.probabilities[number]:.4f}" for number in answer.likeliest(count)
    )
    return f"{'  '.join(likeliest)}  {sentence}\n"


def _csv_row(answer: Answer, labels: tuple[str, ...], reported: Sequence[int], top_k: int | None) -> list[str]:
    """As in a run's predictions.csv, safe for spreadsheets; with explanations, they are a column of JSON."""
    if top_k is None:
        values = [f"{answer.probabilities[number]:.6f}" for number in reported]
    else:
        likeliest = (
            (to_cell(labels[number]), f"{answer.probabilities[number]:.6f}") for number in answer.likeliest(top_k)
        )
        values = [value for pair in likeliest for value in pair]
    row = [to_cell(labels[answer.predicted]), *values, to_cell(answer.sentence)]
    return row if answer.words is None else [*row, json.dumps(_pairs(answer), ensure_ascii=False)]


def _json_line(answer: Answer, labels: tuple[str, ...], columns: dict[str, int], top_k: int | None) -> str:
    values: dict[str, object] = {"prediction": labels[answer.predicted]}
    if top_k is None:
        values |= {name: round(answer.probabilities[number], 6) for name, number in columns.items()}
    else:
        likeliest = answer.likeliest(top_k)
        values["top_k"] = [[labels[number], round(answer.probabilities[number], 6)] for number in likeliest]
    values["sentence"] = answer.sentence
    if answer.words is not None:
        values["attributions"] = _pairs(answer)
    return json.dumps(values, ensure_ascii=False) + "\n"


def _pairs(answer: Answer) -> list[tuple[str, float]]:
    return [(answer.sentence[word.start : word.stop], round(word.value, 6)) for word in answer.words or []]
