"""The rendezvous: all processes are there before they form a group, and can add up numbers then."""

import math
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch.distributed import PrefixStore, TCPStore

from sst2.config.launcher import Launcher
from sst2.distributed.ranks import cpu_process_group
from sst2.utils.errors import EXIT_FAILED, LostProcessError, end_from_thread
from sst2.utils.waiting import RunningTime, call_with_timeout, deadline, wait_until

_ADVICE = "its own output, or its node's, says why; --connect_timeout waits longer"
_LEEWAY = 15.0  # seconds beyond a time-out, for an attempt to connect and for those that end by themselves


def rendezvous(launcher: Launcher, timeout: float) -> Any:
    """Wait until every process that the launcher promised has come, before any of them joins a process group.

    Returns:
        The store where they have met, with the host of each rank under its number; None for one process.

    Raises:
        LostProcessError: some have not come in `timeout` seconds; it says which.
    """
    if launcher.world_size == 1:
        return None
    host, port = launcher.master
    keeps_store = launcher.rank == 0 and not launcher.keeps_store
    here = f"rank {launcher.rank} on {socket.gethostname()}"
    place = f"{host}:{port} (MASTER_ADDR, MASTER_PORT), where rank 0 should be"

    def give_up() -> None:  # who keeps the store has been stopped: torch's client waits for the answer without a bound
        end_from_thread(EXIT_FAILED, f"error: {here}: the process at {place}, does not answer: {_ADVICE}")

    with deadline(timeout + _LEEWAY, give_up):
        clock = RunningTime()
        try:
            if not keeps_store:
                _wait_for_server(host, port, timeout, clock)
            # multi_tenant: the process group, which is formed at the same place, shares the store
            patience = timedelta(seconds=max(1.0, timeout))
            server = TCPStore(host, port, None, keeps_store, patience, wait_for_workers=False, multi_tenant=True)
            store: Any = PrefixStore(f"sst2.rendezvous.{launcher.attempt}", server)
            store.set(str(launcher.rank), socket.gethostname())
            store.add("count", 1)
        except (OSError, RuntimeError) as error:
            raise LostProcessError(f"{here}: nobody answers at {place}: {_ADVICE} ({error})") from None
        try:
            if not wait_until(lambda: store.add("count", 0) >= launcher.world_size, timeout, clock=clock):
                raise _absence(store, launcher, timeout)
        except RuntimeError:  # who keeps the store has given up first, and has said why
            raise LostProcessError("") from None
    return store


def _wait_for_server(host: str, port: int, timeout: float, clock: RunningTime) -> None:
    """Raises OSError: nobody listens. Asked here, since the store's client fills the log with its attempts."""
    failure = OSError()

    def listens() -> bool:
        nonlocal failure
        try:
            with socket.create_connection((host, port), timeout=5):
                return True
        except OSError as error:
            failure = error
            return False

    if not wait_until(listens, timeout, clock=clock):
        raise failure


def _absence(store: Any, launcher: Launcher, timeout: float) -> LostProcessError:
    here = [rank for rank in range(launcher.world_size) if _has(store, str(rank))]
    missing = [rank for rank in range(launcher.world_size) if rank not in here]
    if launcher.rank != here[0]:
        return LostProcessError("")  # one of those that are there says it for all
    ranks = ", ".join(map(str, missing[:8])) + (" and more" if len(missing) > 8 else "")
    if launcher.local_world_size < launcher.world_size:
        ranks += f" (node {missing[0] // launcher.local_world_size})"
    count = f"{len(missing)} of {launcher.world_size} processes"
    return LostProcessError(f"{count} have not come in {timeout:g} s: rank {ranks}: {_ADVICE}")


def word_of_main(launcher: Launcher, store: Any, word: Callable[[], str]) -> str:
    """What `word` gives on rank 0. All ranks call it, before there is a process group, and meet in `store`."""
    if store is None:
        return word()
    timeout = store.timeout.total_seconds()

    def give_up() -> None:
        end_from_thread(
            EXIT_FAILED, f"error: rank {launcher.rank}: rank 0 has not answered in {timeout:g} s: {_ADVICE}"
        )

    with deadline(timeout, give_up):
        if launcher.rank == 0:
            store.set("word", word())
        try:
            # Asked again and again: a wait in the store's client would end when the job is suspended for long.
            wait_until(lambda: store.check(["word"]), math.inf)
            answer: str = store.get("word").decode()
            return answer
        except RuntimeError:  # rank 0 has ended, and has said why
            raise LostProcessError("") from None


@contextmanager
def all_reduce_check(launcher: Launcher, store: Any, timeout: float) -> Iterator[Callable[[torch.device], None]]:
    """Around the forming of the process group: gives a function to call in it, on all ranks, which adds up a number.

    Where that is not done in `timeout` seconds, the process says which ranks, on which hosts, have not come so far, and
    ends. From a thread, and at once: a process group that does not form cannot be interrupted.
    """
    if store is None:
        yield lambda _: None
        return

    def give_up() -> None:
        nobody_answers = _not_added("nobody answers where all have met", timeout)
        message = call_with_timeout(10, lambda: _why_no_sum(launcher, store, timeout), nobody_answers)
        if not message:
            time.sleep(5)  # who speaks would fail of a rank that is gone before
        end_from_thread(EXIT_FAILED, f"error: {message}" if message else "")

    with deadline(timeout, give_up):
        yield lambda device: _add_up(launcher, store, device)


def _add_up(launcher: Launcher, store: Any, device: torch.device) -> None:
    store.set(f"{launcher.rank} adds", "")
    total = torch.tensor(float(launcher.rank + 1), device=device)
    distributed.all_reduce(total)
    if (group := cpu_process_group()) is not None:  # which meets here for the first time, while somebody watches
        distributed.all_reduce(torch.zeros(1), group=group)
    if not math.isclose(total.item(), launcher.world_size * (launcher.world_size + 1) / 2):
        raise RuntimeError(f"{launcher.world_size} ranks add up to {total.item()}: the communication is broken")


def _why_no_sum(launcher: Launcher, store: Any, timeout: float) -> str:
    """Nothing where another rank says it."""
    if not _has(store, str(launcher.rank)):
        return ""  # who keeps the store has ended, and has said why
    ranks = range(launcher.world_size)
    present = [rank for rank in ranks if _has(store, f"{rank} adds")]
    absent = [rank for rank in ranks if rank not in present]
    with suppress(RuntimeError):
        if store.add("speaks of the first sum", 1) > 1:
            return ""
    if not absent:
        return _not_added(f"all {launcher.world_size} ranks have come to the first sum, but it has not ended", timeout)
    names = [f"rank {rank} on {_host(store, rank)}" for rank in absent[:8]]
    more = " and more" if len(absent) > 8 else ""
    return _not_added(f"{', '.join(names)}{more}: not come to the first sum", timeout)


def _not_added(what: str, timeout: float) -> str:
    return (
        f"{what} in {timeout:g} s: is every node reached by the network interface that NCCL_SOCKET_IFNAME or "
        "GLOO_SOCKET_IFNAME names?"
    )


def _host(store: Any, rank: int) -> str:
    with suppress(RuntimeError):
        host: str = store.get(str(rank)).decode()
        return host
    return "a host out of reach"


def _has(store: Any, key: str) -> bool:
    with suppress(RuntimeError):
        is_there: bool = store.check([key])
        return is_there
    return False
