"""Evidence files, opened and checked: the vocabulary, whole columns, and the rows of a few studies."""

import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from repgls_jax import findings as findings_lib
from repgls_jax import sidecars

_STATES = (findings_lib.POSITIVE, findings_lib.NEGATIVE, findings_lib.UNCERTAIN)


def open_file(path: pathlib.Path) -> tuple[pq.ParquetFile, findings_lib.Vocabulary]:
    """An evidence file, opened and checked but not read, and the vocabulary that it was made with.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not Parquet, lacks a column of :data:`repgls_jax.sidecars.EVIDENCE`, or carries no known
        vocabulary.
    """
    if not path.exists():
        raise FileNotFoundError(f"evidence file {path} does not exist; write it with extract_uncertainty")
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"evidence file {path} is not a Parquet file; write it with extract_uncertainty") from error
    schema = file.schema_arrow
    missing = [name for name in sidecars.EVIDENCE.names if name not in schema.names]
    if missing:
        raise ValueError(
            f"evidence file {path} lacks the columns {missing}; expected those of this version, so extract again"
        )
    stored = (schema.metadata or {}).items()
    for vocabulary in findings_lib.VOCABULARIES.values():
        if (sidecars.with_vocabulary(pa.schema([]), vocabulary).metadata or {}).items() <= stored:
            return file, vocabulary
    raise ValueError(
        f"evidence file {path} carries no vocabulary of this version; expected one of "
        f"{', '.join(findings_lib.VOCABULARIES)}, so extract again"
    )


def typed(table: pa.Table, columns: Sequence[str], path: pathlib.Path) -> pa.Table:
    """``columns`` of some rows of ``path``, in the types of :data:`repgls_jax.sidecars.EVIDENCE`.

    Raises:
      ValueError: a column is of a type that does not convert; the message holds no value.
    """
    try:
        return table.select(columns).cast(pa.schema([sidecars.EVIDENCE.field(name) for name in columns]))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        # "from None": Arrow quotes the value that does not convert.
        kinds = ", ".join(f"{name} {table.schema.field(name).type}" for name in columns)
        raise ValueError(f"evidence file {path} has columns of other types ({kinds}); extract again") from None


def possible(state: np.ndarray, p: np.ndarray) -> bool:
    """Whether every state is -1, 0 or 1, and every p in [0, 1]."""
    return bool(np.isin(state, _STATES).all() and ((p >= 0) & (p <= 1)).all())


def read(path: pathlib.Path, columns: Sequence[str]) -> tuple[pa.Table, findings_lib.Vocabulary]:
    """Columns of a whole file in the types of :data:`repgls_jax.sidecars.EVIDENCE`, and its vocabulary.

    Args:
      path: evidence file.
      columns: names; study_id, finding, state and p must be among them.

    Raises:
      FileNotFoundError, ValueError: see :func:`open_file`; or a value is missing or impossible, or a
        (study, finding) pair stands twice.
    """
    file, vocabulary = open_file(path)
    table = typed(file.read(columns=list(columns)), columns, path)
    for name in columns:
        if table[name].null_count:
            raise ValueError(f"evidence file {path} has rows without {name}; the file is damaged, extract again")
    if not possible(table["state"].to_numpy(), table["p"].to_numpy()):
        raise ValueError(f"evidence file {path} has a state beside -1, 0 and 1, or a p beside [0, 1]; extract again")
    strange = set(pc.unique(table["finding"]).to_pylist()) - set(vocabulary.findings)
    if strange:
        raise ValueError(f"evidence file {path} has findings that its vocabulary lacks ({len(strange)}); extract again")
    if table.select(["study_id", "finding"]).group_by(["study_id", "finding"]).aggregate([]).num_rows < len(table):
        raise ValueError(f"evidence file {path} holds a (study_id, finding) pair more than once; extract again")
    return table, vocabulary


def places(column: pa.ChunkedArray, values: pa.Array) -> np.ndarray:
    """Where each of n entries of a column stands among ``values``: int32 [n], -1 for what is not among them."""
    return pc.fill_null(pc.index_in(column, values), -1).to_numpy()


def rows_of(path: pathlib.Path, study_ids: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """The rows of some studies, in file order, read batch by batch.

    Args:
      path: evidence file.
      study_ids: ids to keep.

    Returns:
      study id -> its rows (column -> value), an empty list for a study without any.

    Raises:
      FileNotFoundError, ValueError: see :func:`open_file`; or a (study, finding) stands twice.
    """
    file, _ = open_file(path)
    wanted = pa.array(list(study_ids), pa.string())
    found: dict[str, list[dict[str, Any]]] = {study_id: [] for study_id in study_ids}
    seen: set[tuple[str, str]] = set()
    for batch in file.iter_batches(columns=sidecars.EVIDENCE.names):
        table = typed(pa.Table.from_batches([batch]), sidecars.EVIDENCE.names, path)
        for row in table.filter(pc.is_in(table["study_id"], wanted)).to_pylist():
            key = row["study_id"], row["finding"]
            if key in seen:
                raise ValueError(f"evidence file {path} holds (study, finding) {key} more than once; extract again")
            seen.add(key)
            found[row["study_id"]].append(row)
    return found
