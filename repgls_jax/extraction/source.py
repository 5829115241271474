"""Report files: CSV or Parquet, streamed in checked batches; what cannot be used is set aside with its reason."""

import csv
import io
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from repgls_jax.reports import engine as engine_lib

BATCH = 2_000  # reports
MAX_FIELD = 16 * 2**20  # characters of one CSV field

Report = dict[str, str]

# A byte that is not UTF-8 comes out of "surrogateescape" as one of these.
_NOT_UTF8 = re.compile("[\udc80-\udcff]")


class Source:
    """A file of reports.

    Attributes:
      path: .csv or .parquet with study_id and at least one of findings, impression, report.
      quarantine: (where, reason) of every row set aside so far.
      fraction: how much of the file has been read, [0, 1].
    """

    def __init__(self, path: pathlib.Path) -> None:
        """Opens nothing yet.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it is neither .csv nor .parquet.
        """
        readers = {".csv": self._csv, ".parquet": self._parquet}
        if path.suffix.lower() not in readers:
            raise ValueError(f"reports file {path} has the type {path.suffix!r}; expected .csv or .parquet")
        if not path.exists():
            raise FileNotFoundError(f"reports file {path} does not exist; give a .csv or .parquet file")
        self.path = path
        self.quarantine: list[tuple[str, str]] = []
        self.fraction = 0.0
        self._rows = readers[path.suffix.lower()]

    def batches(self) -> Iterator[list[Report]]:
        """Reports that can be used, in file order.

        Raises:
          ValueError: the file is empty or malformed, or a column is missing.
        """
        seen: set[int] = set()  # hashes, to keep memory small; two ids share one with odds of 1e-9 in 250,000
        batch: list[Report] = []
        for where, row in self._rows():
            reason = _fault(row, seen)
            if reason:
                self.quarantine.append((where, reason))
                continue
            batch.append(row)
            if len(batch) == BATCH:
                yield batch
                batch = []
        if batch:
            yield batch

    def _fields(self, names: Iterable[str]) -> list[str]:
        names = list(names)
        if "study_id" not in names or not any(field in names for field in engine_lib.FIELDS):
            raise ValueError(
                f"reports file {self.path} has the columns {names}; expected study_id and at least one of "
                f"{', '.join(engine_lib.FIELDS)}"
            )
        return ["study_id", *(field for field in engine_lib.FIELDS if field in names)]

    def _csv(self) -> Iterator[tuple[str, Report]]:
        previous = csv.field_size_limit(MAX_FIELD)  # a setting of the whole process: put back at the end
        size = max(self.path.stat().st_size, 1)
        # surrogateescape marks bytes that are not UTF-8, so that only their row is lost.
        with (
            self.path.open("rb") as raw,
            io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="") as file,
        ):
            rows = csv.DictReader(file)
            try:
                if not rows.fieldnames:
                    raise ValueError(
                        f"reports file {self.path} is empty; expected a header with study_id, findings, impression"
                    )
                fields = self._fields(rows.fieldnames)
                for row in rows:
                    self.fraction = min(1.0, raw.tell() / size)
                    yield f"line {rows.line_num}", {field: row[field] or "" for field in fields}
            except csv.Error as error:
                raise ValueError(
                    f"reports file {self.path}, line {rows.line_num}: {error}; write it as plain CSV"
                ) from error
            finally:
                csv.field_size_limit(previous)

    def _parquet(self) -> Iterator[tuple[str, Report]]:
        try:
            file = pq.ParquetFile(self.path)
        except pa.ArrowInvalid as error:
            raise ValueError(f"reports file {self.path} is not a Parquet file; write it again") from error
        fields = self._fields(file.schema_arrow.names)
        total, number = max(file.metadata.num_rows, 1), 0
        for table in file.iter_batches(BATCH, columns=fields):
            for row in table.to_pylist():
                number += 1
                self.fraction = number / total
                yield f"row {number}", {name: _text(row[name]) for name in fields}


def _text(value: object) -> str:
    if value is None:
        return ""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _fault(row: Mapping[str, str], seen: set[int]) -> str:
    """Why a row cannot be used, or ""."""
    if any(not value.isascii() and _NOT_UTF8.search(value) for value in row.values()):
        return "bytes that are not UTF-8"
    if not row["study_id"].strip():
        return "study_id is empty"
    key = hash(row["study_id"])
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
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("where", "reason"), *quarantine])
