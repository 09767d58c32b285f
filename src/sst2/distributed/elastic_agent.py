"""torchrun's agent of one machine, which starts all ranks again where that can help, and agrees on it with the others.

By itself it starts again also what has stopped on request or was refused, each machine counts for itself how often, and
the ranks of a new attempt meet in the store of the last one, where they may take its addresses for their own (torch
2.13; pytorch issue 135712).
"""

import os
import queue
import signal
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch.distributed import Store, TCPStore
from torch.distributed.elastic.agent.server.api import RunResult, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

from sst2.config.launcher import LAUNCH
from sst2.utils.errors import EXIT_DIVERGED, EXIT_FAILED, EXIT_STOPPED, EXIT_USER_ERROR, print_line
from sst2.utils.waiting import wait_until

# What a machine says of an attempt that has ended there: it failed and may start again, or not; or it finished, and
# waits for the others, or does not.
AGAIN, NO_MORE, DONE, LEFT = "again", "no more", "done", "left"
_QUIT = (-signal.SIGQUIT, 128 + signal.SIGINT)  # by hand, the second after a second Ctrl-C
_FINAL = (0, EXIT_USER_ERROR, EXIT_DIVERGED, EXIT_STOPPED, *_QUIT)
_OF_SIGTERM = (EXIT_STOPPED, -signal.SIGTERM, -signal.SIGKILL)  # what the agent's own request to end leads to
_SECONDS_TO_END = 120.0  # in which the ranks of all machines end when one has failed: their agents kill them after 30
_SECONDS_TO_FINISH = 300.0  # for which a machine whose ranks have finished waits for the others, as torch's agent does
_SECONDS_TO_SAY = 10.0


def can_help(code: int) -> bool:
    """Whether another start may end differently than one that ended with this exit code."""
    return code not in _FINAL


def in_words(code: int) -> str:
    """An exit code as `subprocess` has it: `exit code 1`, or `SIGKILL` for -9."""
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"exit code {code}"


class RestartingAgent(LocalElasticAgent):
    """Runs the ranks of this machine; with `max_restarts`, all machines start theirs again when one has lost a rank.

    Args:
        arguments: of `LocalElasticAgent`, as torchrun gives them.
        is_stopping: whether somebody has asked the job to stop; then nothing is started again.
        started: called when the ranks of an attempt have been started.
        options: of `LocalElasticAgent`.
    """

    def __init__(
        self, *arguments: Any, is_stopping: Callable[[], bool], started: Callable[[], object], **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._is_stopping, self._started = is_stopping, started
        self._outcomes: Outcomes | None = None
        self._server: TCPStore | None = None
        self._ended: set[int] | None = None

    @property
    def _attempt(self) -> int:
        return self._worker_group.spec.max_restarts - self._remaining_restarts

    def _rendezvous(self, worker_group: Any) -> None:
        """Have the ranks of each new attempt meet in a store of its own, kept by the agent of the first machine."""
        super()._rendezvous(worker_group)
        if self._attempt == 0 or not worker_group.spec.rdzv_handler.use_agent_store:
            return
        store, key = worker_group.store, f"sst2.port.{self._attempt}"
        if worker_group.group_rank == 0:
            self._server = TCPStore(worker_group.master_addr, 0, is_master=True, wait_for_workers=False)
            store.set(key, str(self._server.port))
        worker_group.master_port = int(store.get(key))

    def _start_workers(self, worker_group: Any) -> dict[int, Any]:
        store, size = worker_group.store, worker_group.group_world_size
        if worker_group.spec.max_restarts:
            if self._attempt == 0:  # by which a later attempt knows that a run is the job's own
                os.environ[LAUNCH] = store.compare_set("sst2.launch", "", uuid.uuid4().hex).decode()
            self._outcomes = Outcomes(store, self._attempt, size) if size > 1 else None
        started: dict[int, Any] = super()._start_workers(worker_group)
        self._note_who_ends_first()
        self._started()
        return started

    def _note_who_ends_first(self) -> None:
        """Have `_ended` hold the local ranks that have ended when the others are about to be asked to.

        A look at them before `_monitor_workers` could come too early: it looks itself, and asks within the same call.
        """
        context, self._ended = self._pcontext, None
        assert context is not None
        close = context._close

        def close_noting(*arguments: Any, **options: Any) -> None:
            if self._ended is None:
                handlers = getattr(context, "subprocess_handlers", {})
                self._ended = {rank for rank, handler in handlers.items() if handler.proc.poll() is not None}
            close(*arguments, **options)

        vars(context)["_close"] = close_noting

    def _monitor_workers(self, worker_group: Any) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        self._leave_out(result)
        if worker_group.spec.max_restarts == 0:
            return result
        if result.state is WorkerState.HEALTHY:
            if self._outcomes is None or not self._outcomes.has_failed:
                return result
            self._stop_workers(worker_group)
            result = super()._monitor_workers(worker_group)
            self._leave_out(result)
        return self._agreed(result)

    def _leave_out(self, result: RunResult) -> None:
        """Leave out what ranks have ended with because this agent has ended them, when another had failed.

        `result` is that of `_monitor_workers`, which ends all ranks of the machine as soon as one has failed.
        """
        for failure in result.failures.values():
            if (
                failure.local_rank not in (self._ended or ())
                and failure.exitcode in _OF_SIGTERM
                and not self._is_stopping()
            ):
                failure.exitcode = EXIT_FAILED

    def _agreed(self, result: RunResult) -> RunResult:
        """The result of an attempt that has ended here, by what all machines say of it."""
        has_succeeded = result.state is WorkerState.SUCCEEDED
        codes = {rank: failure.exitcode for rank, failure in result.failures.items()}
        may_restart = self._remaining_restarts > 0 and all(map(can_help, codes.values()))
        if may_restart and self._is_stopping():
            may_restart = False
            for failure in result.failures.values():  # whoever starts the job again goes on as after any other stop
                failure.exitcode = EXIT_STOPPED
        own = ((DONE, LEFT) if has_succeeded else (AGAIN, NO_MORE))[0 if may_restart else 1]
        restarts = self._outcomes.exchange(own) if self._outcomes else own == AGAIN
        if not restarts:
            self._remaining_restarts = 0
            return result
        # Ranks that only lost another one, or that this agent has ended, fail beside the one that was killed.
        telling = {rank: code for rank, code in codes.items() if code != EXIT_FAILED} or codes
        why = ", ".join(f"rank {rank}: {in_words(code)}" for rank, code in sorted(telling.items()))
        count = f"{self._attempt + 1} of {self._worker_group.spec.max_restarts}"
        print_line(f"sst2 launch: {why or 'a rank of another machine has failed'}: restart {count} of all ranks")
        return RunResult(state=WorkerState.FAILED, failures=result.failures)


class Outcomes:
    """How an attempt ends on each machine, counted in the store of their agents.

    torch's client waits without a bound for the answer of a server that has been stopped: only a thread asks.

    Args:
        store: of the agents.
        attempt: how often the ranks have been started before.
        size: number of machines.
    """

    def __init__(self, store: Store, attempt: int, size: int) -> None:
        self._store, self._attempt, self._size = store, attempt, size
        self._counts = dict.fromkeys((AGAIN, NO_MORE, DONE, LEFT), 0)
        self._to_say: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._is_lost = False
        self._thread = threading.Thread(target=self._keep_asking, name="outcomes", daemon=True)
        self._thread.start()

    @property
    def has_failed(self) -> bool:
        """Whether the attempt has failed on a machine that would start again."""
        return self._counts[AGAIN] > 0

    def exchange(self, own: str) -> bool:
        """Say how the attempt has ended here, and wait for the others.

        Returns:
            Whether all machines start again: one of them has failed, and all have agreed in time.
        """
        self._to_say.put(own)
        patience = {AGAIN: _SECONDS_TO_END, DONE: _SECONDS_TO_FINISH}.get(own, _SECONDS_TO_SAY)
        is_decided = wait_until(lambda: self._is_decided, patience)
        if self._is_lost and own == AGAIN:
            print_line("sst2 launch: the launcher of machine 0 has ended: nothing is started again")
        restarts = is_decided and not self._is_final and self._counts[AGAIN] > 0
        if not is_decided:
            if own == AGAIN:  # where ranks have finished, others may well take longer: they export, and upload
                missing = self._size - max(1, sum(self._counts.values()))  # this one has answered
                print_line(
                    f"sst2 launch: {missing} of {self._size} machines have not said within {patience:.0f} s how the "
                    "ranks ended there: see to them, and start the job again"
                )
            self._to_say.put(LEFT)
            wait_until(lambda: self._is_final, _SECONDS_TO_SAY)
        self._to_say.put("")
        self._thread.join(_SECONDS_TO_SAY)  # C++ ends the process in which Python ends while a thread is in the store
        return restarts

    @property
    def _is_final(self) -> bool:
        return self._is_lost or self._counts[NO_MORE] + self._counts[LEFT] > 0

    @property
    def _is_decided(self) -> bool:
        return self._is_final or sum(self._counts.values()) == self._size

    def _keep_asking(self) -> None:
        word: str | None = None
        try:
            while word != "":
                word = None
                with suppress(queue.Empty):
                    word = self._to_say.get(timeout=0.1 if self.has_failed else 1.0)
                if word:
                    self._store.add(self._key(word), 1)
                self._counts = {each: self._store.add(self._key(each), 0) for each in self._counts}
        except RuntimeError:  # whoever keeps the store is gone
            self._is_lost = True

    def _key(self, word: str) -> str:
        return f"sst2.outcome.{self._attempt}.{word}"
