"""Reports on disk in, evidence.parquet out: the run, which loses nothing.

Reports are streamed and the evidence of every chunk is written as a part (see :mod:`repgls_jax.extraction.parts`), so
memory does not grow with the number of reports, and a run that was killed goes on from its parts. A report that cannot
be read is not dropped: it is counted, and listed without its text in ``<output>.quarantine.csv``.
"""

import collections
import dataclasses
import itertools
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from repgls_jax import findings as findings_lib
from repgls_jax.extraction import backends, parts, source
from repgls_jax.extraction import workers as workers_lib

_TELL_EVERY = 10.0  # seconds between lines of progress

COUNTS = ("reports", "rows", "empty", "truncated", "quarantined", "positive", "negative", "uncertain")


def extract(
    reports_path: pathlib.Path,
    output_path: pathlib.Path,
    vocabulary: findings_lib.Vocabulary,
    backend: str = "lexicon",
    log: Callable[[str], None] | None = None,
    workers: int = 1,
    settings: Any = None,
) -> dict[str, int]:
    """Extracts evidence from reports; called again after it was interrupted, goes on where it stood.

    Args:
      reports_path: see :class:`repgls_jax.extraction.source.Source`.
      output_path: Parquet side-car to write (see :data:`repgls_jax.sidecars.EVIDENCE`); it appears when complete.
      vocabulary: findings to give evidence for.
      backend: see :func:`repgls_jax.extraction.backends.load`.
      log: called with a line of progress at the first chunk and every ten seconds, and with a summary; never with
        report text.
      workers: processes.
      settings: of the backend, None for its defaults.

    Returns:
      Counts, see :data:`COUNTS`: reports (read), rows, empty (reports without text), truncated (too long for the
      backend, read in part), quarantined, and rows by state. They are those of the whole file, however many runs it
      took.

    Raises:
      FileNotFoundError: there is no reports file.
      ValueError: the backend or file type is unknown, a setting is wrong, a column is missing, the file is empty or
        malformed, every report is quarantined, the output is a folder or the reports themselves, or another process is
        writing it.
      OSError: the disk is full, or a worker process died. The parts that are finished stay.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}; expected at least 1")
    output_path = pathlib.Path(output_path)
    say = log or (lambda line: None)
    settings = backends.settings_of(backend, {}) if settings is None else settings
    reader = source.Source(pathlib.Path(reports_path))
    if output_path.is_dir():
        raise ValueError(f"output {output_path} is a folder; name the file to write")
    if output_path.exists() and output_path.samefile(reader.path):
        raise ValueError(f"output {output_path} is the reports file itself; name another")
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    output_path.parent.mkdir(parents=True, exist_ok=True)
    with parts.alone(output_path):
        counts = _extract(reader, output_path, workers_lib.Task(backend, values, vocabulary), workers, say)
    if not counts["reports"]:
        raise ValueError(
            f"{reports_path} gave no readable report ({counts['quarantined']} quarantined); expected at least one"
        )
    return counts


def _extract(
    reader: source.Source, output: pathlib.Path, task: workers_lib.Task, workers: int, say: Callable[[str], None]
) -> dict[str, int]:
    """The run; writes no side-car when no report can be read."""
    reports = reader.reports()
    first = list(itertools.islice(reports, 1))  # what is no reports file is refused before a model is loaded
    if not first:
        source.write_quarantine(output, reader.quarantine)
        return dict.fromkeys(COUNTS, 0) | {"quarantined": len(reader.quarantine)}
    with workers_lib.start(task, workers) as readers:
        folder = parts.Folder(output, task.vocabulary, readers.identity, say)
        progress = _Progress(say)
        batches = source.in_batches(itertools.chain(first, reports), readers.identity["chunk"])
        for job, part in readers.read(_jobs(batches, reader, folder)):
            progress.add(job, part)
    source.write_quarantine(output, reader.quarantine + progress.faults)
    if progress.counts["reports"]:
        folder.join(progress.parts, progress.unread)
    folder.remove()
    return progress.end(len(reader.quarantine))


def _jobs(
    batches: Iterable[list[source.Report]], reader: source.Source, folder: parts.Folder
) -> Iterator[workers_lib.Job]:
    """Chunks to read, and parts that need not be read again."""
    for number, reports in enumerate(batches):
        hashes = [workers_lib.report_hash(report) for report in reports]
        chunk = workers_lib.Chunk(folder.file(number), reports, hashes)
        yield workers_lib.Job(folder.find(number, chunk.digest) or chunk, reader.fraction)


class _Progress:
    """Sums parts up and tells how far the run is; parts of an earlier run count as done, but not in the rate.

    Attributes:
      counts: of all parts.
      faults: (where, reason) of the reports that the backend could not read.
      unread: ids of their studies.
      parts: how many.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.faults: list[tuple[str, str]] = []
        self.unread: list[str] = []
        self.parts = 0
        self._say = say
        self._began, self._told = time.monotonic(), float("-inf")
        self._share = self._fresh_share = 0.0  # of all reports: done, and read by this run
        self._fresh = self._reused = 0  # reports read by this run and by an earlier one

    def add(self, job: workers_lib.Job, part: parts.Part) -> None:
        """Takes the next part."""
        self.parts += 1
        self.counts.update(part.counts)
        self.faults += [(f"study {study}", reason) for study, reason in part.faults]
        self.unread += [study for study, _ in part.faults]
        size = part.counts["reports"] + len(part.faults)
        grown, self._share = job.share - self._share, job.share
        if isinstance(job.work, parts.Part):
            self._reused += size
            return
        if self._reused and not self._fresh:
            self._say(f"extract: going on after {self._reused} reports that an earlier run has read")
        self._fresh += size
        self._fresh_share += grown
        now = time.monotonic()
        if now - self._told >= _TELL_EVERY and self._share < 1:
            self._told = now
            seconds = max(now - self._began, 1e-9)
            # The share grows by what is read from the file at a time, so it may not have moved yet.
            left = seconds * (1 - self._share) / self._fresh_share if self._fresh_share > 0 else float("nan")
            self._say(
                f"extract: {self._fresh + self._reused} reports, {self._share:.0%} of the file, "
                f"{self._fresh / seconds:.1f} a second" + (f", about {left:.0f} s left" if left == left else "")
            )

    def end(self, quarantined: int) -> dict[str, int]:
        """Says and returns the sums; ``quarantined`` are the source's."""
        self.counts["quarantined"] = quarantined + len(self.faults)
        seconds = max(time.monotonic() - self._began, 1e-9)
        reused = f" ({self._reused} read by an earlier run)" if self._reused else ""
        self._say(
            f"extract: {self.counts['reports']} reports{reused}, {self.counts['rows']} rows, "
            f"{self.counts['quarantined']} quarantined, {self._fresh / seconds:.1f} reports a second"
        )
        return {name: self.counts[name] for name in COUNTS}
