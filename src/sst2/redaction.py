"""Passwords and tokens taken out of what is printed, logged or written.

Libraries quote in their messages the addresses that they ask, with the password in HF_ENDPOINT or in a proxy's address,
and the headers that they send. Such messages end in train.log, which is shared more freely than an environment.
"""

import logging
import os
import re

MASK = "***"

_USER_INFO = re.compile(r"(?<=://)[^/\s\"'<>]+(?=@)")  # as far as the last @ before the path: a password may hold one
_SECRET_NAME = re.compile(r"(TOKEN|PASSWORD|PASSWD|SECRET|API_?KEY|ACCESS_KEY|CREDENTIALS?)$", re.IGNORECASE)
_SHORTEST = 8  # characters of a value that is searched for: a shorter one might be any word


def redact(text: str) -> str:
    """The text without the user and password of any URL, and without the value of any variable that holds a secret.

    A variable counts as secret by its name: HF_TOKEN, WANDB_API_KEY, MLFLOW_TRACKING_PASSWORD.
    """
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _SECRET_NAME.search(name) and value in text:
            text = text.replace(value, MASK)
    return _USER_INFO.sub(MASK, text)


class _RedactedRecord(logging.LogRecord):
    def getMessage(self) -> str:  # noqa: N802 (logging's name)
        return redact(super().getMessage())


def redact_logging() -> None:
    """Have every logger of this process, the libraries' as well, log redacted messages, whoever handles them."""
    logging.setLogRecordFactory(_RedactedRecord)
