"""Processes of their own for tests: real ones, started from a server that has the libraries imported already."""

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
# A process then starts in a tenth of a second instead of in five.
CONTEXT.set_forkserver_preload(["tests.support.preloaded"])


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def start(work: Callable[..., Any], *arguments: object) -> tuple[Any, Connection]:
    """Start `work(*arguments)`. Returns the process and the connection that its result will come through."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_report, args=(sender, work, arguments))
    process.start()
    sender.close()
    return process, receiver


def results(work: Callable[..., Any], *arguments: object, count: int = 1) -> list[Any]:
    """What `count` processes return that do the same at the same time."""
    started = [start(work, *arguments) for _ in range(count)]
    answers = [receiver.recv() for _, receiver in started]
    for process, _ in started:
        process.join()
    return answers


def kill_at_change(number: int) -> None:
    """Kill this process with SIGKILL right before it changes the file system for the `number`-th time from now on."""
    changes = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        if event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree") or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        ):
            changes += 1
            if changes == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)  # Python's own report of what it is about to do; it cannot be taken back, so not in pytest


def _report(sender: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    sender.send(work(*arguments))
    sender.close()
