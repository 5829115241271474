"""Jobs on all cores, in processes that end with this one."""

import contextlib
import fcntl
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

Tick = Callable[[int], None]  # told how many images were done
Job = Callable[[Any, Tick], None]  # does one item, ticking as it goes

_LOOK = 0.2  # seconds between two looks at how far the processes are


class Count(NamedTuple):
    """Images done by all processes; the lock is for adding to it, since one that dies may take the lock along."""

    total: Any
    lock: Any


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def locked(path: pathlib.Path, kind: int) -> Iterator[None]:
    """Holds a lock of a file, which the system lets go of when the process ends, however it ends.

    Args:
      path: the file; made where needed.
      kind: of :func:`fcntl.flock`.

    Raises:
      BlockingIOError: ``kind`` has LOCK_NB and another process holds the lock.
    """
    with path.open("w") as file:
        fcntl.flock(file, kind)
        yield


def run(job: Job, items: Sequence[Any], workers: int, tick: Tick, busy: pathlib.Path) -> None:
    """Does ``job`` for every item, in any order.

    Args:
      job: pickled once for every process.
      items: pickled one by one.
      workers: processes, at most one per item; 1 for this one.
      tick: called in this process.
      busy: file that every process holds a shared lock of while it lives.

    Raises:
      ChildProcessError: a process died. An error of the job is raised as it is; the other processes end at once.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        for item in items:
            job(item, tick)
        return
    # Not fork: the caller may hold JAX's threads.
    context = multiprocessing.get_context("forkserver")
    done = Count(context.RawValue("q", 0), context.Lock())
    leash, hold = context.Pipe(duplex=False)
    pool = futures.ProcessPoolExecutor(workers, context, _begin, (job, leash, done, busy))
    try:
        waiting = {pool.submit(_work, item) for item in items}
        told = 0
        while waiting:
            finished, waiting = futures.wait(waiting, _LOOK, futures.FIRST_COMPLETED)
            for future in finished:
                future.result()
            now = done.total.value
            tick(now - told)
            told = now
        pool.shutdown()
    except BrokenProcessPool:
        raise ChildProcessError(
            "a worker process died, most likely for want of memory; with fewer workers the same command goes on from "
            "what is finished"
        ) from None
    finally:
        hold.close()  # ends at once what has not ended
        pool.shutdown(cancel_futures=True)


# Of a worker process: the job, and the count that it shares with the others.
_JOB: list[Job] = []
_DONE: list[Count] = []


def _begin(job: Job, leash: Connection, done: Count, busy: pathlib.Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent answers for all
    file = busy.open("w")
    fcntl.flock(file, fcntl.LOCK_SH)
    threading.Thread(target=_end_with, args=(leash, file), daemon=True).start()
    _JOB.append(job)
    _DONE.append(done)


def _end_with(leash: Connection, *_: Any) -> None:
    """Ends this process when the other end of the pipe is closed, which the parent's death does too."""
    with contextlib.suppress(EOFError, OSError):
        leash.recv_bytes()
    os._exit(1)


def _count(n: int) -> None:
    with _DONE[0].lock:
        _DONE[0].total.value += n


def _work(item: Any) -> None:
    _JOB[0](item, _count)
