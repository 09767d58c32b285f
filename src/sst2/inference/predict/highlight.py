"""Words in color: blue for what speaks for the prediction, orange for what speaks against it.

These two can be told apart with every common kind of color vision. The strongest word of a sentence is the darkest.
"""

import html
from collections.abc import Callable, Sequence
from typing import NamedTuple

BLUES, ORANGES = (153, 111, 75), (223, 216, 209)  # of a terminal's 256 colors, from weak to strong
FAINT = 0.1  # below this share of the strongest word, there is no color

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.6 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid #8884; }}
td:last-child {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
.for, .against {{ border-radius: .2rem; padding: .1rem 0; }}
.for {{ background: rgb(37 99 235 / var(--share)); }}
.against {{ background: rgb(234 118 0 / var(--share)); }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>Words that speak <span class="for" style="--share:.5">for</span> {subject} and
<span class="against" style="--share:.5">against</span> it, by integrated gradients: point at a word for its share of
the logit.</p>
<table>
<thead><tr><th>label</th><th>probability</th><th>sentence</th></tr></thead>
<tbody>
"""
PAGE_END = "</tbody>\n</table>\n</body>\n</html>\n"


class Word(NamedTuple):
    """A word, sentence[start:stop], and what it did for the prediction, in logits."""

    start: int
    stop: int
    value: float


def printable(text: str) -> str:
    r"""The text on one line, without characters that a terminal would obey: `\n`, `\x1b`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def in_plain(sentence: str, words: Sequence[Word]) -> str:
    """Each word with its value behind it: `gripping(+1.23)`."""
    return _marked(sentence, words, printable, lambda text, word, _: f"{printable(text)}({word.value:+.2f})")


def in_color(sentence: str, words: Sequence[Word]) -> str:
    """The sentence for a terminal of 256 colors."""
    from rich.style import Style

    def mark(text: str, word: Word, share: float) -> str:
        if share < FAINT:
            return printable(text)
        shades = BLUES if word.value > 0 else ORANGES
        shade = shades[min(int(share * len(shades)), len(shades) - 1)]
        return Style(color="color(16)", bgcolor=f"color({shade})").render(printable(text))

    return _marked(sentence, words, printable, mark)


def page_start(title: str, explained: str | None = None) -> str:
    """The beginning of a page that needs no other file; words are of the class `explained`, else of the prediction."""
    subject = "the prediction" if explained is None else f"the class {explained}"
    return _PAGE.format(title=html.escape(title), subject=html.escape(subject))


def page_row(label: str, probability: float, sentence: str, words: Sequence[Word]) -> str:
    """A sentence's row of the page."""

    def mark(text: str, word: Word, share: float) -> str:
        side = "for" if word.value > 0 else "against"
        # half as strong as the color can be: the text on it stays legible, dark or light
        style = f"--share:{share / 2:.2f}"
        return f'<span class="{side}" style="{style}" title="{word.value:+.4f}">{html.escape(text)}</span>'

    text = _marked(sentence, words, html.escape, mark)
    return f"<tr><td>{html.escape(label)}</td><td>{probability:.4f}</td><td>{text}</td></tr>\n"


def _marked(
    sentence: str, words: Sequence[Word], plain: Callable[[str], str], mark: Callable[[str, Word, float], str]
) -> str:
    """The sentence with its words marked, by their share of the strongest, and all between them plain."""
    strongest = max((abs(word.value) for word in words), default=0.0) or 1.0
    parts, end = [], 0
    for word in words:
        parts += [
            plain(sentence[end : word.start]),
            mark(sentence[word.start : word.stop], word, abs(word.value) / strongest),
        ]
        end = word.stop
    return "".join([*parts, plain(sentence[end:])])
