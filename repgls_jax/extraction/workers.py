"""Chunks of reports through a backend, in this process or in several; each chunk leaves a part.

Worker processes are given the backend's name and plain settings and make their own backend. They end when the parent
does, however it ends, so that none is left holding a GPU.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any, Protocol

from repgls_jax import findings as findings_lib
from repgls_jax import sidecars
from repgls_jax.extraction import backends, parts
from repgls_jax.extraction.source import Report
from repgls_jax.reports import engine as engine_lib

_AHEAD = 2  # chunks that wait, per worker


@dataclasses.dataclass(frozen=True)
class Task:
    """What every process needs to make its backend.

    Attributes:
      backend: see :func:`repgls_jax.extraction.backends.load`.
      settings: the backend's settings by name; plain values, so that unpickling them imports no module of a model.
      vocabulary: findings to give evidence for.
    """

    backend: str
    settings: dict[str, Any]
    vocabulary: findings_lib.Vocabulary

    def make(self) -> backends.Backend:
        """The backend."""
        settings = backends.settings_of(self.backend, self.settings)
        return backends.make(self.backend, self.vocabulary, settings)


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Consecutive reports, and the file that their part is written to.

    Attributes:
      path: of the part.
      reports: with study_id.
      hashes: :func:`report_hash` of each.
    """

    path: pathlib.Path
    reports: list[Report]
    hashes: list[str]

    @property
    def digest(self) -> str:
        """See :func:`repgls_jax.extraction.parts.digest_of`."""
        return parts.digest_of([report["study_id"] for report in self.reports], self.hashes)


@dataclasses.dataclass(frozen=True)
class Job:
    """A chunk to be read, or its part from an earlier run.

    Attributes:
      work: one of the two.
      share: of all reports up to the end of this chunk, [0, 1].
    """

    work: Chunk | parts.Part
    share: float


class Readers(Protocol):
    """What reads chunks.

    Attributes:
      identity: labeller, version, prompt_hash and chunk of the backend.
    """

    identity: dict[str, Any]

    def read(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, parts.Part]]:
        """The part of every job, in order; only a few chunks are held at a time."""
        ...


def report_hash(report: Mapping[str, str]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a report's fields."""
    text = "\0".join(report.get(field) or "" for field in engine_lib.FIELDS)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def identity_of(backend: backends.Backend) -> dict[str, Any]:
    """What tells the parts of one backend from those of another, and its chunk."""
    return {name: getattr(backend, name) for name in ("labeller", "version", "prompt_hash", "chunk")}


def read_chunk(chunk: Chunk, backend: backends.Backend, vocabulary: findings_lib.Vocabulary) -> parts.Part:
    """Reads a chunk and writes its part."""
    counts = {"reports": 0, "empty": 0, "truncated": 0}
    faults = []
    rows: list[tuple[Any, ...]] = []
    provenance = (backend.labeller, backend.version, backend.prompt_hash)
    for report, digest, answer in zip(chunk.reports, chunk.hashes, backend.read(chunk.reports), strict=True):
        study = report["study_id"]
        if isinstance(answer, backends.Fault):
            faults.append((study, answer.reason))
            continue
        texts = [report.get(field) or "" for field in engine_lib.FIELDS]
        counts["reports"] += 1
        counts["empty"] += not any(text.strip() for text in texts)
        counts["truncated"] += backend.cuts(report)
        for e in answer:
            read = (e.finding, e.state, e.p, e.cue, e.section)
            place = (e.field, e.start, e.end, e.mention_start, e.mention_end, e.cue_start, e.cue_end)
            rows.append((study, *read, *place, *provenance, digest))
    values = list(zip(*rows, strict=True)) or [()] * len(sidecars.EVIDENCE.names)
    columns = dict(zip(sidecars.EVIDENCE.names, values, strict=True))
    counts["rows"] = len(rows)
    for state in (findings_lib.POSITIVE, findings_lib.NEGATIVE, findings_lib.UNCERTAIN):
        counts[findings_lib.STATES[state]] = columns["state"].count(state)
    part = parts.Part(chunk.digest, counts, faults)
    parts.write(chunk.path, columns, part, vocabulary)
    return part


@contextlib.contextmanager
def start(task: Task, workers: int) -> Iterator[Readers]:
    """Readers in this process, or in ``workers`` others if that is more than 1.

    Raises:
      ValueError: the backend cannot be made, or needs more GPUs than there are.
      ChildProcessError: a worker process died.
    """
    if workers == 1:
        yield _Here(task)
        return
    context = multiprocessing.get_context("spawn")
    devices = context.SimpleQueue()
    for device in _devices(task, workers):
        devices.put(device)
    leash, hold = context.Pipe(duplex=False)
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, _begin, (task, leash, devices))
    try:
        yield _Several(pool, workers)
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a worker process died, most likely for want of memory; with fewer workers the same command goes on "
            "from the parts that are finished"
        ) from error
    except BaseException:
        hold.close()  # ends the workers at once; what they were reading is lost, no more
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        hold.close()


class _Here:
    """Reads in this process."""

    def __init__(self, task: Task) -> None:
        self._backend, self._vocabulary = task.make(), task.vocabulary
        self.identity = identity_of(self._backend)

    def read(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, parts.Part]]:
        for job in jobs:
            if isinstance(job.work, parts.Part):
                yield job, job.work
            else:
                yield job, read_chunk(job.work, self._backend, self._vocabulary)


class _Several:
    """Reads in the processes of a pool."""

    def __init__(self, pool: concurrent.futures.Executor, workers: int) -> None:
        self._pool, self._workers = pool, workers
        # Asked of a worker: a backend made here as well would take a GPU for nothing.
        self.identity = pool.submit(_identity).result()

    def read(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, parts.Part]]:
        waiting: collections.deque[tuple[Job, concurrent.futures.Future[parts.Part] | parts.Part]] = collections.deque()
        for job in jobs:
            waiting.append((job, job.work if isinstance(job.work, parts.Part) else self._pool.submit(_read, job.work)))
            if len(waiting) > _AHEAD * self._workers:
                yield self._first(waiting)
        while waiting:
            yield self._first(waiting)

    @staticmethod
    def _first(waiting: collections.deque[Any]) -> tuple[Job, parts.Part]:
        job, work = waiting.popleft()
        return job, work if isinstance(work, parts.Part) else work.result()


def _devices(task: Task, workers: int) -> list[str]:
    """A GPU for every worker; none where the backend needs none or the machine has none."""
    settings_class, _ = backends.load(task.backend)
    if not getattr(settings_class, "needs_device", False):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        # A container numbers its GPUs from 0, whichever of the machine's they are.
        names = [str(i) for i, _ in enumerate(pathlib.Path("/dev").glob("nvidia[0-9]*"))]
    else:
        names = [name for name in visible.split(",") if name.strip()]
    if names and len(names) < workers:
        raise ValueError(f"workers is {workers} but there are {len(names)} GPUs; each worker needs one of its own")
    return names[:workers]


# Of a worker process: its task, and the backend once it is made.
_TASK: list[Task] = []
_BACKEND: list[backends.Backend] = []


def _begin(task: Task, leash: Connection, devices: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent answers for all
    threading.Thread(target=_end_with, args=(leash,), daemon=True).start()
    if not devices.empty():
        os.environ["CUDA_VISIBLE_DEVICES"] = devices.get()
    # The backend is made with the first chunk: an error here would not reach the parent.
    _TASK.append(task)


def _end_with(leash: Connection) -> None:
    """Ends this process when the other end of the pipe is closed, which the parent's death does too."""
    with contextlib.suppress(EOFError, OSError):
        leash.recv_bytes()
    os._exit(1)


def _made() -> backends.Backend:
    if not _BACKEND:
        _BACKEND.append(_TASK[0].make())
    return _BACKEND[0]


def _identity() -> dict[str, Any]:
    return identity_of(_made())


def _read(chunk: Chunk) -> parts.Part:
    return read_chunk(chunk, _made(), _TASK[0].vocabulary)
