"""Formatters of predictions: as text for a person, as csv, or as JSON lines."""

import csv
import json
from collections.abc import Callable
from typing import NamedTuple

from sst2.data.csv_cells import ANSWERS, ANSWERS_EXPLAINED, to_cell
from sst2.inference.predict.highlight import Word, in_color, in_plain, printable
from sst2.inference.predict.writers import Writer


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


def answer_writer(
    format: str, writer: Writer, labels: tuple[str, ...], explained: bool, color: bool
) -> Callable[[Answer], object]:
    """What writes an answer as `text`, `csv` or `jsonl`. Answers that say what each word did have one column more."""
    if format == "csv":
        rows = csv.writer(writer)
        rows.writerow(ANSWERS_EXPLAINED if explained else ANSWERS)
        return lambda answer: rows.writerow(_csv_row(answer))
    if format == "jsonl":
        return lambda answer: writer.write(_json_line(answer))
    width = max(map(len, map(printable, labels)))
    mark = in_color if color else in_plain
    return lambda answer: writer.write(_text_line(answer, width, mark))


def _text_line(answer: Answer, width: int, mark: Callable[[str, list[Word]], str]) -> str:
    """Label, probability of that label, sentence. Characters that would move a terminal's cursor are spelled out."""
    sentence = printable(answer.sentence) if answer.words is None else mark(answer.sentence, answer.words)
    return f"{printable(answer.prediction):{width}}  {answer.probability:.4f}  {sentence}\n"


def _csv_row(answer: Answer) -> list[str]:
    """As in a run's predictions.csv, safe for spreadsheets; with explanations, they are a column of JSON."""
    row = [to_cell(answer.prediction), f"{answer.probability_positive:.6f}", to_cell(answer.sentence)]
    return row if answer.words is None else [*row, json.dumps(_pairs(answer), ensure_ascii=False)]


def _json_line(answer: Answer) -> str:
    values: dict[str, object] = {
        "prediction": answer.prediction,
        "probability_positive": round(answer.probability_positive, 6),
        "sentence": answer.sentence,
    }
    if answer.words is not None:
        values["attributions"] = _pairs(answer)
    return json.dumps(values, ensure_ascii=False) + "\n"


def _pairs(answer: Answer) -> list[tuple[str, float]]:
    return [(answer.sentence[word.start : word.stop], round(word.value, 6)) for word in answer.words or []]
