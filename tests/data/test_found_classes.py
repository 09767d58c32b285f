"""The classes of training data that no flag names: found, in an order that is told, and wrong labels named by row."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import datasets
import pytest

from sst2.config.settings import Settings
from sst2.data.mapped_dataset import class_names_of
from sst2.data.splits import load_sentences, with_class_names
from sst2.utils.errors import UserError
from tests.support.datasets import content_of


def write(file: Path, labels: list[object]) -> str:
    """A row for each label, whose sentences are its number."""
    if file.suffix == ".jsonl":
        rows = (json.dumps({"sentence": f"{file.stem} {row}", "label": label}) for row, label in enumerate(labels))
        file.write_text("".join(f"{row}\n" for row in rows))
    else:
        rows = (f"{file.stem} {row},{label}\n" for row, label in enumerate(labels))
        file.write_text("sentence,label\n" + "".join(rows))
    return str(file)


def settings_of(
    folder: Path, train: list[object], dev: list[object], suffix: str = ".csv", **flags: object
) -> Settings:
    files = {
        "train_file": write(folder / f"train{suffix}", train),
        "validation_file": write(folder / f"dev{suffix}", dev),
    }
    return Settings(output_dir=str(folder / "run"), **files, **flags)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("suffix", "labels", "names", "numbers"),
    [
        (".csv", ["sport", "arts", "Arts ", "world"], ["arts", "sport", "world"], [1, 0, 0, 2]),
        (".csv", [2, 0, 1, "1.0"], ["0", "1", "2"], [2, 0, 1, 1]),
        (".csv", [5, 4, 3, 2, 1], ["1", "2", "3", "4", "5"], [4, 3, 2, 1, 0]),
        (".csv", [*range(12)], [str(number) for number in range(12)], [*range(12)]),  # 10 and 11 after 9
        (".csv", ["spam", "ham"], ["ham", "spam"], [1, 0]),
        (".csv", ["positive", "neutral", "negative"], ["negative", "neutral", "positive"], [2, 1, 0]),
        (".csv", ["pos", "neg"], ["NEGATIVE", "POSITIVE"], [1, 0]),
        (".csv", ["Positive", 0, "1"], ["NEGATIVE", "POSITIVE"], [1, 0, 1]),
        (".jsonl", [True, False], ["NEGATIVE", "POSITIVE"], [1, 0]),
        (".jsonl", [2, 1.0, 0], ["0", "1", "2"], [2, 1, 0]),
        (".csv", ["true", "false"], ["false", "true"], [1, 0]),
    ],
)
def test_classes_are_found_and_stand_in_an_order_that_follows_from_their_names(
    suffix: str, labels: list[object], names: list[str], numbers: list[int], tmp_path: Path
) -> None:
    splits = load_sentences(settings_of(tmp_path, labels, labels[::-1], suffix))
    assert {name: class_names_of(data) for name, data in splits.items()} == {"train": names, "validation": names}
    assert content_of(splits["train"])[1] == numbers
    assert content_of(splits["validation"])[1] == numbers[::-1]


@pytest.mark.parametrize(
    ("suffix", "labels", "message"),
    [
        (
            ".csv",
            [1, 2],
            r"train\.csv line 3: label '2' is unknown: give names, or integers from 0 or 1 without a gap,",
        ),
        (".csv", [0, 1, 2, 22], r"train\.csv line 5: label '22' is unknown: give 0, 1 or 2, or name the classes by"),
        (".csv", [18, 35, 70], r"train\.csv line 2: label '18' is unknown"),
        (".csv", [0.5, 1.25], r"train\.csv line 2: label '0.5' is unknown"),
        (
            ".csv",
            [1, 0, 0.5],
            r"train\.csv line 4: label '0.5' is unknown: give names, or integers from 0 or 1 without a gap",
        ),
        (
            ".csv",
            [-1, 0, 1],
            r"train\.csv line 2: label -1 stands for none: give 0 or negative, 1 or positive, or remove",
        ),
        (
            ".csv",
            [1, "maybe"],
            r"train\.csv line 3: label 'maybe' is a word, and those before it are numbers: give one",
        ),
        (".csv", ["ham", 5], r"train\.csv line 3: label '5' is a number, and those before it are words: give one kind"),
        (
            ".csv",
            ["sport", *["arts", "sport"] * 20, "sprot"],
            r"line 43: label 'sprot' occurs once, and 'sport' 21 times",
        ),
        (".csv", ["ham", "spam", 1], r"train\.csv line 4: label '1' is unknown: give ham or spam, the classes of"),
        (
            ".csv",
            ["maybe", "maybe"],
            r"train\.csv line 2: label 'maybe' is the only one in .*train\.csv: add sentences",
        ),
        (".csv", ["ham", "", "spam"], r"train\.csv line 3: there is no label: give ham or spam, or remove the row"),
        (".jsonl", ["ham", ["ham", "spam"]], r"train\.jsonl line 2: label \['ham', 'spam'\] is unknown"),
        (
            ".csv",
            [f"c{number}" for number in range(1002)],
            r"line 1002: label 'c1000' is one more than the 1000 classes",
        ),
    ],
)
def test_labels_that_are_no_classes_are_named_by_row(
    suffix: str, labels: list[object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        load_sentences(settings_of(tmp_path, labels, labels, suffix))


@pytest.mark.parametrize("label", ["wrold", "1"])
def test_a_label_that_training_lacks_is_a_mistake_in_validation(label: str, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, ["world", "sport", "arts"], ["sport", label])
    with pytest.raises(
        UserError,
        match=rf"dev\.csv line 3: label '{label}' is unknown: give arts, sport or world, the "
        r"classes of .*train\.csv, or name the classes by --label_names",
    ):
        load_sentences(settings)
    settings = settings_of(
        tmp_path, ["world", "sport", "arts"], ["sport"], test_file=write(tmp_path / "t.csv", [label])
    )
    with pytest.raises(UserError, match=rf"t\.csv line 2: label '{label}' is unknown: give arts, sport or world, the"):
        load_sentences(settings)


@pytest.mark.parametrize(("rare", "often"), [("sprot", "sport"), ("sciense", "science"), ("bad wordl", "bad world")])
def test_one_wrong_letter_is_told_by_its_row(rare: str, often: str, tmp_path: Path) -> None:
    labels: list[object] = [*["arts", often] * 30, rare]
    settings = settings_of(tmp_path, labels, labels)
    with pytest.raises(
        UserError, match=rf"train\.csv line 62: label '{rare}' occurs once, and '{often}' 30 times: fix"
    ):
        load_sentences(settings)


@pytest.mark.parametrize(
    ("rare", "often"),
    [
        *(("law", "sport"), ("sport 2", "sport 1"), ("grade A", "grade B"), ("illegal", "legal"), ("female", "male")),
        *(("not_entailment", "entailment"), ("Austria", "Australia"), ("hypertension", "hypotension")),
    ],
)
def test_another_rare_name_is_a_class_of_its_own_and_warned_of(
    rare: str, often: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels: list[object] = [*["arts", often] * 30, rare]
    assert rare in class_names_of(load_sentences(settings_of(tmp_path, labels, labels))["train"])
    assert any(f"line 62: label '{rare}' occurs once" in message for message in caplog.messages)


def test_a_flag_says_that_a_name_is_no_slip_and_so_do_few_rows(tmp_path: Path) -> None:
    labels: list[object] = [*["arts", "sport"] * 30, "sprot"]
    named = settings_of(tmp_path, labels, labels, label_names=["arts", "sport", "sprot"])
    assert content_of(load_sentences(named)["train"])[1][-1] == 2
    few: list[object] = [*["arts", "sport"] * 9, "sprot"]
    assert "sprot" in class_names_of(load_sentences(settings_of(tmp_path, few, few))["train"])


def test_a_wrong_name_in_the_flag_is_told_as_such(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, ["sport", "law"], ["law"], label_names=["sport", "lwa"])
    with pytest.raises(
        UserError, match=r"train\.csv line 3: label 'law' .* 0 or sport, 1 or lwa, or fix --label_names"
    ):
        load_sentences(settings)


def test_numbers_stand_for_any_classes_that_a_flag_names(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, [2, "world", 0], [1, "ARTS"], label_names=["world", "arts", "sport"])
    splits = load_sentences(settings)
    assert content_of(splits["train"])[1] == [2, 0, 0]
    assert content_of(splits["validation"])[1] == [1, 1]
    stars = settings_of(tmp_path, [10, 5], [5, 1], label_names=["1", "5", "10"])
    assert content_of(load_sentences(stars)["train"])[1] == [2, 1]


def test_classes_that_a_split_lacks_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names: list[object] = ["world", "arts", "sport", "law"]
    load_sentences(settings_of(tmp_path, ["world", "arts"], ["world", "law"], label_names=names))
    assert caplog.messages == [
        "no training sentence is sport or law: nothing can be learned of it",
        "no validation sentence is arts or sport: its metrics say nothing of it",
    ]
    caplog.clear()
    load_sentences(settings_of(tmp_path, ["world", "world"], names, label_names=names))
    assert caplog.messages == ["all 2 training sentences are world: nothing can be learned of the other classes"]


def test_what_was_found_is_told_but_for_sst2s(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sst2")
    load_sentences(settings_of(tmp_path, [1, 0], [0, 1]))
    assert caplog.messages == []
    load_sentences(settings_of(tmp_path, ["a", "b", "c", "a"], ["a", "b", "c"]))
    assert caplog.messages == ["3 classes among the training labels: a (2), b (1), c (1)"]
    caplog.clear()
    load_sentences(settings_of(tmp_path, ["spam", "ham"], ["ham", "spam"]))
    told = "ham (1), spam (1); precision, recall and F1 are of spam: --label_names sets the order"
    assert caplog.messages == [f"2 classes among the training labels: {told}"]


def test_a_class_label_names_its_classes_also_those_that_do_not_occur(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["world", "arts", "sport"]
    columns = {"sentence": ["a", "b"], "label": [2, 0]}
    features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    split = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict({"train": split, "validation": split}).save_to_disk(tmp_path / "saved")
    split.to_parquet(tmp_path / "train.parquet")
    saved = Settings(output_dir="/nonexistent", dataset_name=str(tmp_path / "saved"))
    files = str(tmp_path / "train.parquet"), write(tmp_path / "dev.csv", ["world", 2])
    parquet = Settings(output_dir="/nonexistent", train_file=files[0], validation_file=files[1])
    for settings, validation in ((saved, [2, 0]), (parquet, [0, 2])):
        splits = load_sentences(settings)
        assert class_names_of(splits["train"]) == names
        assert (content_of(splits["train"])[1], content_of(splits["validation"])[1]) == ([2, 0], validation)
    assert "no training sentence is arts: nothing can be learned of it" in caplog.messages


def test_a_data_set_of_strings_or_numbers_is_looked_through(tmp_path: Path) -> None:
    for number, (labels, names) in enumerate(
        [(["b", "a", "b"], ["a", "b"]), ([2, 0, 1], ["0", "1", "2"]), ([0, 1, 1], ["NEGATIVE", "POSITIVE"])]
    ):
        split = datasets.Dataset.from_dict({"sentence": ["x", "y", "z"], "label": labels})
        folder = tmp_path / str(number)
        datasets.DatasetDict({"train": split, "validation": split}).save_to_disk(folder)
        splits = load_sentences(Settings(output_dir="/nonexistent", dataset_name=str(folder)))
        assert class_names_of(splits["train"]) == names


def test_a_holdout_has_the_classes_of_training(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, ["a", "b", "c"] * 20, ["a", "b", "c"])
    splits = load_sentences(replace(settings, holdout_fraction=0.5))
    assert class_names_of(splits["holdout"]) == class_names_of(splits["train"]) == ["a", "b", "c"]


def test_weights_are_as_many_as_the_classes_that_were_found(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, ["a", "b", "c"], ["a", "b", "c"], class_weights=["1", "2"])
    with pytest.raises(UserError, match=r"--class_weights 1 2 cannot work: give 3 numbers, .* in the order a, b, c"):
        with_class_names(settings, load_sentences(settings)["train"])


def test_one_class_in_several_spellings_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels: list[object] = ["US", "IT", "us", "cafe\u0301", "caf\u00e9", "it", "it", "I\u200bT", " IT "]
    splits = load_sentences(settings_of(tmp_path, labels, ["us"]))
    assert class_names_of(splits["train"]) == ["cafe\u0301", "IT", "US"]
    told = [message.split(": ", 1)[1] for message in caplog.messages if "is taken for the class" in message]
    assert told == [
        f"label 'us' is taken for the class that is 'US' in {tmp_path / 'train.csv'} line 2",
        f"label 'caf\u00e9' is taken for the class that is 'cafe\u0301' in {tmp_path / 'train.csv'} line 5",
        f"label 'it' is taken for the class that is 'IT' in {tmp_path / 'train.csv'} line 3",
    ]
    caplog.clear()
    load_sentences(settings_of(tmp_path, ["Positive", "neg", "POS", 1], [0, 1]))
    assert not caplog.messages


@pytest.mark.parametrize("names", [["a", "A", "b"], ["only"]])
def test_a_class_label_of_names_that_cannot_be_told_apart_is_refused(names: list[str], tmp_path: Path) -> None:
    features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    split = datasets.Dataset.from_dict({"sentence": ["x", "y"], "label": [0, 0]}, features=features)
    datasets.DatasetDict({"train": split, "validation": split}).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=r"saved train: its ClassLabel names .*, which are not two or more different"):
        load_sentences(Settings(output_dir="/nonexistent", dataset_name=str(tmp_path / "saved")))


def test_a_class_that_the_holdout_takes_whole_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sst2")
    labels = ["a", "b"] * 20 + ["rare"]
    for seed in range(20):
        caplog.clear()
        settings = settings_of(tmp_path, [*labels], ["a", "b"], seed=seed, holdout_fraction=0.3)
        rare = content_of(load_sentences(settings)["train"])[1].count(2)
        assert ("no training sentence is rare: nothing can be learned of it" in caplog.messages) == (rare == 0)
        assert f"rare ({rare})" in " ".join(caplog.messages)


def test_of_a_thousand_classes_a_line_names_some(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sst2")
    load_sentences(settings_of(tmp_path, [f"class {number}" for number in range(1000)], ["class 1"]))
    assert max(map(len, caplog.messages)) < 1200
