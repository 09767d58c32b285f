"""Names of the classes: which class of a model, a file or a run is which class of another.

Names are compared without regard to case and to what cannot be seen (accents that are characters of their own, spaces
without width), and `neg` and `pos` are short for SST-2's.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence

MAX_CLASSES = 1000  # of a run: with more, a confusion matrix has a million numbers and more
_FEWEST_LETTERS = 5  # of a word in which one letter may be a slip
_LONG = {"NEG": "NEGATIVE", "POS": "POSITIVE"}


def names_in_order(id2label: Mapping[int, str]) -> list[str]:
    """Names of the classes 0, 1 and so on, from a model's configuration."""
    return [str(id2label[number]) for number in sorted(id2label)]


def are_generic(names: Sequence[str]) -> bool:
    """Whether they are LABEL_0, LABEL_1 and so on, which transformers writes where nobody has named the classes."""
    return all(re.fullmatch(r"LABEL_\d+", name) for name in names)


def order_of_classes(names: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """For each wanted class, the number that it has among `names`; None where these are other classes."""
    known = [canonical(name) for name in names]
    if sorted(known) != sorted(map(canonical, wanted)):
        return None
    return [known.index(canonical(name)) for name in wanted]


def number_of_class(names: Sequence[str], wanted: str) -> int | None:
    """The number of a class by its name; None where there is none of it."""
    known = [canonical(name) for name in names]
    return known.index(canonical(wanted)) if canonical(wanted) in known else None


def have_positive(names: Sequence[str]) -> bool:
    """Whether a class is named POSITIVE."""
    return "POSITIVE" in map(canonical, names)


def positive_class(names: Sequence[str]) -> int:
    """Number of the class named POSITIVE; 1 where none is."""
    number = number_of_class(names, "POSITIVE")
    return 1 if number is None else number


def in_words(names: Sequence[str], conjunction: str = "and") -> str:
    """The names as a sentence has them: `a, b and c`."""
    return f" {conjunction} ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def canonical(name: str) -> str:
    """The name by which a class is compared with others."""
    if not name.isascii():
        name = "".join(char for char in unicodedata.normalize("NFC", name) if unicodedata.category(char) != "Cf")
    name = name.strip().upper()
    return _LONG.get(name, name)


def is_mistyped(name: str, meant: str) -> bool:
    """Whether one wrong, missing or additional letter, or two that are swapped, make one name of the other.

    Only within a word of five letters or more. A name that holds the other, as illegal and legal, is another class.
    """
    words, others = name.split(), meant.split()
    odd = [pair for pair in zip(words, others, strict=False) if pair[0] != pair[1]]
    if len(words) != len(others) or len(odd) != 1:
        return False
    one, two = odd[0]
    if min(len(one), len(two)) < _FEWEST_LETTERS or one in two or two in one or not (one + two).isalpha():
        return False
    start = next(place for place, pair in enumerate(zip(one, two, strict=False)) if pair[0] != pair[1])
    one, two = one[start:], two[start:]
    swapped = one[1:2] + one[:1] + one[2:]
    return two == swapped or one[1:] == two[1:] or one[1:] == two or one == two[1:]


def require_names(names: Sequence[str]) -> None:
    """Raises ValueError: these cannot be the `--label_names` of a run."""
    known, given = [canonical(name) for name in names], " ".join(names)
    if len(known) < 2 or len(set(known)) < len(known) or not all(known):
        raise ValueError(f"--label_names {given} cannot work: give two different names, or more")
    if len(known) > MAX_CLASSES:
        raise ValueError(f"--label_names has {len(known)} names: give {MAX_CLASSES} at most")
    if len(known) == 2 and (known[0] == "POSITIVE" or known[1] == "NEGATIVE"):
        raise ValueError(f"--label_names {given} cannot work: name the negative class first")


def require_weights(words: Sequence[str], names: Sequence[str]) -> None:
    """Raises ValueError: these cannot be the `--class_weights` of classes with these names (none: not known yet)."""
    if list(words) in (["none"], ["balanced"]):
        return
    given = " ".join(words)
    try:
        are_weights = all(1e-6 <= float(word) <= 1e6 for word in words)
    except ValueError:
        are_weights = False
    if not are_weights:
        way_out = "give none, balanced, or a number from 0.000001 to 1000000 for each class"
        raise ValueError(f"--class_weights {given} cannot work: {way_out}")
    if names and len(names) != len(words):
        order = ", ".join(names)
        raise ValueError(
            f"--class_weights {given} cannot work: give {len(names)} numbers, one for each class in the order {order}"
        )
