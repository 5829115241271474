"""Reports on disk, streamed one by one and checked; what cannot be used is set aside with its reason.

CSV and Parquet tables are read here, folders and archives of single files in
:mod:`repgls_jax.extraction.archives`. Memory does not grow with the number of reports.
"""

import csv
import io
import pathlib
import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from repgls_jax.extraction import archives
from repgls_jax.extraction.archives import Report, Row
from repgls_jax.extraction.backends import Fault
from repgls_jax.reports import engine as engine_lib

MAX_FIELD = 16 * 2**20  # characters of one CSV field
MAX_BATCH = 32 * 2**20  # characters of one list of reports
MAX_ID = 256  # characters
_ROWS = 500  # of a Parquet file, decoded at a time
# What Parquet columns of text are; a column without any value has no type.
_TEXTS = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.null())

# A byte that is not UTF-8 comes out of "surrogateescape" as one of these.
_NOT_UTF8 = re.compile("[\udc80-\udcff]")


class Source:
    """Reports on disk.

    Attributes:
      path: .csv or .parquet with study_id and at least one of findings, impression, report; or a folder or archive
        (see :mod:`repgls_jax.extraction.archives`).
      quarantine: (where, reason) of every report set aside so far.
      fraction: how much has been read, [0, 1].
    """

    def __init__(self, path: pathlib.Path) -> None:
        """Opens nothing yet.

        Raises:
          FileNotFoundError: there is no such file or folder.
          ValueError: its type is not known.
        """
        readers = {".csv": self._csv, ".parquet": self._parquet}
        name = path.name.lower()
        if not path.exists():
            raise FileNotFoundError(f"reports file {path} does not exist; give a .csv or .parquet file")
        if path.is_dir() or name.endswith((".zip", ".tgz", ".tar.gz")):
            self._rows = lambda: archives.rows(path)
        elif path.suffix.lower() in readers:
            self._rows = readers[path.suffix.lower()]
        else:
            raise ValueError(
                f"reports file {path} has the type {path.suffix!r}; "
                "expected .csv or .parquet, a folder, .zip, .tgz or .tar.gz"
            )
        self.path = path
        self.quarantine: list[tuple[str, str]] = []
        self.fraction = 0.0

    def reports(self) -> Generator[Report, None, None]:
        """Reports that can be used, in order: study_id, and those of findings, impression and report that there are.

        Raises:
          ValueError: the file is empty or malformed as a whole, or a column is missing, there twice or no text.
        """
        self.quarantine, self.fraction = [], 0.0
        seen: set[int] = set()  # hashes, to keep memory small; two ids share one with odds of 1e-9 in 250,000
        for where, row, fraction in self._rows():
            self.fraction = fraction
            if not isinstance(row, Fault):
                row = {**row, "study_id": row["study_id"].strip()}  # as tables of labels and images are joined by it
            reason = row.reason if isinstance(row, Fault) else _fault(row, seen)
            if reason:
                self.quarantine.append((where, reason))
            elif not isinstance(row, Fault):
                yield row

    def _fields(self, names: Iterable[str]) -> list[str]:
        names = list(names)
        twice = [name for name in ("study_id", *engine_lib.FIELDS) if names.count(name) > 1]
        if twice:
            raise ValueError(f"reports file {self.path} has several columns {', '.join(twice)}; keep one of each")
        if "study_id" not in names or not any(field in names for field in engine_lib.FIELDS):
            # A table without a header has report text here.
            raise ValueError(
                f"reports file {self.path} lacks a column study_id or has none of {', '.join(engine_lib.FIELDS)} "
                f"among its {len(names)} columns; name them in the header"
            )
        return ["study_id", *(field for field in engine_lib.FIELDS if field in names)]

    def _csv(self) -> Iterator[Row]:
        size = max(self.path.stat().st_size, 1)
        # surrogateescape marks bytes that are not UTF-8, so that only their row is lost.
        with (
            self.path.open("rb") as raw,
            io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="") as file,
        ):
            rows = csv.DictReader(file, strict=True)  # a quote that is never closed would swallow the rows behind it
            try:
                if not rows.fieldnames:
                    raise ValueError(
                        f"reports file {self.path} is empty; expected a header with study_id, findings, impression"
                    )
                fields, width = self._fields(rows.fieldnames), len(rows.fieldnames)
                while (row := _next(rows)) is not None:
                    report: Report | Fault = {field: row[field] or "" for field in fields}
                    if None in row:  # DictReader's place for what is beyond the header: text cut at a bare comma
                        report = Fault(f"more than the header's {width} fields; put text with commas in quotes")
                    yield f"line {rows.line_num}", report, min(1.0, raw.tell() / size)
            except csv.Error as error:
                raise ValueError(
                    f"reports file {self.path}, after line {rows.line_num}: {error}; write it as plain CSV"
                ) from error

    def _parquet(self) -> Iterator[Row]:
        try:
            file = pq.ParquetFile(self.path)
        except pa.ArrowInvalid as error:
            raise ValueError(f"reports file {self.path} is not a Parquet file; write it again") from error
        schema = file.schema_arrow
        fields = self._fields(schema.names)
        for name in fields:
            kind = schema.field(name).type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            if kind not in _TEXTS and not (name == "study_id" and pa.types.is_integer(kind)):
                raise ValueError(
                    f"reports file {self.path} has {name} as {kind}; expected text, or integers as study_id"
                )
        total, number = max(file.metadata.num_rows, 1), 0
        batches = file.iter_batches(_ROWS, columns=fields)
        while (batch := self._next(batches, number)) is not None:
            columns = [_texts(batch.column(name)) for name in fields]
            for values in zip(*columns, strict=True):
                number += 1
                yield f"row {number}", dict(zip(fields, values, strict=True)), number / total

    def _next(self, batches: Iterator[Any], number: int) -> Any:
        try:
            return next(batches, None)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"reports file {self.path} is damaged after row {number}; write it again") from error


def _next(rows: "csv.DictReader[str]") -> dict[str, str] | None:
    """The next row, whose fields may be as long as a report.

    The limit belongs to the whole process: it is put back before anybody else runs, for a generator that held it until
    its end would leave it behind.
    """
    previous = csv.field_size_limit(MAX_FIELD)
    try:
        return next(rows, None)
    finally:
        csv.field_size_limit(previous)


def in_batches(reports: Iterable[Report], size: int) -> Generator[list[Report], None, None]:
    """Lists of ``size`` reports; fewer where these are so long that a list would fill the memory."""
    batch: list[Report] = []
    length = 0
    for report in reports:
        batch.append(report)
        length += sum(map(len, report.values()))
        if len(batch) == size or length > MAX_BATCH:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def _texts(column: Any) -> list[str]:
    """A Parquet column as texts; what is not UTF-8 comes out marked instead of as an error for the whole file."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type):
        column = column.cast(pa.binary())
    elif pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    return [_text(value) for value in column.to_pylist()]


def _text(value: object) -> str:
    if value is None:
        return ""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _fault(row: Mapping[str, str], seen: set[int]) -> str:
    """Why a row cannot be used, or ""."""
    if any(not value.isascii() and _NOT_UTF8.search(value) for value in row.values()):
        return "bytes that are not UTF-8"
    study = row["study_id"]
    if not study.strip():
        return "study_id is empty"
    if len(study) > MAX_ID or not study.isprintable():  # most likely text that slipped into the column
        return f"study_id of {len(study)} characters is too long or holds control characters"
    key = hash(study)
    if key in seen:
        return "study_id stands more than once; the first is kept"
    seen.add(key)
    return ""


def write_quarantine(output_path: pathlib.Path, quarantine: list[tuple[str, str]]) -> None:
    """Writes ``<output>.quarantine.csv`` (where, reason), or removes an old one if there is nothing to say."""
    path = output_path.with_name(output_path.name + ".quarantine.csv")
    if not quarantine:
        path.unlink(missing_ok=True)
        return
    partial = path.with_name(path.name + ".partial")
    # Names in an archive can be any bytes.
    with partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file).writerows([("where", "reason"), *quarantine])
    partial.replace(path)
