"""Files of every format are read alike, and every mistake in them is named by file and row."""

import json
from pathlib import Path
from typing import Any

import datasets
import pandas
import pyarrow.parquet
import pytest

from sst2.data.checked_rows import read_dataset, read_file
from sst2.data.file_formats import Columns
from sst2.utils.errors import UserError
from tests.support.datasets import content_of

SENTENCES = ["a gripping , funny film ", 'he said " no " , and left', "null", "naïve — and moving"]
LABELS = [1, 0, 0, 1]


def write(folder: Path, suffix: str, columns: dict[str, list[Any]]) -> str:
    file = folder / f"data{suffix}"
    frame = pandas.DataFrame(columns)
    if suffix == ".tsv":
        rows = ["\t".join(columns), *("\t".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
        file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    elif suffix == ".csv":
        frame.to_csv(file, index=False)
    elif suffix == ".parquet":
        frame.to_parquet(file)
    else:
        file.write_text("\n".join(json.dumps(row) for row in frame.to_dict("records")) + "\n", encoding="utf-8")
    return str(file)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
@pytest.mark.parametrize("names", [False, True])
def test_all_formats_give_the_same(suffix: str, names: bool, tmp_path: Path) -> None:
    labels = [("negative", "POSITIVE")[label] for label in LABELS] if names else LABELS
    file = write(tmp_path, suffix, {"idx": [1, 2, 3, 4], "sentence": SENTENCES, "label": labels})
    assert content_of(read_file(file, labels_required=True)) == (SENTENCES, LABELS)


def test_byte_order_mark_and_blank_lines_are_no_matter(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("\ufeffsentence,label\n\ngood,1\n\n".encode())
    assert content_of(read_file(str(tmp_path / "a.csv"), True)) == (["good"], [1])


def test_sentences_may_span_lines_in_csv_and_errors_count_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('sentence,label\n"good\nfilm",1\n"bad\nfilm",2\n')
    with pytest.raises(UserError, match=r"a\.csv line 5: label '2' is unknown"):
        read_file(str(tmp_path / "a.csv"), True)


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        (".csv", b"text,label\ngood,1\n", "has no column 'sentence', only 'text', 'label'"),
        (".csv", b"sentence\ngood\n", "has no column 'label'"),
        (".csv", b"sentence,label\ngood,1\nbad,maybe\n", "line 3: label 'maybe' is unknown"),
        (".csv", b"sentence,label\ngood,1\n,0\n", "line 3: the sentence is empty"),
        (".csv", b"sentence,label\n   ,0\n", "line 2: the sentence is empty: fix"),
        (
            ".csv",
            b"sentence,label\n,0\nfine,1\n ,0\n,1\n",
            "line 2: the sentence is empty, and so are 2 more below: fix",
        ),
        (".csv", b"sentence,label\ncaf\xe9,1\n", "line 2: the sentence is not UTF-8"),
        (".csv", b"sentence,label\ngood, really,1\n", "line 2 has 3 fields where the header has 2"),
        (".csv", b'sentence,label\n"good"film,1\n', "line 2 is not valid csv"),
        (".csv", b"sentence,label\ngood,-1\n", "line 2: label -1 stands for none"),
        (".csv", b"sentence,label\n", "holds no sentences"),
        (".csv", b"", "is empty"),
        (".tsv", b"sentence\tlabel\ngood\n", "line 2 has 1 fields where the header has 2"),
        (".tsv", b"sentence\tlabel\ngood\t\n", "line 2: there is no label"),
        (".jsonl", b'{"sentence": "good", "label": 1}\n{"sentence"\n', "line 2 is not JSON"),
        (".jsonl", b'["good", 1]\n', "line 1 is not a JSON object"),
        (".jsonl", b'{"sentence": null, "label": 1}\n', "line 1: the sentence is None, not text"),
        (".jsonl", b'{"sentence": "good", "label": 0.5}\n', "line 1: label 0.5 is unknown"),
        (".jsonl", b'{"sentence": "good", "label": []}\n', r"line 1: label \[\] is unknown"),
        (".jsonl", b'{"sentence": "good"}\n', "line 1 has no column 'label'"),
        (".parquet", b"no parquet", "cannot be read as parquet"),
    ],
)
def test_mistakes_are_named_by_file_and_row(suffix: str, content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / f"bad{suffix}"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        read_file(str(file), labels_required=True)
    assert str(file) in str(raised.value)


def test_parquet_rows_are_counted_from_one(tmp_path: Path) -> None:
    file = write(tmp_path, ".parquet", {"sentence": ["good", "bad"], "label": [1, 7]})
    with pytest.raises(UserError, match=r"data\.parquet row 2: label 7 is unknown"):
        read_file(file, labels_required=True)


@pytest.mark.parametrize("label", ["-1", ""])
def test_test_data_needs_no_labels(label: str, tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text(f"sentence\tlabel\ngood\t{label}\n")
    assert read_file(str(tmp_path / "t.tsv"), labels_required=False)["label"][:] == [-1]
    (tmp_path / "u.tsv").write_text("sentence\ngood\n")
    assert read_file(str(tmp_path / "u.tsv"), labels_required=False)["label"][:] == [-1]


def test_the_names_of_class_labels_decide_not_their_numbers() -> None:
    swapped = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["positive", "negative"])}
    )
    dataset = datasets.Dataset.from_dict({"sentence": ["good", "bad", "?"], "label": [0, 1, -1]}, features=swapped)
    assert read_dataset(dataset, "name test", labels_required=False)["label"][:] == [1, 0, -1]
    grammar = datasets.ClassLabel(names=["unacceptable", "acceptable"])
    with pytest.raises(UserError, match="row 1: label 'unacceptable' is unknown"):
        read_dataset(dataset.cast_column("label", grammar), "glue cola", labels_required=True)


def test_data_sets_with_class_labels_are_read() -> None:
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
    )
    dataset = datasets.Dataset.from_dict({"sentence": SENTENCES, "label": LABELS}, features=features)
    assert content_of(read_dataset(dataset, "name train", labels_required=True)) == (SENTENCES, LABELS)
    with pytest.raises(UserError, match="name train has no column 'sentence'"):
        read_dataset(dataset.rename_column("sentence", "text"), "name train", labels_required=True)


@pytest.mark.parametrize("format", [None, "numpy", "pandas", "torch", "arrow"])
def test_a_data_set_is_read_whatever_format_it_was_saved_with(format: str | None, tmp_path: Path) -> None:
    columns = {"sentence": SENTENCES, "label": LABELS}
    datasets.Dataset.from_dict(columns).with_format(format).save_to_disk(str(tmp_path / "saved"))
    dataset = read_dataset(datasets.load_from_disk(str(tmp_path / "saved")), "saved train", labels_required=True)
    assert content_of(dataset) == (SENTENCES, LABELS)
    assert type(dataset["sentence"][:2]) is list  # as tokenizers take them
    (file,) = (tmp_path / "saved").glob("*.arrow")
    file.write_bytes(b"")  # somebody writes it anew while training goes on
    assert content_of(dataset) == (SENTENCES, LABELS)


def test_names_of_classes_are_found_whatever_the_type_of_the_column(tmp_path: Path) -> None:
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["positive", "negative"])}
    )
    file = str(tmp_path / "a.parquet")
    datasets.Dataset.from_dict({"sentence": SENTENCES, "label": LABELS}, features=features).to_parquet(file)
    table = pyarrow.parquet.read_table(file)
    pyarrow.parquet.write_table(table.set_column(1, "label", table.column("label").cast("int8")), file)
    assert content_of(read_file(file, True)) == (SENTENCES, [1 - label for label in LABELS])


def test_classes_named_by_decimals_keep_their_order(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sentence,label\ngood,0.0\nbad,1.0\nfine,0\n")
    columns = Columns(label_names=("1.0", "0.0"))
    assert content_of(read_file(str(tmp_path / "a.csv"), True, columns))[1] == [1, 0, 1]
