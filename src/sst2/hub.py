"""Failures of the hub, told in one line that says what was asked for and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from sst2.errors import UserError


@contextmanager
def hub_errors(flag: str, name: str) -> Iterator[None]:
    """Turn whatever the libraries raise when `name` cannot be had into a `UserError` that names `flag`."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(f"{flag} {name}: {error}") from None
