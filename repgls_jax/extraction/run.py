"""Reports on disk in, evidence.parquet out: the effects around the engine.

Reports are streamed in batches and evidence is written row group by row group, so memory does not grow with the file.
A report that cannot be read is not dropped: it is counted, and listed without its text in
``<output>.quarantine.csv``.
"""

import collections
import concurrent.futures
import hashlib
import itertools
import multiprocessing
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from repgls_jax import findings as findings_lib
from repgls_jax import sidecars
from repgls_jax.extraction import source
from repgls_jax.reports import engine as engine_lib

# Backend name -> function that makes a reader: an object with .version and .read(report) -> list of Evidence.
BACKENDS: dict[str, Callable[[findings_lib.Vocabulary], Any]] = {"lexicon": engine_lib.Engine}

_TELL_EVERY = 10.0  # seconds between lines of progress

Columns = dict[str, list[Any]]


def extract(
    reports_path: pathlib.Path,
    output_path: pathlib.Path,
    vocabulary: findings_lib.Vocabulary,
    backend: str = "lexicon",
    log: Callable[[str], None] | None = None,
    workers: int = 1,
) -> dict[str, int]:
    """Extracts evidence from a file of reports.

    Args:
      reports_path: .csv or .parquet with the columns study_id and at least one of findings, impression, report.
      output_path: Parquet side-car to write (see :data:`repgls_jax.sidecars.EVIDENCE`); it appears when complete.
      vocabulary: findings to give evidence for.
      backend: key in :data:`BACKENDS`.
      log: called with a line of progress every ten seconds and with a summary; never with report text.
      workers: processes.

    Returns:
      Counts: reports (read), rows, empty (reports without text), truncated (cut at the engine's limit), quarantined,
      and rows by state: positive, negative, uncertain.

    Raises:
      FileNotFoundError: there is no reports file.
      ValueError: unknown backend or file type, a column is missing, the file is empty or malformed, or every report
        is quarantined.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is unknown; expected one of {', '.join(BACKENDS)}")
    if workers < 1:
        raise ValueError(f"workers is {workers}; expected at least 1")
    reader = source.Source(pathlib.Path(reports_path))
    output_path = pathlib.Path(output_path)
    say = log or (lambda line: None)
    counts: collections.Counter[str] = collections.Counter()
    output_path.parent.mkdir(parents=True, exist_ok=True)
    partial = output_path.with_name(output_path.name + ".partial")
    schema = sidecars.with_vocabulary(sidecars.EVIDENCE, vocabulary)
    started = told = time.monotonic()
    try:
        with pq.ParquetWriter(partial, schema) as writer:
            for columns, batch in _work(reader.batches(), vocabulary, backend, workers):
                writer.write_table(pa.table(columns, schema=schema))
                counts.update(batch)
                now = time.monotonic()
                if now - told > _TELL_EVERY:
                    told = now
                    say(_progress(counts["reports"], reader.fraction, now - started))
        source.write_quarantine(output_path, reader.quarantine)
        if counts["reports"] == 0:
            raise ValueError(
                f"{reports_path} gave no readable report ({len(reader.quarantine)} quarantined); expected at least one"
            )
        partial.replace(output_path)
    finally:
        partial.unlink(missing_ok=True)
    counts["quarantined"] = len(reader.quarantine)
    seconds = max(time.monotonic() - started, 1e-9)
    say(
        f"extract: {counts['reports']} reports, {counts['rows']} rows, {counts['quarantined']} quarantined, "
        f"{counts['reports'] / seconds:.0f} reports a second"
    )
    names = ("reports", "rows", "empty", "truncated", "quarantined", "positive", "negative", "uncertain")
    return {name: counts[name] for name in names}


def _progress(reports: int, fraction: float, seconds: float) -> str:
    left = seconds * (1 - fraction) / max(fraction, 1e-6)
    return f"extract: {reports} reports, {reports / seconds:.0f} a second, about {left:.0f} s left"


def report_hash(report: Mapping[str, str]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a report's fields."""
    text = "\0".join(report.get(field) or "" for field in engine_lib.FIELDS)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read_batch(batch: list[source.Report], reader: Any, labeller: str) -> tuple[Columns, dict[str, int]]:
    """Evidence of a batch of reports.

    Args:
      batch: reports with study_id.
      reader: from :data:`BACKENDS`.
      labeller: name for the provenance column.

    Returns:
      Columns of :data:`repgls_jax.sidecars.EVIDENCE`, and the batch's counts.
    """
    columns: Columns = {name: [] for name in sidecars.EVIDENCE.names}
    counts = {"reports": len(batch), "empty": 0, "truncated": 0}
    for report in batch:
        texts = [report.get(field) or "" for field in engine_lib.FIELDS]
        counts["empty"] += not any(text.strip() for text in texts)
        counts["truncated"] += any(len(text) > engine_lib.MAX_CHARS for text in texts)
        digest = report_hash(report)
        for e in reader.read(report):
            place = (e.cue, e.section, e.field, e.start, e.end, e.mention_start)
            row = (report["study_id"], e.finding, e.state, e.p, *place, labeller, reader.version, "", digest)
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
    counts["rows"] = len(columns["state"])
    for state in (findings_lib.POSITIVE, findings_lib.NEGATIVE, findings_lib.UNCERTAIN):
        counts[findings_lib.STATES[state]] = columns["state"].count(state)
    return columns, counts


def _work(
    batches: Iterator[list[source.Report]], vocabulary: findings_lib.Vocabulary, backend: str, workers: int
) -> Iterator[tuple[Columns, dict[str, int]]]:
    """Results in the order of the batches; with several workers, only a few batches are held at a time."""
    if workers == 1:
        reader = BACKENDS[backend](vocabulary)
        for batch in batches:
            yield read_batch(batch, reader, backend)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, _start, (vocabulary, backend)) as pool:
        waiting = collections.deque(pool.submit(_in_worker, b) for b in itertools.islice(batches, 2 * workers))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(_in_worker, b) for b in itertools.islice(batches, 1))


_READER: list[tuple[Any, str]] = []  # one per worker process, put there by _start


def _start(vocabulary: findings_lib.Vocabulary, backend: str) -> None:
    _READER.append((BACKENDS[backend](vocabulary), backend))


def _in_worker(batch: list[source.Report]) -> tuple[Columns, dict[str, int]]:
    return read_batch(batch, *_READER[0])
