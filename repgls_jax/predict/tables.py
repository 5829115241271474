"""Tables of predictions, written film by film: a row for each film and finding.

  file         as it was found
  finding      of the model's vocabulary, in its order
  probability  that the finding is present, (0, 1)
  rate         of smoothing that a report of the film is expected to have, (-1, 1)
  threshold    of the probability, null where the model has none
  call         whether the probability is at or above it, null without one
  warning      what is odd about the film, "" for nothing

CSV and Parquet hold these columns; JSON groups the rows by film. The file gets its name when it is complete; until
then, and where the work was broken off, it is named with ".partial" at the end, and can be read too.
"""

import csv
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("finding", pa.string()),
        ("probability", pa.float32()),
        ("rate", pa.float32()),
        ("threshold", pa.float64()),
        ("call", pa.bool_()),
        ("warning", pa.string()),
    ]
)


SKIPPED = ".skipped.csv"  # after the table's own name


class Row(NamedTuple):
    """Of one film: ``probability`` and ``rate`` float32 [c]."""

    file: str
    probability: np.ndarray
    rate: np.ndarray
    warning: str


class Frame(NamedTuple):
    """What the rows of a table share: findings, a threshold for each or None, and what is told of the model."""

    findings: tuple[str, ...]
    thresholds: tuple[float | None, ...]
    model: Mapping[str, Any]

    def cells(self, row: Row) -> list[tuple[str, np.float32, np.float32, float | None, bool | None]]:
        """(finding, probability, rate, threshold, call) of every finding of a film."""
        return [
            (finding, p, r, t, None if t is None else bool(p >= np.float32(t)))
            for finding, p, r, t in zip(self.findings, row.probability, row.rate, self.thresholds, strict=True)
        ]


class Writer(Protocol):
    """Of one format."""

    def write(self, rows: Sequence[Row]) -> None:
        """Adds films."""

    def close(self) -> None:
        """Ends the file so that it can be read."""


class CsvWriter:
    """Numbers as short as they can be without loss; call is 1, 0 or empty."""

    def __init__(self, path: pathlib.Path, frame: Frame):
        """Opens the file."""
        self._frame = frame
        self._file = path.open("w", newline="", encoding="utf-8")
        self._csv = csv.writer(self._file, lineterminator="\n")
        self._csv.writerow(SCHEMA.names)

    def write(self, rows: Sequence[Row]) -> None:
        """Adds films; they are in the file when this returns."""
        for row in rows:
            for finding, p, r, t, call in self._frame.cells(row):
                shown = "" if t is None else repr(t), "" if call is None else int(call)
                self._csv.writerow([row.file, finding, str(p), str(r), *shown, row.warning])
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class JsonWriter:
    """{"model": ..., "films": [{"file", "warning", "findings": {finding: {...}}}]}, a film a line."""

    def __init__(self, path: pathlib.Path, frame: Frame):
        """Opens the file."""
        self._frame, self._first = frame, True
        self._file = path.open("w", encoding="utf-8")
        self._file.write(f'{{"model": {json.dumps(frame.model, allow_nan=False)},\n"films": [')

    def write(self, rows: Sequence[Row]) -> None:
        """Adds films."""
        for row in rows:
            findings = {
                finding: {"probability": float(str(p)), "rate": float(str(r)), "threshold": t, "call": call}
                for finding, p, r, t, call in self._frame.cells(row)
            }
            film = {"file": row.file, "warning": row.warning, "findings": findings}
            self._file.write(("" if self._first else ",") + "\n" + json.dumps(film, allow_nan=False))
            self._first = False
        self._file.flush()

    def close(self) -> None:
        """Closes the list and the file."""
        self._file.write("\n]}\n")
        self._file.close()


class ParquetWriter:
    """A row group a batch; what is told of the model is in the file's metadata."""

    def __init__(self, path: pathlib.Path, frame: Frame):
        """Opens the file."""
        self._frame = frame
        told = {b"repgls_model": json.dumps(frame.model, allow_nan=False).encode()}
        self._schema = SCHEMA.with_metadata(told)
        self._writer = pq.ParquetWriter(path, self._schema)

    def write(self, rows: Sequence[Row]) -> None:
        """Adds films."""
        cells = [(row.file, *cell, row.warning) for row in rows for cell in self._frame.cells(row)]
        if cells:
            columns = dict(zip(SCHEMA.names, map(list, zip(*cells, strict=True)), strict=True))
            self._writer.write_table(pa.table(columns, schema=self._schema))

    def close(self) -> None:
        """Writes the footer."""
        self._writer.close()


# By the ending of the file's name.
WRITERS: dict[str, Callable[[pathlib.Path, Frame], Writer]] = {
    ".csv": CsvWriter,
    ".json": JsonWriter,
    ".parquet": ParquetWriter,
}


def write_skipped(path: pathlib.Path, skipped: Sequence[tuple[str, str]]) -> None:
    """A CSV of files and the reasons why they were skipped; no file where there are none."""
    if not skipped:
        path.unlink(missing_ok=True)
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("file", "reason"), *skipped])


def writer_for(path: pathlib.Path) -> Callable[[pathlib.Path, Frame], Writer]:
    """The writer for a file's name; raises ValueError for another ending."""
    made = WRITERS.get(path.suffix.lower())
    if made is None:
        raise ValueError(f"output {path} has an ending that is unknown; expected {', '.join(WRITERS)}")
    return made
