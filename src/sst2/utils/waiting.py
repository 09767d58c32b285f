"""Waits that end: each has a bound, and time in which the process was suspended does not count.

`scontrol suspend`, Ctrl-Z and `docker pause` stop a process for hours, and clocks go on. A thread that looks at the
clock often can tell: between two of its looks far more time has passed than it takes from one to the next.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Answer = TypeVar("Answer")

_LONGEST_QUESTION = 6.0  # seconds from one question of `wait_until` to the next: an attempt to connect may take five


class RunningTime:
    """The seconds that this process has been running, as its user sees by looking often.

    Args:
        longest: seconds from one look to the next; of more than that, the rest was a suspension.

    Attributes:
        seconds: time running, up to the last look.
    """

    def __init__(self, longest: float = _LONGEST_QUESTION) -> None:
        self.seconds = 0.0
        self._longest = longest
        self._looked = time.monotonic()
        self._suspensions: deque[tuple[float, float]] = deque(maxlen=100)  # when, in `seconds`, and for how long

    def look(self) -> float:
        """Bring `seconds` up to date, and return them."""
        now = time.monotonic()
        passed, self._looked = now - self._looked, now
        self.seconds += min(passed, self._longest)
        if passed > self._longest:
            self._suspensions.append((self.seconds, passed))
        return self.seconds

    def suspended(self, last: float) -> float:
        """The length of the longest suspension in the `last` seconds of running; 0 without any."""
        self.look()
        return max((length for at, length in self._suspensions if at >= self.seconds - last), default=0.0)


def wait_until(
    condition: Callable[[], bool], seconds: float, pause: float = 0.1, clock: RunningTime | None = None
) -> bool:
    """Ask every `pause` seconds until the answer is yes, for as long as `seconds`. Returns whether it was.

    Args:
        condition: answers in five seconds at most.
        seconds: to go on asking, `math.inf` for ever.
        pause: seconds between two questions.
        clock: counts the seconds; with that of an earlier wait, both share them.
    """
    clock = clock or RunningTime()
    while not condition():
        if clock.look() > seconds:
            return False
        time.sleep(pause)
    return True


def call_with_timeout(seconds: float, work: Callable[[], Answer], otherwise: Answer) -> Answer:
    """What `work` returns; `otherwise` where it fails or takes longer, and then its thread is left waiting."""
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()

    def answer() -> None:
        try:
            answers.put(work())
        except (RuntimeError, OSError):  # of torch's store: whoever keeps it is gone; of a disk
            answers.put(otherwise)

    threading.Thread(target=answer, name="question", daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return otherwise


@contextmanager
def deadline(seconds: float, give_up: Callable[[], object]) -> Iterator[None]:
    """Have `give_up` called, in a thread, if what is done in this context has not ended in `seconds`."""
    done = threading.Event()

    def watch() -> None:
        if not wait_until(done.is_set, seconds):
            give_up()

    threading.Thread(target=watch, name="deadline", daemon=True).start()
    try:
        yield
    finally:
        done.set()
