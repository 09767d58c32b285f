"""Passwords and tokens are taken out of messages, whoever logs them."""

import io
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from sst2.config.command_line import OneLineParser
from sst2.utils.errors import UserError
from sst2.utils.redaction import redact, redact_logging


@pytest.fixture
def factory() -> Iterator[None]:
    before = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(before)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GET http://me:secret@hub.org/api failed", "GET http://***@hub.org/api failed"),
        ("'https://me:se@cret@hub.org:8080'", "'https://***@hub.org:8080'"),
        ("proxy socks5h://token@proxy.org, then", "proxy socks5h://***@proxy.org, then"),
        ("https://hub.org/a@b mail me@hub.org", "https://hub.org/a@b mail me@hub.org"),
        ("Bearer hf_abcdefgh!", "Bearer ***!"),
        ("key 0123456789", "key ***"),
        ("on no account", "on no account"),  # a value too short to be a secret
        ("pass1 key-of-clearml key-of-azure", "*** *** ***"),
        ("AccountKey=x;at=y of p4ss", "*** of ***"),
        ("open http:/me:secret@hub.org/a.yaml", "open http:/***@hub.org/a.yaml"),  # as a path
        ("false positives of tokens", "false positives of tokens"),
    ],
)
def test_user_and_password_of_addresses_and_secret_variables_are_masked(
    text: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789")
    monkeypatch.setenv("SOME_PASSWORD", "no")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pass1")
    monkeypatch.setenv("CLEARML_API_SECRET_KEY", "key-of-clearml")
    monkeypatch.setenv("AZURE_STORAGE_KEY", "key-of-azure")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountKey=x;at=y")
    monkeypatch.setenv("DB_PASS", "p4ss")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "positives")  # which is no secret
    assert redact(text) == expected


@pytest.mark.usefixtures("factory")
def test_a_librarys_messages_are_redacted_as_well() -> None:
    redact_logging()
    stream, library = io.StringIO(), logging.getLogger("some.library")
    handler = logging.StreamHandler(stream)
    library.addHandler(handler)
    library.warning("%s thrown while requesting %s", "timeout", "http://me:secret@hub.org/api")
    library.removeHandler(handler)
    assert stream.getvalue() == "timeout thrown while requesting http://***@hub.org/api\n"


@pytest.mark.usefixtures("factory")
def test_a_traceback_in_the_log_is_redacted() -> None:
    redact_logging()
    stream, library = io.StringIO(), logging.getLogger("some.library")
    handler = logging.StreamHandler(stream)
    library.addHandler(handler)
    try:
        raise OSError("GET http://me:" + "secret@hub.org/api")
    except OSError:
        library.exception("not sent")
    library.removeHandler(handler)
    assert stream.getvalue().startswith("not sent\nTraceback (most recent call last):\n")
    assert stream.getvalue().endswith("OSError: GET http://***@hub.org/api\n")


def test_tracebacks_are_redacted() -> None:
    code = """if True:
        from sst2.utils.errors import exit_codes
        with exit_codes("program"):
            raise AssertionError("http://me:" + "secret@hub.org")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("AssertionError: http://***@hub.org\n")


@pytest.mark.parametrize("words", [["--hub_token=hf_abcdefgh"], ["--hub_token", "hf_abcdefgh"]])
def test_the_value_of_an_unknown_flag_is_not_repeated(words: list[str]) -> None:
    parser = OneLineParser(prog="program")
    with pytest.raises(UserError) as caught:
        parser.parse_args(words)
    assert str(caught.value) == "--hub_token is not a flag; --help lists all flags"


def test_a_misspelled_or_shortened_flag_is_named_with_the_one_that_is_meant() -> None:
    parser = OneLineParser(prog="program")
    parser.add_argument("--folder")
    for flag in ("--fold", "--foldre"):
        with pytest.raises(UserError, match=f"^{flag} is not a flag, did you mean --folder\\?; --help"):
            parser.parse_args([flag, "runs"])
