"""Thousands of odd flags and files of flags, the same at each run: settings come of them, or one line and code 2."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from sst2.config.arguments import OF_ONE_START, SMOKE_RECIPE, given_yaml, parse_arguments, resolved_yaml
from sst2.config.flag_groups import NAMES
from sst2.config.settings import Settings
from sst2.data.batch_plan import plan_batches
from sst2.utils.errors import UserError

COUNT = 3000
VALUES = [
    *"0 -1 1 2 3 010 1.10 1e3 1e400 -0.0 nan inf -inf 0x10 1_000 ½ ٣ $HOME %s {} = a=b !!int &a *a << \udc80".split(),
    *"--seed no yes on off true False null ~ None auto none all sample linear bf16 tensorboard wandb NEGATIVE".split(),
    *"POSITIVE . .. / ~ ~nobody /dev/null /dev/stdin /proc/self/mem x.tsv a/b/c ../.. ü 名前 \U0001f600".split(),
    *("\x1b[31m", "", " ", "[1, 2]", "{a: b}", "a b", "a\tb", "a\nb", "\u2028", "9" * 30, "9" * 5000, "a" * 5000),
]
FORMS: list[Callable[[str, str], str]] = [
    lambda name, value: f"{name}: {value}\n",
    lambda name, value: f"{name}: '{value}'\n",
    lambda name, value: f'{name}: "{value}\\0"\n',
    lambda name, value: f"{name}: [{value}, {value}]\n",
    lambda name, value: f"{name}:\n- {value}\n",
    lambda name, value: f"{name}:\n  {value}: {value}\n",
    lambda name, value: f"{name}: !!{value} {value}\n",
    lambda name, value: f"? {value}\n: {name}\n",
    lambda name, value: f"{name}: &x [*x, {value}]\n",
    lambda name, value: f"--- {value}\n{name}: 1\n",
    lambda name, value: yaml.safe_dump({name: value}),
]


def outcome(words: list[str], capfd: pytest.CaptureFixture[str]) -> Settings | None:
    """The settings; None where they were refused, as a mistake must be."""
    code, settings = 0, None
    try:
        settings = parse_arguments(words)
    except SystemExit as stop:
        code = int(stop.code or 0)
    said = capfd.readouterr()
    if settings is None:
        assert (code, said.out, said.err.count("\n")) == (2, "", 1), (words, said)
        return None
    try:
        settings, plan = plan_batches(settings, 1000, world_size=2)
    except UserError:
        return settings
    assert plan.total_steps >= 1
    return settings


def read_back(settings: Settings, file: Path) -> Settings:
    """What `--config` makes of a run's own file, beside the flags that belong to one start."""
    file.write_text(given_yaml(settings), encoding="utf-8")
    return parse_arguments(["--config", str(file), "--resume_from_checkpoint", "auto"])


@pytest.mark.slow
def test_flags(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    draw = random.Random(0)
    accepted = 0
    for _ in range(COUNT):
        words = []
        for _ in range(draw.choice([1, 1, 2, 3])):
            name, value = draw.choice([*NAMES, "config", "nonsense"]), draw.choice(VALUES)
            words += draw.choice(
                [[f"--{name}", value], [f"--{name}={value}"], [f"--{name}"], [f"--{name}", value, value]]
            )
        settings = outcome(words, capfd)
        if settings is not None:
            accepted += 1
            kept = read_back(settings, tmp_path / "config.yaml")
            changed = {name for name in NAMES if getattr(kept, name) != getattr(parse_arguments(words), name)}
            assert changed <= {*OF_ONE_START}, words
            yaml.safe_load(resolved_yaml(settings))
    assert COUNT // 20 < accepted < COUNT // 2  # both outcomes are tried


@pytest.mark.slow
def test_files_of_flags(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    draw, file, accepted = random.Random(1), tmp_path / "recipe.yaml", 0
    whole = "".join(f"{name}: {value}\n" for name, value in SMOKE_RECIPE.items()).encode()
    for _ in range(COUNT):
        text = "".join(
            draw.choice(FORMS)(draw.choice([*NAMES, "nonsense"]), draw.choice(VALUES))
            for _ in range(draw.choice([1, 1, 2]))
        )
        content = text.encode("utf-8", "surrogateescape")
        if draw.random() < 0.3:  # bytes that change, go or come
            place, size = draw.randrange(len(whole)), draw.randrange(4)
            content = whole[:place] + draw.randbytes(size) + whole[place + draw.randrange(4) :]
        if draw.random() < 0.05:
            content = content.decode("utf-8", "replace").encode(
                draw.choice(["utf-16", "utf-8-sig", "latin-1"]), "replace"
            )
        file.write_bytes(content)
        accepted += outcome(["--config", str(file), "--smoke"], capfd) is not None
    assert COUNT // 20 < accepted < COUNT * 3 // 4
