"""Waits end in time, and the time of a suspension is not counted."""

import threading
import time

import psutil

from sst2.utils.waiting import RunningTime, call_with_timeout, deadline, wait_until
from tests.support.processes import start


def look_for(seconds: float, longest: float) -> tuple[float, float, float]:
    """Look at the clock until it has run for some seconds. Returns those, and the longest of few and of many last."""
    clock = RunningTime(longest)
    while clock.look() < seconds:
        time.sleep(0.02)
    return clock.seconds, clock.suspended(last=0.0), clock.suspended(last=seconds)


def test_time_in_which_the_process_was_suspended_does_not_count() -> None:
    process, answer = start(look_for, 2.0, 0.5)
    time.sleep(0.5)
    psutil.Process(process.pid).suspend()
    assert not answer.poll(3)
    psutil.Process(process.pid).resume()
    running, just_now, lately = answer.recv()
    assert running < 3
    assert just_now == 0
    assert lately > 2.5


def test_a_wait_ends_with_the_answer_or_with_its_time() -> None:
    answers = iter([False, False, True])
    assert wait_until(lambda: next(answers), 60, pause=0.01)
    assert not wait_until(lambda: False, 0.1)


def test_a_question_without_an_answer_is_left_alone() -> None:
    def fail() -> str:
        raise RuntimeError("the store is gone")

    assert call_with_timeout(60, lambda: "here", "nobody") == "here"
    assert call_with_timeout(60, fail, "nobody") == "nobody"
    assert call_with_timeout(0.1, lambda: str(threading.Event().wait()), "nobody") == "nobody"


def test_a_deadline_is_for_what_has_not_ended() -> None:
    given_up = threading.Event()
    with deadline(0.3, given_up.set):
        pass
    assert not given_up.wait(1)
    with deadline(0.3, given_up.set):
        assert given_up.wait(60)
