"""Model folders changed at random, always by the same seed: predicted as `pipeline` does, or refused in one line."""

import json
import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.models.test_odd_checkpoints import Predict, assert_one_line, by_pipeline, predict
from tests.support.odd_checkpoints import FAST, NAMED, Form

__all__ = ["predict"]  # a fixture

FORMS = [
    Form(settings=NAMED),
    Form("WordPiece cased", {"do_lower_case": False}, files="vocab.txt"),
    Form("byte-level BPE", FAST),
    Form("Unigram", FAST),
]
VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    1,
    7,
    0.5,
    10**6,
    "",
    "x",
    "0",
    "../x",
    "\ud800",
    [],
    [1],
    ["x"],
    {},
    {"x": 1},
    [[]],
]
FOLDERS = 300


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """All containers in a JSON value, each with each of its keys; of a long one, some."""
    keys = [*value] if isinstance(value, dict) else [*range(len(value))] if isinstance(value, list) else []
    for key in keys[:40]:
        yield value, key
        yield from places(value[key])


def change_json(text: str, draw: random.Random) -> str:
    """Replace, remove or rename one entry, or put another value in place of all."""
    value = json.loads(text)
    if draw.random() < 0.05:
        return json.dumps(draw.choice(VALUES))
    container, key = draw.choice([*places(value)])
    kind = draw.random()
    if kind < 0.7:
        container[key] = draw.choice(VALUES)
    elif kind < 0.9 or not isinstance(container, dict):
        del container[key]
    else:
        container[f"{key}x"] = container.pop(key)
    return json.dumps(value)


def change_bytes(content: bytes, draw: random.Random) -> bytes:
    """Cut it short, empty it, turn a bit, or put something before it."""
    place = draw.randrange(len(content))
    return draw.choice(
        [content[:place], b"", bytes([*content[:place], content[place] ^ 4, *content[place + 1 :]]), b"\xff" + content]
    )


def change(folder: Path, draw: random.Random) -> str:
    """Change a file of the folder. Returns what was done."""
    file = draw.choice([path for path in sorted(folder.iterdir()) if path.suffix != ".txt"])
    kind = draw.random()
    if kind < 0.05:
        file.unlink()
        return f"{file.name} removed"
    if kind < 0.2:
        file.write_bytes(change_bytes(file.read_bytes(), draw))
        return f"bytes of {file.name}"
    if file.suffix == ".json":
        file.write_text(change_json(file.read_text(), draw))
        return f"values of {file.name}"
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = change_json(content[8 : 8 + size].decode(), draw).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])
    return "header of the weights"


def answers_of_pipeline(model: Path) -> list[float] | None:
    """None where it cannot load the folder, or answers with no probabilities of two classes."""
    try:
        answers: list[float] = by_pipeline(model)
        return answers
    except Exception:
        return None


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_mutated_folders_are_predicted_as_pipeline_does_or_refused(predict: Predict, tmp_path: Path) -> None:
    originals = [form.write(tmp_path / f"original-{number}") for number, form in enumerate(FORMS)]
    draw, wrong, refused, model = random.Random(15), [], 0, tmp_path / "model"
    for number in range(FOLDERS):
        shutil.rmtree(model, ignore_errors=True)
        shutil.copytree(draw.choice(originals), model)
        what = f"{number}: {change(model, draw)}"
        try:
            code, probabilities, said = predict(model)
            if code == 0:
                expected = answers_of_pipeline(model)
                wrong += [what] * (expected is not None and probabilities != pytest.approx(expected, abs=1e-5))
            else:
                assert code == 2, said[-1500:]
                before, last = said.rsplit("\n", 2)[-3:-1] if said.count("\n") > 1 else ("", said)
                assert "Traceback" not in before, said
                assert_one_line(f"{last.strip()}\n", "MODEL")
                refused += 1
        except Exception as error:
            wrong.append(f"{what}: {type(error).__name__} {str(error)[-1500:]}")
    assert wrong == []
    assert FOLDERS / 4 < refused < FOLDERS
