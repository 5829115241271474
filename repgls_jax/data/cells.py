"""Cells of untrusted CSV files: columns of text, whatever the text looks like, within limits of rows and bytes.

A quote that is never closed would swallow all rows after it, and no reader of CSV would say so: a row of our own is put
at the very end, and has to come out as one.
"""

import csv
import gzip
import io
import itertools
import pathlib
import re
import zlib
from collections.abc import Callable, Sequence
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.csv

MAX_ROWS = 5_000_000  # half a million images are the largest public data set
MAX_COLUMNS = 4096
MAX_HEADER_BYTES = 2**20
_BLOCK_BYTES = 32 * 2**20  # a row must fit in one block
_END = "\0"  # the cells of the last row
_SHOWN_CHARACTERS = 40  # without a header, or with a column mapped by mistake, a name or an id could be any text


def names(items: Sequence[str], most: int = 30) -> str:
    """Names or ids for a message: the first ones, and not all of a long one."""
    return ", ".join(item[:_SHOWN_CHARACTERS] for item in items[:most]) + ", ..." * (len(items) > most)


def read(path: pathlib.Path, choose: Callable[[list[str]], list[str]], max_bytes: int) -> pa.Table:
    """Columns of a CSV file.

    Args:
      path: a CSV file of UTF-8 with a header, plain or .gz.
      choose: takes the names of the header's columns, and returns those of the columns to read.
      max_bytes: of the file, unpacked.

    Returns:
      Text, blank cells as "".

    Raises:
      ValueError: too large, damaged, or no such table; or what ``choose`` raises. The message holds no cell.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _read(path, cast(IO[bytes], file), choose, max_bytes)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"table {path} is damaged ({type(error).__name__}); fetch it again") from None
    except pa.ArrowException as error:
        # Arrow quotes the row: only what is known to be harmless is passed on.
        found = (re.search(pattern, str(error)) for pattern in (r"Row #\d+", r"Expected \d+ columns, got \d+"))
        what = ": ".join(match.group() for match in found if match) or "damaged, not UTF-8, or a row of over 32 MiB"
        raise ValueError(f"table {path} cannot be read ({what})") from None


def _read(path: pathlib.Path, file: IO[bytes], choose: Callable[[list[str]], list[str]], max_bytes: int) -> pa.Table:
    start = file.read(MAX_HEADER_BYTES)
    columns = _header(path, start)
    wanted = choose(columns)
    ended = _Ended(start, file, f"\n{','.join(_END * len(columns))}\n".encode(), path, max_bytes)
    options = {
        # Threads lose the number of a bad row.
        "read_options": pa.csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
        "parse_options": pa.csv.ParseOptions(newlines_in_values=True),
        # Text, so that the id "0012" stays one.
        "convert_options": pa.csv.ConvertOptions(
            include_columns=[] if wanted == columns else wanted,  # all: also two of one name, for the caller to refuse
            column_types=dict.fromkeys(wanted, pa.string()),
            strings_can_be_null=False,
        ),
    }
    batches, rows = [], 0
    with pa.csv.open_csv(pa.PythonFile(io.BufferedReader(ended), "r"), **options) as reader:
        for batch in reader:
            rows += batch.num_rows
            if rows > MAX_ROWS + 1:
                raise ValueError(f"table {path} has more than {MAX_ROWS} rows")
            batches.append(batch)
    table = pa.Table.from_batches(batches, reader.schema)
    if not rows or any(column[-1].as_py() != _END for column in table.columns):
        raise ValueError(f"table {path} ends within quotes: a quote of some cell is not closed, or the file is cut off")
    return table.slice(0, rows - 1)


def _header(path: pathlib.Path, start: bytes) -> list[str]:
    line = next(filter(None, re.split(rb"[\r\n]", start)), b"") if start else b""
    try:
        columns = next(csv.reader([line.decode("utf-8-sig")]), []) if len(line) < MAX_HEADER_BYTES else []
    except (UnicodeDecodeError, csv.Error):
        columns = []
    if not 0 < len(columns) <= MAX_COLUMNS:
        raise ValueError(f"table {path} does not begin with the names of 1 to {MAX_COLUMNS} columns in UTF-8")
    return columns


class _Ended(io.RawIOBase):
    """What was read of a file already, the rest of it, and an end."""

    def __init__(self, start: bytes, file: IO[bytes], end: bytes, path: pathlib.Path, max_bytes: int) -> None:
        super().__init__()
        rest = iter(lambda: file.read(2**20), b"")
        self._pieces = itertools.chain((start,), rest, (end,))
        self._piece, self._left = b"", max_bytes + len(end)
        self._too_long = f"table {path} has more than {max_bytes} bytes"

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._piece = self._piece or next(self._pieces, b"")
        count = min(len(buffer), len(self._piece))
        buffer[:count], self._piece = self._piece[:count], self._piece[count:]
        self._left -= count
        if self._left < 0:
            raise ValueError(self._too_long)
        return count
