"""Passwords and tokens taken out of what is printed, logged or written.

Libraries quote in their messages the addresses that they ask, with the password in HF_ENDPOINT or in a proxy's address,
and the headers that they send. Such messages end in train.log, which is shared more freely than an environment.
"""

import logging
import math
import os
import re
import traceback
from typing import Any

MASK = "***"

# As far as the last @ before the path: a password may hold one. One slash is what is left of two in a path.
_USER_INFO = re.compile(r"(:/{1,2})[^/\s\"'<>]+(?=@)")
_PASSWORD_NAME = re.compile(r"(PASSWORD|PASSWD|_PASS)$", re.IGNORECASE)
_SECRET_NAME = re.compile(
    r"(TOKEN|SECRET|(API|ACCESS|SECRET|STORAGE|ACCOUNT|PRIVATE)_?KEY|CREDENTIALS?|CONNECTION_STRING)$", re.IGNORECASE
)
_SHORTEST = 8  # characters of a value that is searched for: a shorter one might be any word
_SHORTEST_PASSWORD = 4  # people choose these


def redact(text: str) -> str:
    """The text without the user and password of any URL, and without the value of any variable that holds a secret.

    A variable counts as secret by its name: HF_TOKEN, WANDB_API_KEY, MLFLOW_TRACKING_PASSWORD.
    """
    for name, value in os.environ.items():
        if value in text and len(value) >= _shortest_secret(name):
            text = text.replace(value, MASK)
    return _USER_INFO.sub(rf"\1{MASK}", text)


def _shortest_secret(variable: str) -> float:
    """Characters from which on the value of a variable is a secret; infinite where it is none."""
    if _PASSWORD_NAME.search(variable):
        return _SHORTEST_PASSWORD
    return _SHORTEST if _SECRET_NAME.search(variable) else math.inf


class _RedactedRecord(logging.LogRecord):
    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        if self.exc_info and self.exc_info[0]:
            # handlers print what stands here, and format nothing of their own
            self.exc_text = redact("".join(traceback.format_exception(*self.exc_info)).rstrip("\n"))

    def getMessage(self) -> str:  # noqa: N802 (logging's name)
        return redact(super().getMessage())


def redact_logging() -> None:
    """Have every logger of this process, the libraries' as well, log redacted messages, whoever handles them."""
    logging.setLogRecordFactory(_RedactedRecord)
