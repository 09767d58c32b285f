"""`--help` of a run: readable, each flag once; and docs/reference.md, which says the same."""

import runpy
from pathlib import Path

import pytest

from sst2.__main__ import parser_of
from sst2.config.arguments import settings_of
from sst2.config.flag_groups import EXAMPLES, GROUPS, NAMES
from sst2.config.run_flags import FlagParser
from tests.support.running import REPOSITORY


@pytest.fixture(params=[80, 120])
def shown(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """A terminal's width, and the help there."""
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param, FlagParser("train_sst2.py", "Fine-tune.").format_help()


def test_help_names_each_flag_once_within_the_width(shown: tuple[int, str]) -> None:
    width, text = shown
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    begin = [line.split()[0] for line in lines if line.startswith("  --")]
    assert sorted(begin) == sorted(f"--{name}" for name in [*NAMES, "config"])
    assert "-" not in "".join(word.lstrip("-") for word in begin)


def test_help_has_defaults_as_they_are_typed_choices_and_an_example_a_group(shown: tuple[int, str]) -> None:
    text = " ".join(shown[1].split())
    assert "--learning_rate LR peak learning rate of AdamW (default: 2e-5)" in text
    assert "(default: tensorboard)" in text
    assert "one of linear, cosine, constant, constant_with_warmup, inverse_sqrt (default: linear)" in text
    assert "--smoke embedded sample" in text  # without a value
    for group in GROUPS:
        assert f"{group._argument_group_name}: example: {group._example} --" in text


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_a_group_can_be_given(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("train.csv", "dev.csv"):
        Path(file).write_text("sentence,label\nfine,1\n")
    parser = FlagParser("train_sst2.py", "")
    given = parser.given(EXAMPLES[name].split())
    settings_of(parser, given)
    (group,) = (group for group in parser._action_groups if group.title == name)
    assert {*given} & {action.dest for action in group._group_actions}


def test_the_reference_is_written_from_the_parsers() -> None:
    written = runpy.run_path(str(REPOSITORY / "docs" / "flags.py"))
    assert written["PAGE"].read_text(encoding="utf-8") == written["page"](), "run python docs/flags.py"
    assert all(f"| `--{name}` |" in written["page"]() for name in NAMES)


def test_the_reference_says_of_the_flags_of_a_run_alone_what_only_these_take() -> None:
    page = (REPOSITORY / "docs" / "reference.md").read_text(encoding="utf-8")
    head, of_a_run = page.split("## Flags of a run")
    for words in ("`true` and `false`", "Hyphens", "`--config`"):
        assert words not in head
        assert words in of_a_run


@pytest.mark.parametrize("command", ["predict", "export", "compare", "sweep", "doctor"])
def test_what_stands_behind_a_flag_has_a_word_of_its_own(command: str) -> None:
    """Else help has the flag's own name in capitals, and tab completion does not know which are paths."""
    actions = [action for action in parser_of(command)._actions if action.option_strings and action.nargs != 0]
    assert [action.dest for action in actions if not (action.metavar or action.choices)] == []
