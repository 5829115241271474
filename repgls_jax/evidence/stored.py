"""Rows of evidence files, read without holding a whole file: the vocabulary, and the rows of a few studies."""

import pathlib
from collections.abc import Collection
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from repgls_jax import findings as findings_lib
from repgls_jax import sidecars


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
        table = pa.table(batch).select(sidecars.EVIDENCE.names).cast(sidecars.EVIDENCE)
        for row in table.filter(pc.is_in(table["study_id"], wanted)).to_pylist():
            key = row["study_id"], row["finding"]
            if key in seen:
                raise ValueError(f"evidence file {path} holds (study, finding) {key} more than once; extract again")
            seen.add(key)
            found[row["study_id"]].append(row)
    return found
