"""Reads the table of a data set as text, row by row checked, with the ids filled in."""

import pathlib
import re
from collections.abc import Collection, Mapping

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from repgls_jax.data import cells
from repgls_jax.data.columns import Columns
from repgls_jax.data.source import TEXT_FIELDS, UNKNOWN_AGE

SUFFIXES = (".csv", ".parquet")
MAX_TABLE_BYTES = 4 * 2**30
_SHOWN = 5
_AGE = re.compile(r"(\d{1,4})(?:\.\d*)?\s*([YMWD]?)", re.IGNORECASE)
_PER_YEAR = {"": 1.0, "Y": 1.0, "M": 12.0, "W": 52.1775, "D": 365.2425}
_OLDEST = 120  # years; what is more is a slip of the pen, such as "411Y"


def find(root: pathlib.Path, table: str) -> pathlib.Path:
    """The table's path: ``root / table``, or the one table that lies in ``root``.

    Raises:
      FileNotFoundError: there is no such folder or table.
      ValueError: not exactly one table to choose from, or it is neither CSV nor Parquet, or too large.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"data folder {root} does not exist")
    if table:
        path = root / table
    else:
        tables = sorted(p for p in root.iterdir() if p.suffix in SUFFIXES and p.is_file())
        if len(tables) != 1:
            names = ", ".join(p.name for p in tables) or "none"
            raise ValueError(
                f"{root} should hold one table ({', '.join(SUFFIXES)}); found: {names}; name one with "
                "--table (data_prep/build.py) or the config argument table= (launch/train.py)"
            )
        path = tables[0]
    if not path.is_file():
        raise FileNotFoundError(f"table {path} does not exist")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"table {path} ends in {path.suffix!r}; expected one of {', '.join(SUFFIXES)}")
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise ValueError(f"table {path} has {path.stat().st_size} bytes; the limit is {MAX_TABLE_BYTES}")
    return path


def read(path: pathlib.Path) -> pa.Table:
    """The table; all columns of a CSV file are text.

    Raises:
      ValueError: not a readable table, too large once it is unpacked, or without rows.
    """
    table = _parquet(path) if path.suffix == ".parquet" else cells.read(path, lambda names: names, MAX_TABLE_BYTES)
    if table.num_rows == 0:
        raise ValueError(f"table {path} has no rows; its columns are: {cells.names(table.column_names)}")
    return table


def _parquet(path: pathlib.Path) -> pa.Table:
    try:
        # A text that is there a million times takes the room of one: as a dictionary it does so in memory too.
        columns = pa.parquet.read_metadata(path).schema
        repeated = [column.path for column in map(columns.column, range(len(columns.names))) if _is_text(column)]
        with pa.parquet.ParquetFile(path, read_dictionary=repeated) as file:
            claimed = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
            _within(path, file.metadata.num_rows, len(columns.names), claimed)
            table = file.read()
        _within(path, table.num_rows, table.num_columns, sum(map(_bytes, table.columns)))
        plain = pa.schema([(field.name, pa.string() if _repeats(field.type) else field.type) for field in table.schema])
        table = table.cast(plain)
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"table {path} cannot be read as Parquet ({type(error).__name__})") from None
    return table


def _is_text(column: pa.parquet.ColumnSchema) -> bool:
    return column.physical_type == "BYTE_ARRAY" and column.max_repetition_level == 0


def _repeats(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_dictionary(kind) and (pa.types.is_string(kind.value_type) or pa.types.is_binary(kind.value_type))
    )


def _bytes(column: pa.ChunkedArray) -> int:
    """What a column takes once each cell has a text of its own."""
    if not _repeats(column.type):
        return int(column.nbytes)
    return sum(
        pc.sum(pc.take(pc.binary_length(chunk.dictionary), chunk.indices)).as_py() or 0 for chunk in column.chunks
    )


def _within(path: pathlib.Path, n: int, columns: int, size: int) -> None:
    if n > cells.MAX_ROWS or columns > cells.MAX_COLUMNS or size > MAX_TABLE_BYTES:
        raise ValueError(
            f"table {path} has {n} rows, {columns} columns and {size} bytes unpacked; the limits are {cells.MAX_ROWS}, "
            f"{cells.MAX_COLUMNS} and {MAX_TABLE_BYTES}"
        )


class Rows:
    """The rows that are used: role or finding -> column of text."""

    def __init__(self, columns: Mapping[str, list[str]]):
        """Takes columns of one length; image, patient, study, view, sex, age and the text fields are always there."""
        self._columns = dict(columns)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._columns["image"])

    def __getitem__(self, i: int) -> dict[str, str]:
        """Row ``i`` as role -> text."""
        return {role: values[i] for role, values in self._columns.items()}

    def column(self, role: str) -> list[str]:
        """The n values of a role or finding."""
        return self._columns[role]

    def studies_over(self, max_bytes: int) -> set[str]:
        """Studies with a text field of more than ``max_bytes`` bytes."""
        return {
            study
            for field in TEXT_FIELDS
            for study, text in zip(self._columns["study"], self._columns[field], strict=True)
            if len(text.encode()) > max_bytes
        }


def sex(cell: str) -> str:
    """ "F" or "M" of a cell such as "Female", "m"; "" for anything else."""
    letter = cell[:1].upper()
    return letter if cell.upper() in (letter, "FEMALE", "MALE") and letter in "FM" else ""


def age(cell: str) -> int:
    """Completed years of a cell such as "58", "58.0", "058Y", "011M" or "030D"; -1 if it is none or over 120."""
    found = _AGE.fullmatch(cell)
    if not found:
        return UNKNOWN_AGE
    years = int(int(found[1]) / _PER_YEAR[found[2].upper()])
    return years if years <= _OLDEST else UNKNOWN_AGE


def select(table: pa.Table, used: Columns) -> Rows:
    """The columns in use, as text without surrounding blanks, each image once.

    A table without studies gets one per image: the image's path without its suffix. Rows that repeat another in
    every used column are dropped. All rows of a study carry the study's text, even those that left it blank.

    Raises:
      ValueError: an image or patient is blank, one image has rows that differ, two images share an id, or a study has
        several patients or texts.
    """
    names = used.roles | used.labels
    columns = {role: _text(table, name) for role, name in names.items()}
    for role in ("image", "patient", *(("study",) if "study" in columns else ())):
        if "" in columns[role]:
            raise ValueError(f"row {columns[role].index('') + 1} has no {role}: column {names[role]!r} is blank")
    # "a.png" and "./a.png" are one image.
    columns["image"] = [str(pathlib.PurePosixPath(image)) for image in columns["image"]]
    kept: dict[str, int] = {}
    different: dict[str, None] = {}
    for i, image in enumerate(columns["image"]):
        first = kept.setdefault(image, i)
        if first != i and any(values[first] != values[i] for values in columns.values()):
            different[image] = None
    _refuse(different, "images stand in several rows that differ", names["image"])
    columns = {role: [values[i] for i in kept.values()] for role, values in columns.items()}
    n = len(columns["image"])
    if "study" not in columns:
        paths = map(pathlib.PurePosixPath, columns["image"])
        stems = [str(path.with_suffix("") if path.name else path) for path in paths]  # "." has no name
        seen: set[str] = set()
        twice = {stem: None for stem in stems if stem in seen or seen.add(stem)}  # type: ignore[func-returns-value]
        _refuse(twice, "image names differ only by their suffix; map a study column", names["image"])
        columns["study"] = stems
    for role in ("view", "sex", "age", *TEXT_FIELDS):
        columns.setdefault(role, [""] * n)
    _per_study(columns["study"], columns["patient"], "studies have several patients", names)
    for field in TEXT_FIELDS:
        texts = _per_study(columns["study"], columns[field], f"studies have differing texts ({field})", names)
        columns[field] = [texts[study] for study in columns["study"]]
    return Rows(columns)


def _per_study(studies: list[str], values: list[str], what: str, names: Mapping[str, str]) -> dict[str, str]:
    """The one value that is not blank of each study."""
    found: dict[str, str] = {}
    several: dict[str, None] = {}
    for study, value in zip(studies, values, strict=True):
        if not found.get(study):
            found[study] = value
        elif value and found[study] != value:
            several[study] = None
    _refuse(several, what, names.get("study", names["image"]))
    return found


def _refuse(items: Collection[str], what: str, column: str) -> None:
    if items:
        raise ValueError(f"{len(items)} {what} (column {column!r}): {cells.names(list(items), _SHOWN)}")


def _text(table: pa.Table, name: str) -> list[str]:
    column = table.column(name)
    try:
        values = column.cast(pa.string()).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise ValueError(f"column {name!r} holds {column.type}; expected text or numbers") from None
    return [(value or "").strip() for value in values]
