"""Both ways classify the same sentences, others in each round."""

from pathlib import Path

from benchmarks.predict import WAYS, slices, write_sentences


def test_rounds_take_slices_one_after_another(tmp_path: Path) -> None:
    source = tmp_path / "source.txt"
    write_sentences(source, "train", 10)
    lines = source.read_text().splitlines()
    assert len(set(lines)) > 5
    assert [part.read_text().splitlines() for part in slices(source, 3, 3)] == [lines[:3], lines[3:6], lines[6:9]]


def test_both_ways_give_the_probabilities_of_positive(tiny_classifier: Path, tmp_path: Path) -> None:
    file = tmp_path / "sentences.txt"
    write_sentences(file, "validation", 40)
    found = {}
    for way, make in WAYS.items():
        seconds, found[way] = make(tiny_classifier)(file)
        assert 0 < seconds < 60
    assert len({round(value, 3) for value in found["pipeline"]}) > 5
    assert max(abs(a - b) for a, b in zip(*found.values(), strict=True)) < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
