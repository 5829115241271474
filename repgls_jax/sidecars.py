"""Side-cars: Parquet files keyed by (study_id, finding) that travel beside the image shards.

  evidence.parquet   what the report says of each finding (written by the extractor)
  rates.parquet      the rate of each finding (written by the Rate Generation Network)

Re-labelling writes a new side-car and never touches pixels. A side-car holds no report text: the sentence behind a
row is given by offsets into a field of the report. File metadata carries the vocabulary, so that a file made with
other findings is refused instead of misread.
"""

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from repgls_jax import findings as findings_lib

EVIDENCE = pa.schema(
    [
        ("study_id", pa.string()),
        ("finding", pa.string()),
        ("state", pa.int8()),  # 1, 0 or -1; a finding that is not mentioned has no row
        ("p", pa.float32()),  # probability of presence that the wording expresses, [0, 1]
        ("cue", pa.string()),  # id of the certainty cue; "" for a bare mention
        ("section", pa.string()),  # findings, impression, or other
        ("field", pa.string()),  # which field of the report the offsets point into
        ("start", pa.int32()),  # the sentence, as character offsets into that field
        ("end", pa.int32()),
        ("mention", pa.int32()),  # the words that name the finding
        ("mention_end", pa.int32()),
        ("cue_start", pa.int32()),  # the words of the cue; -1 and -1 when no words of the report are pointed at
        ("cue_end", pa.int32()),
        ("labeller", pa.string()),
        ("version", pa.string()),
        ("prompt_hash", pa.string()),  # "" for labellers without a prompt
        ("report_hash", pa.string()),
    ]
)

RATES = pa.schema(
    [
        ("study_id", pa.string()),
        ("finding", pa.string()),
        ("rate", pa.float32()),  # r in (-1, 1)
        ("labeller", pa.string()),
        ("version", pa.string()),
        ("evidence_hash", pa.string()),  # of the evidence file the rates were made from
    ]
)

_VOCABULARY = b"repgls_vocabulary"
_UNREAD = b"repgls_unread"


def with_vocabulary(schema: pa.Schema, vocabulary: findings_lib.Vocabulary) -> pa.Schema:
    """``schema`` with the vocabulary written into its metadata."""
    value = {"name": vocabulary.name, "version": vocabulary.version, "findings": vocabulary.findings}
    return schema.with_metadata({_VOCABULARY: json.dumps(value).encode()})


def with_unread(schema: pa.Schema, study_ids: Iterable[str]) -> pa.Schema:
    """``schema`` with the ids of the studies whose report could not be read written into its metadata."""
    ids = sorted(set(study_ids))
    return schema.with_metadata({**(schema.metadata or {}), _UNREAD: json.dumps(ids).encode()}) if ids else schema


def unread(evidence: pa.Table) -> frozenset[str]:
    """Ids of the studies whose report could not be read: what it says is not known, which is not "not mentioned"."""
    return frozenset(json.loads((evidence.schema.metadata or {}).get(_UNREAD, b"[]")))


def write(
    path: pathlib.Path,
    columns: Mapping[str, Any],
    schema: pa.Schema,
    vocabulary: findings_lib.Vocabulary,
    unread: Iterable[str] = (),
) -> None:
    """Writes a side-car whole or not at all (a temporary file is renamed into place).

    Args:
      path: file to write; its folder must exist.
      columns: name -> values, all of one length, for every field of ``schema``.
      schema: :data:`EVIDENCE` or :data:`RATES`.
      vocabulary: findings that ``columns["finding"]`` is drawn from.
      unread: ids of studies whose report could not be read.
    """
    table = pa.table(dict(columns), schema=with_unread(with_vocabulary(schema, vocabulary), unread))
    temporary = path.with_name(path.name + ".partial")
    pq.write_table(table, temporary)
    temporary.replace(path)


def write_rates(
    path: pathlib.Path,
    rates: np.ndarray,
    kept: np.ndarray,
    study_ids: Sequence[str],
    vocabulary: findings_lib.Vocabulary,
    **origin: str,
) -> None:
    """Writes a side-car of :data:`RATES`.

    Args:
      path: where.
      rates: [n, c] float in (-1, 1).
      kept: [n, c] bool, entries that are written; the rate of the others is the policy's ``r_blank``.
      study_ids: n ids.
      vocabulary: order of the findings.
      origin: ``labeller``, ``version`` and ``evidence_hash``, the same for all.
    """
    studies, columns = np.nonzero(kept)
    rows = {
        "study_id": [study_ids[i] for i in studies.tolist()],
        "finding": [vocabulary.findings[k] for k in columns],
        "rate": rates[studies, columns].astype(np.float32),
        **{name: [value] * len(studies) for name, value in origin.items()},
    }
    write(path, rows, RATES, vocabulary)


def read(path: pathlib.Path, schema: pa.Schema, vocabulary: findings_lib.Vocabulary) -> pa.Table:
    """Reads a side-car and checks its columns, its vocabulary and that no (study, finding) stands twice.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a column is missing, the vocabulary differs, or a (study, finding) pair is repeated.
    """
    if not path.exists():
        raise FileNotFoundError(f"side-car {path} does not exist; run the stage that writes it first")
    table = pq.read_table(path)
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise ValueError(f"side-car {path} lacks the columns {missing}; it has {table.column_names}")
    stored = (table.schema.metadata or {}).get(_VOCABULARY)
    if stored is None:
        raise ValueError(f"side-car {path} carries no vocabulary; it was not written by this project")
    findings_lib.require_same(vocabulary.findings, json.loads(stored)["findings"], f"side-car {path}")
    table = table.select(schema.names).cast(with_unread(schema, unread(table)))
    keys = table.select(["study_id", "finding"])
    if keys.group_by(["study_id", "finding"]).aggregate([]).num_rows != table.num_rows:
        raise ValueError(f"side-car {path} holds a (study_id, finding) pair more than once")
    return table


def as_array(
    table: pa.Table, column: str, study_ids: Sequence[str], vocabulary: findings_lib.Vocabulary, fill: float | str
) -> np.ndarray:
    """One column of a side-car as a dense array.

    Args:
      table: from :func:`read`.
      column: any column of numbers or strings.
      study_ids: n ids in the order of the result; ids may repeat (several images of a study). Rows of other studies
        are left out.
      vocabulary: order of the findings.
      fill: value where the side-car has no row.

    Returns:
      [n, c] array of the column's dtype; of objects for strings.
    """
    dtype = table.schema.field(column).type.to_pandas_dtype()
    order = {name: i for i, name in enumerate(dict.fromkeys(study_ids))}
    rows = np.array([order.get(s, -1) for s in table.column("study_id").to_pylist()], np.int64)
    cols = np.array([vocabulary.index(f) for f in table.column("finding").to_pylist()], np.int64)
    values = table.column(column).to_numpy()
    dense = np.full((len(order), len(vocabulary)), fill, dtype)
    known = rows >= 0
    dense[rows[known], cols[known]] = values[known]
    return dense[[order[s] for s in study_ids]]
