"""The tables that published data sets come with: CSV, plain or gzipped, as columns of text that are checked.

Data are kept as columns, and joined by position, so that the tables of half a million images take seconds and little
memory.
"""

import gzip
import hashlib
import io
import pathlib
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from repgls_jax import findings as findings_lib
from repgls_jax.data import cells
from repgls_jax.findings import Vocabulary

MAX_TABLE_BYTES = 2**30  # unpacked; the largest, of MIMIC-CXR, has 0.06 * 2**30
MAX_LIST_BYTES = 2**26  # the same, of what is read as a whole; the largest has 0.02 * 2**26
_SHOWN = 5
_SHOWN_CHARACTERS = 20  # of a bad value, which could be anything
_CELLS = {f"{state}{end}": state for state in findings_lib.STATES for end in ("", ".0")}
_STATES = {**_CELLS, "": findings_lib.NOT_MENTIONED, "-0.0": findings_lib.NEGATIVE}


def find(root: pathlib.Path, *names: str) -> pathlib.Path | None:
    """The first of the files ``names`` that lies in ``root``, be it gzipped; None if none does."""
    for name in names:
        for path in (root / name, root / f"{name}.gz"):
            if path.is_file():
                return path
    return None


def require(root: pathlib.Path, *names: str, advice: str = "") -> pathlib.Path:
    """:func:`find`.

    Raises:
      FileNotFoundError: there is no such folder, or none of the files; ``advice`` is added to the message.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"data folder {root} does not exist")
    path = find(root, *names)
    if path is None:
        raise FileNotFoundError(f"{root} holds no {' or '.join(names)}, nor that as .gz{'; ' * bool(advice)}{advice}")
    return path


def content(path: pathlib.Path) -> bytes:
    """The bytes of a list, unpacked.

    Raises:
      ValueError: too large, or damaged.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(MAX_LIST_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}); fetch it again") from None
    if len(data) > MAX_LIST_BYTES:
        raise ValueError(f"{path} has more than {MAX_LIST_BYTES} bytes")
    return data


def read(path: pathlib.Path, columns: Sequence[str], also: Callable[[str], bool] = lambda name: False) -> pa.Table:
    """Columns of a table as text without surrounding blanks.

    Args:
      path: a CSV file with a header, plain or .gz.
      columns: the table must have them.
      also: says by its name whether a further column is wanted.

    Raises:
      ValueError: a column is missing or there twice, there is no row, or the table cannot be read.
    """

    def choose(names: list[str]) -> list[str]:
        wanted = [*columns, *dict.fromkeys(name for name in names if name not in columns and also(name))]
        wrong = [name for name in wanted if names.count(name) != 1]
        if wrong:
            raise ValueError(
                f"table {path} has not exactly one column {cells.names(wrong)}; "
                f"its header has {len(names)}: {cells.names(names)}"
            )
        return wanted

    table = cells.read(path, choose, MAX_TABLE_BYTES)
    if not table.num_rows:
        raise ValueError(f"table {path} has no rows")
    return pa.table({name: pc.utf8_trim_whitespace(table[name]).combine_chunks() for name in table.column_names})


def lines(path: pathlib.Path) -> list[str]:
    """The lines of a text that are not blank, stripped.

    Raises:
      ValueError: too large, or not UTF-8.
    """
    try:
        text = content(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8; fetch it again") from None
    return [line.strip() for line in io.StringIO(text) if line.strip()]


class Checks:
    """Looks for bad values of one table, and tells them all at once."""

    def __init__(self, path: pathlib.Path, table: pa.Table):
        """Takes a table of :func:`read`."""
        self._path, self._table, self._found = path, table, list[str]()

    def matches(self, column: str, pattern: str, expected: str) -> None:
        """Each value must match the regular expression as a whole."""
        self.report(column, np.asarray(pc.match_substring_regex(self._table[column], f"^(?:{pattern})$")), expected)

    def unique(self, column: str) -> None:
        """No value may be there twice."""
        first = positions(self._table[column], self._table[column])
        self.report(column, first == np.arange(len(first)), "no value twice")

    def report(self, column: str, good: np.ndarray, expected: str) -> None:
        """Notes the rows where ``good`` is false, counted from 1 without the header."""
        bad = np.flatnonzero(~np.asarray(good, bool))
        if len(bad):
            values = self._table[column].take(bad[:_SHOWN]).to_pylist()
            some = ", ".join(
                f"row {row + 1}: {value[:_SHOWN_CHARACTERS]!r}" for row, value in zip(bad, values, strict=False)
            )
            self._found.append(f"column {column!r}, {len(bad)} values ({some}): expected {expected}")

    def done(self) -> None:
        """Ends the search.

        Raises:
          ValueError: something was found.
        """
        if self._found:
            raise ValueError(f"table {self._path} cannot be used: {'; '.join(self._found)}")


def positions(values: pa.ChunkedArray | pa.Array, among: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """int64, the first place of each value in ``among``; -1 where it is not there."""
    among = among.combine_chunks() if isinstance(among, pa.ChunkedArray) else among
    return pc.fill_null(pc.index_in(values, value_set=among), -1).to_numpy().astype(np.int64)


def names_finding(vocabulary: Vocabulary) -> Callable[[str], bool]:
    """Says of a column's name whether it is that of a finding of the vocabulary, in any spelling."""
    return lambda name: findings_lib.canonical(name) in vocabulary.findings


def states(path: pathlib.Path, table: pa.Table, vocabulary: Vocabulary) -> np.ndarray:
    """Labels given as a column per finding, by whichever name the table has for it.

    Args:
      path: of the table, for messages.
      table: of :func:`read`, with the columns that :func:`names_finding`; others are passed over.
      vocabulary: order of the axis c.

    Returns:
      int8 [rows, c] label states; -2 where a cell is blank, and for findings without a column.

    Raises:
      ValueError: a cell is no label state, no column is named after a finding, or two after one.
    """
    named = [findings_lib.canonical(name) for name in table.column_names if names_finding(vocabulary)(name)]
    if not named or len(set(named)) < len(named):
        raise ValueError(
            f"table {path} has {len(named)} columns named after findings of {vocabulary.name!r}, "
            f"of {len(set(named))} findings; expected one column a finding"
        )
    labels = np.full((table.num_rows, len(vocabulary)), findings_lib.NOT_MENTIONED, np.int8)
    known, state_of = pa.array(list(_STATES)), np.array(list(_STATES.values()), np.int8)
    checks = Checks(path, table)
    for name in table.column_names:
        if names_finding(vocabulary)(name):
            place = positions(table[name], known)
            checks.report(name, place >= 0, "1 (positive), 0 (negative), -1 (uncertain) or blank (not mentioned)")
            labels[:, vocabulary.index(name)] = state_of[place]
    checks.done()
    return labels


def digest(paths: Sequence[pathlib.Path]) -> dict[str, str]:
    """SHA-256 of each file, by its name."""
    found = {}
    for path in paths:
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
