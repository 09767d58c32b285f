"""Explanations add up to the logit, are of whole words, and show text as text."""

import csv
import html
import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sst2.data.sample import sample_sentences
from sst2.inference.predict import command
from sst2.inference.predict.classifier import Classifier
from sst2.inference.predict.explain import TOLERANCE, Explainer
from sst2.inference.predict.highlight import Word, in_color, in_plain, page_row
from sst2.models.loading import load_classifier
from sst2.utils.errors import UserError, exit_codes
from tests.support.odd_checkpoints import FAST, Form
from tests.support.running import terminal

SENTENCES = sample_sentences("validation")[0][:12]
NASTY = "<script>alert(1)</script> & \"quotes\" aren't 'markup'"


@pytest.fixture(scope="module")
def classifier(tiny_classifier: Path) -> Classifier:
    return Classifier(*load_classifier("MODEL", str(tiny_classifier)), torch.device("cpu"), max_length=40)


@pytest.fixture(scope="module")
def explainer(classifier: Classifier) -> Explainer:
    return Explainer(classifier)


@pytest.fixture
def run(tiny_classifier: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command with `--explain` in this process. Returns what it writes to standard output."""

    def run_it(*flags: object) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop, exit_codes(command.PROGRAM):
            command.main([str(tiny_classifier), "--explain", *map(str, flags)])
        out, said = capfd.readouterr()
        assert stop.value.code == 0, said
        return out

    return run_it


@pytest.mark.parametrize("target", [0, 1])
def test_attributions_add_up_to_the_logit_less_the_baselines(
    target: int, explainer: Explainer, tiny_classifier: Path
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_classifier).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_classifier)
    differences = []
    for sentence in SENTENCES:
        inputs = tokenizer(sentence, return_tensors="pt")
        baseline = inputs["input_ids"].clone()
        baseline[0, 1:-1] = tokenizer.pad_token_id
        with torch.inference_mode():
            logit, of_baseline = (
                model(input_ids=ids, attention_mask=inputs["attention_mask"]).logits[0, target].item()
                for ids in (inputs["input_ids"], baseline)
            )
        explanation = explainer.explain(sentence, target)
        assert (explanation.logit, explanation.baseline_logit) == pytest.approx((logit, of_baseline), abs=1e-4)
        total = sum(word.value for word in explanation.words)
        assert total == pytest.approx(logit - of_baseline, abs=TOLERANCE, rel=TOLERANCE)
        differences.append(abs(logit - of_baseline))
    assert max(differences) > 100 * TOLERANCE  # there was something to add up


def test_word_pieces_are_summed_into_whole_words(explainer: Explainer, classifier: Classifier) -> None:
    sentence = " an  uninspired film,  electroencephalographically  dull "
    pieces = classifier.tokenizer.tokenize("electroencephalographically")
    assert len(pieces) > 3  # the word that this is about
    words = explainer.explain(sentence, 1).words
    assert [sentence[word.start : word.stop] for word in words] == sentence.split()
    assert all(word.value for word in words)


@pytest.mark.parametrize("kind", ["byte-level BPE", "Unigram", "character BPE"])
def test_pieces_that_begin_with_a_space_count_as_well(kind: str, tmp_path: Path) -> None:
    model = Form(kind, FAST).write(tmp_path / "model")
    explainer = Explainer(Classifier(*load_classifier("MODEL", str(model)), torch.device("cpu")))
    sentence = "a dull, lifeless and boring mess"
    explanation = explainer.explain(sentence, 1)
    assert [sentence[word.start : word.stop] for word in explanation.words] == sentence.split()
    difference = explanation.logit - explanation.baseline_logit
    assert abs(difference) > 10 * TOLERANCE
    assert sum(word.value for word in explanation.words) == pytest.approx(difference, abs=TOLERANCE, rel=TOLERANCE)


def test_a_sentence_that_is_cut_is_explained_as_far_as_it_is_read(explainer: Explainer) -> None:
    sentence = "a " * 100
    words = explainer.explain(sentence, 1).words
    assert len(words) == 38  # 40 tokens with [CLS] and [SEP]
    assert words[-1].stop == len("a " * 38) - 1


def test_the_command_explains_the_predicted_class(
    run: Callable[..., str], tiny_classifier: Path, explainer: Explainer
) -> None:
    answers = [json.loads(line) for line in run("--format", "jsonl", *SENTENCES).splitlines()]
    assert {answer["prediction"] for answer in answers} == {"NEGATIVE", "POSITIVE"}
    for answer in answers:
        expected = explainer.explain(answer["sentence"], ("NEGATIVE", "POSITIVE").index(answer["prediction"])).words
        assert [word for word, _ in answer["attributions"]] == answer["sentence"].split()
        assert [value for _, value in answer["attributions"]] == pytest.approx([w.value for w in expected], abs=1e-4)
    rows = [*csv.DictReader(run("--format", "csv", *SENTENCES).splitlines())]
    assert [json.loads(row["attributions"]) for row in rows] == [answer["attributions"] for answer in answers]
    text = run(SENTENCES[0])  # no terminal, no color
    assert re.sub(r"\([+-]\d+\.\d\d\)", "", text).rstrip().endswith(f"  {SENTENCES[0]}")
    assert "\x1b" not in text


def test_a_terminal_gets_colors(
    tiny_classifier: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_terminal() -> str:
        with terminal(1) as written:
            command.main([str(tiny_classifier), "--explain", SENTENCES[0]])
        return written[0]

    monkeypatch.delenv("NO_COLOR", raising=False)
    text = on_terminal()
    assert "\x1b[38;5;16;48;5;" in text
    assert re.sub(r"\x1b\[[0-9;]*m", "", text).rstrip().endswith(f"  {SENTENCES[0]}")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in on_terminal()


def test_colors_tell_for_from_against_and_strong_from_weak() -> None:
    words = [Word(0, 4, 2.0), Word(5, 9, -1.9), Word(10, 14, 0.8), Word(15, 19, 0.01)]
    sentence = "aaaa bbbb cccc \x1b[2J"
    blue, orange, pale, plain = in_color(sentence, words).split(" ")
    assert blue == "\x1b[38;5;16;48;5;75maaaa\x1b[0m"
    assert orange == "\x1b[38;5;16;48;5;209mbbbb\x1b[0m"
    assert pale == "\x1b[38;5;16;48;5;111mcccc\x1b[0m"
    assert plain == "\\x1b[2J"
    assert in_plain(sentence, words) == "aaaa(+2.00) bbbb(-1.90) cccc(+0.80) \\x1b[2J(+0.01)"
    assert in_color("aaaa", [Word(0, 4, 0.0)]) == "aaaa"  # no word does anything: nothing is divided by it


class Page(HTMLParser):
    """Tags and text of a page as a browser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [name for name, _ in attrs if name in ("src", "href", "onclick")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_stands_alone_and_shows_text_as_text(run: Callable[..., str], tmp_path: Path) -> None:
    run("--html", tmp_path / "why.html", NASTY, *SENTENCES)
    text = (tmp_path / "why.html").read_text(encoding="utf-8")
    page = Page(text)
    assert set(page.tags) <= set("html head meta title style body h1 p span table thead tbody tr th td".split())
    assert page.links == []
    assert "url(" not in text
    assert "@import" not in text
    assert NASTY in "".join(page.texts)
    assert page.tags.count("tr") == 1 + 1 + len(SENTENCES)
    assert text.endswith("</html>\n")
    assert [path.name for path in tmp_path.iterdir()] == ["why.html"]


def test_a_row_of_the_page_escapes_labels_too() -> None:
    row = page_row("<b>", 0.5, "x<y", [Word(0, 3, -1.0)])
    assert "<b>" not in row
    assert html.unescape(re.sub(r"<[^>]*>", "", row)).strip() == "<b>0.5000x<y"


def test_without_captum_one_line_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    monkeypatch.delitem(sys.modules, "captum", raising=False)
    with pytest.raises(UserError, match=r"--explain needs captum: pip install captum"):
        command.parse(["model", "x", "--explain"])
    assert not command.parse(["model", "x"]).explain
