"""Files as users have them: compressed, in upper case, by a pipe, and all that is no UTF-8 table, told by its cause."""

import bz2
import gzip
import json
import logging
import lzma
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import datasets
import pandas
import pytest

from sst2.config.settings import Settings
from sst2.data.checked_rows import read_dataset, read_file
from sst2.data.file_formats import Columns
from sst2.inference.predict.inputs import sentences_of
from sst2.utils.errors import UserError, quoted
from sst2.utils.text_files import FILE_SUFFIXES, format_of, problem_of
from tests.support.datasets import content_of

TABLE = "sentence,label\na fine film,1\nbad,0\n"
EXPECTED = (["a fine film", "bad"], [1, 0])


@pytest.mark.parametrize("name", ["a.csv.gz", "A.CSV", "a.Csv.GZ", "a.csv.bz2", "a.csv.xz", "a.tsv.gz", "a.jsonl.gz"])
def test_compressed_files_and_upper_case_suffixes_are_read(name: str, tmp_path: Path) -> None:
    text = TABLE.replace(",", "\t") if ".tsv" in name else TABLE
    if ".jsonl" in name:
        text = '{"sentence": "a fine film", "label": 1}\n{"sentence": "bad", "label": 0}\n'
    packers: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    (tmp_path / name).write_bytes(packers.get(Path(name).suffix.lower(), bytes)(text.encode()))
    assert problem_of(str(tmp_path / name)) == ""
    assert content_of(read_file(str(tmp_path / name), True)) == EXPECTED
    file = str(tmp_path / name)
    assert Settings(train_file=file, validation_file=file).train_file == file


def through_pipe(content: bytes, read: Callable[[str], object]) -> object:
    receiver, sender = os.pipe()

    def feed() -> None:
        with os.fdopen(sender, "wb") as file:
            file.write(content)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        return read(f"/dev/fd/{receiver}")
    finally:
        thread.join()
        os.close(receiver)


@pytest.mark.parametrize(
    "content",
    [
        TABLE.encode(),
        gzip.compress(TABLE.encode(), mtime=0),
        TABLE.replace(",", "\t").encode(),
        b'{"sentence": "a fine film", "label": 1}\n{"sentence": "bad", "label": 0}\n',
    ],
)
def test_a_pipe_is_read_by_what_comes_out_of_it(content: bytes) -> None:
    assert content_of(through_pipe(content, lambda path: read_file(path, True))) == EXPECTED


TABLES_UNDER_OTHER_NAMES = {
    "csv": (b"id,review\n1,good film\n", "'id', 'review'"),
    "tsv": (b"id\treview\n1\tgood film\n", "'id', 'review'"),
    "one column": (b"review\ngood film\n", "'review'"),
    "json": (b'{"id": 1, "review": "good film"}\n', "'id', 'review'"),
}


@pytest.mark.parametrize("kind", TABLES_UNDER_OTHER_NAMES)
def test_a_table_in_a_pipe_without_the_column_that_is_named_is_no_text(kind: str) -> None:
    content, names = TABLES_UNDER_OTHER_NAMES[kind]
    with pytest.raises(UserError, match=f"has no column 'revew', only {names}: name the columns so"):
        through_pipe(content, lambda path: [*sentences_of([], path, "revew")])
    assert through_pipe(content, lambda path: [*sentences_of([], path, "review")]) == ["good film"]
    with pytest.raises(UserError, match="has no column 'sentence', only 'id', 'review'"):
        through_pipe(b"id,review\n1,good film\n", lambda path: read_file(path, True))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"id,review\n1,good film\n", "has no column 'sentence' in its first line 'id,review': name the column by"),
        (b"id\treview\n1\tgood\n", "has no column 'sentence' in its first line"),
        (b"a gripping, funny film\nbad\n", "or give a text with a sentence a line as standard input, without --file"),
        (b'[{"sentence": "good"}]\n', "line 1 is not a JSON object: give one object a line"),
        (b'"sentence"\t"label"\n', "in double quotes, as pandas writes them"),
    ],
)
def test_what_may_be_a_table_is_not_taken_for_a_text(content: bytes, expected: str) -> None:
    with pytest.raises(UserError, match=re.escape(expected)):
        through_pipe(content, lambda path: [*sentences_of([], path)])
    assert through_pipe(b"a fine film\nbad, though\n", lambda path: [*sentences_of([], path)]) == [
        *("a fine film", "bad, though")
    ]


def test_only_programs_that_read_once_take_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data.csv")
    assert problem_of(str(tmp_path / "data.csv"), read_once=True) == ""
    with pytest.raises(ValueError, match="can be read once only, and every process and restart reads it"):
        Settings(train_file=str(tmp_path / "data.csv"), holdout_fraction=0.5)
    assert problem_of("/dev/null") == "is a device, not a file"
    assert "must end in one of .csv .tsv" in problem_of("/etc/passwd")
    assert format_of("a.b.CSV.gz") == ".csv"
    assert format_of("a.gz") == ""


BROKEN = {
    "UTF-16": (".csv", TABLE.encode("utf-16"), "is UTF-16, not UTF-8: convert it"),
    "UTF-16 of the other order": (".tsv", b"\xfe\xff" + TABLE.encode("utf-16-be"), "is UTF-16, not UTF-8"),
    "UTF-16 without a mark": (".csv", TABLE.encode("utf-16-le"), "holds zero bytes"),
    "a spreadsheet": (".csv", b"PK\x03\x04rest", "is a zip archive or a spreadsheet"),
    "zstd": (".csv", b"\x28\xb5\x2f\xfdrest", "is compressed by zstd"),
    "parquet by another name": (".csv", b"PAR1rest", "is a parquet file"),
    "a gzip file cut short": (".csv.gz", gzip.compress(TABLE.encode() * 9)[:-12], "cannot be unpacked"),
    "a gzip file with a wrong sum": (".csv.gz", gzip.compress(TABLE.encode())[:-8] + b"12345678", "cannot be unpacked"),
    "a bzip2 file that is none": (".csv", b"BZh1 is no archive", "cannot be unpacked"),
    "escaped quotes": (
        ".csv",
        b'sentence,label\nfine,1\n"a \\"good\\" film",1\n',
        r'line 3 is not valid csv: a quote .* "a ""fine"" film"',
    ),
    "an escaped quote at the end": (
        ".csv",
        b'sentence,label\nfine,1\n"he said \\"no\\"",1\nbad,0\n"good",1\n',
        "line 3 is not valid csv: a quote within",
    ),
    "a quote left open": (
        ".csv",
        b'sentence,label\nfine,1\n"good,1\nbad,0\n',
        "line 3 is not valid csv: a double quote is opened",
    ),
    "no header": (
        ".csv",
        b"a gripping film,1\nbad,0\n",
        "has no header, its first line is the row 'a gripping film,1': put 'sentence,label' above",
    ),
    "semicolons": (
        ".csv",
        b"sentence;label\ngood;1\n",
        r"bad.csv line 1 has semicolons between its columns: save .*commas",
    ),
    "semicolons in quotes": (".csv", b'"label";"sentence"\n1;"good, fine"\n', "has semicolons between its columns"),
    "tabs in a csv": (".csv", b"sentence\tlabel\ngood, fine\t1\n", r"bad.csv line 1 has tabs between its columns"),
    "commas in a tsv": (".tsv", b"sentence,label\ngood,1\n", r"bad.tsv line 1 has commas between its columns: .*tabs"),
    "no header in a tsv": (".tsv", b"a gripping film\tpositive\n", r"has no header, .* put 'sentence\\tlabel' above"),
    "half a surrogate pair": (
        ".jsonl",
        b'{"sentence": "so \\ud83d", "label": 1}\n',
        r"line 1: the sentence holds half a character \(\\ud83d",
    ),
    "Latin-1": (".jsonl", b'{"sentence": "caf\xe9", "label": 1}\n', r"line 1: the sentence is not UTF-8 \(byte 0xe9\)"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_read_is_told_by_its_cause(kind: str, tmp_path: Path) -> None:
    suffix, content, message = BROKEN[kind]
    file = tmp_path / f"bad{suffix}"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        read_file(str(file), labels_required=True)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize("quoting", [0, 1, 2])
@pytest.mark.parametrize("sentence", ['he said "no" twice', "a\ttab", "two\nlines"])
def test_a_quoted_tsv_as_pandas_writes_it_is_named(quoting: int, sentence: str, tmp_path: Path) -> None:
    frame = pandas.DataFrame({"sentence": ["fine", sentence, "good"], "label": [1, 0, 1]})
    frame.to_csv(tmp_path / "a.tsv", sep="\t", index=False, quoting=quoting)
    with pytest.raises(
        UserError, match=r"line [123].*in double quotes, as pandas writes them, but a tsv has no quoting"
    ):
        read_file(str(tmp_path / "a.tsv"), True)


def test_quotes_that_no_writer_has_doubled_are_part_of_a_tsvs_sentence(tmp_path: Path) -> None:
    sentences = ['"good"', 'a "fine" film', '"', '""', '"no" and "yes"']
    (tmp_path / "a.tsv").write_text("sentence\tlabel\n" + "".join(f"{text}\t1\n" for text in sentences))
    assert content_of(read_file(str(tmp_path / "a.tsv"), True)) == (sentences, [1] * 5)


@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ","), (".tsv", "\t")])
def test_fields_may_be_longer_than_131072_characters(suffix: str, separator: str, tmp_path: Path) -> None:
    file = tmp_path / f"long{suffix}"
    file.write_text(f"sentence{separator}label\n{'long ' * 40_000}{separator}1\n")
    assert read_file(str(file), True)["sentence"][0] == "long " * 40_000


def test_messages_quote_no_more_than_100_characters(tmp_path: Path) -> None:
    assert len(quoted("x" * 10_000)) == 100
    for header, row in ((f"text{'x' * 20},other\n" * 50, ""), ("sentence,label\n", f"good,{'x' * 5000}\n")):
        (tmp_path / "a.csv").write_text(header + row)
        with pytest.raises(UserError) as raised:
            read_file(str(tmp_path / "a.csv"), True)
        assert len(str(raised.value)) < 400
    (tmp_path / "a.jsonl").write_text(json.dumps({"sentence": ["word"] * 5000, "label": 1}))
    with pytest.raises(UserError) as raised:
        read_file(str(tmp_path / "a.jsonl"), True)
    assert len(str(raised.value)) < 400


def test_the_classes_of_a_parquet_file_go_by_the_names_that_it_has(tmp_path: Path) -> None:
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["positive", "negative"])}
    )
    data = datasets.Dataset.from_dict({"sentence": ["good", "bad", "?"], "label": [0, 1, -1]}, features=features)
    data.to_parquet(tmp_path / "a.parquet")
    assert read_file(str(tmp_path / "a.parquet"), False)["label"][:] == [1, 0, -1]


def test_a_number_that_no_class_has_is_unknown() -> None:
    dataset = datasets.Dataset.from_dict({"sentence": ["good"], "label": [-2]})
    dataset.info.features["label"] = datasets.ClassLabel(names=["negative", "positive"])
    with pytest.raises(UserError, match="row 1: label -2 is unknown"):
        read_dataset(dataset, "data train", labels_required=True)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet", "dataset"])
@pytest.mark.parametrize(("column", "is_told"), [("gold", True), ("idx", False)])
def test_test_data_whose_labels_have_another_name_say_so(
    suffix: str, column: str, is_told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frame = pandas.DataFrame({"sentence": ["good", "bad"], column: [1, 0]})
    file = str(tmp_path / f"test{suffix}")
    if suffix == ".parquet":
        frame.to_parquet(file)
    elif suffix == ".jsonl":
        frame.to_json(file, orient="records", lines=True)
    elif suffix != "dataset":
        frame.to_csv(file, index=False, sep="\t" if suffix == ".tsv" else ",")
    with caplog.at_level(logging.WARNING):
        if suffix == "dataset":
            read = read_dataset(datasets.Dataset.from_pandas(frame), file, labels_required=False)
        else:
            read = read_file(file, labels_required=False)
    assert read["label"][:] == [-1, -1]
    said = f"{file} has no column 'label', only 'sentence', 'gold': its sentences are predicted and not scored"
    assert [message.startswith(said) for message in caplog.messages] == [True] * is_told


def test_compressed_text_on_standard_input_and_tables_in_pipes_are_predicted_from(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a fine film\nbad\n"))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(TABLE.encode()))
    read = "import sys; from sst2.inference.predict.inputs import sentences_of\n"
    read += "print([*sentences_of([], sys.argv[1] or None)])"
    for shell in (
        "{} -c '{}' '' < a.txt.gz",
        "zcat a.txt.gz | {} -c '{}' /dev/stdin",
        "zcat a.csv.gz | {} -c '{}' /dev/stdin",
        "{} -c '{}' <(zcat a.csv.gz)",
    ):
        done = subprocess.run(
            ["bash", "-c", shell.format(sys.executable, read)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == "['a fine film', 'bad']\n", (shell, done.stderr)


def test_the_sentences_of_a_file_that_may_not_be_read_are_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_file(str(tmp_path / "absent.csv"), True, Columns())
    assert FILE_SUFFIXES[0] == ".csv"
