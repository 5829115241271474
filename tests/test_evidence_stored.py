"""Evidence files as other tools leave them: any text type is read alike, and what cannot be true is refused."""

import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from repgls_jax import findings as findings_lib
from repgls_jax import sidecars
from repgls_jax.evidence import compare, describe, stored

CANARY = "zebrafinch"
COLUMNS = ["study_id", "finding", "state", "p", "cue"]


def write(path: pathlib.Path, **changed) -> pathlib.Path:
    """Three rows of two studies, with the columns ``changed``."""
    known = {"study_id": ["a", "a", "b"], "finding": ["Mass", "Edema", "Mass"], "state": [1, -1, 0], "p": [1.0, 0.5, 0]}
    columns = {
        field.name: pa.array(known.get(field.name, ["" if field.type == "string" else 0] * 3), field.type)
        for field in sidecars.EVIDENCE
    }
    schema = sidecars.with_vocabulary(sidecars.EVIDENCE, findings_lib.UNION)
    pq.write_table(pa.table(columns | changed).replace_schema_metadata(schema.metadata), path)
    return path


def test_types_that_other_tools_write_are_read_alike(tmp_path):
    plain = write(tmp_path / "plain.parquet")
    large, coded = pa.array(["a", "a", "b"], pa.large_string()), pa.array(["Mass", "Edema", "Mass"]).dictionary_encode()
    other = write(tmp_path / "other.parquet", study_id=large, finding=coded, p=pa.array([1.0, 0.5, 0.0]))
    assert stored.read(other, COLUMNS)[0].equals(stored.read(plain, COLUMNS)[0])
    assert stored.rows_of(other, ["b"]) == stored.rows_of(plain, ["b"])
    assert describe.describe(other) == describe.describe(plain)
    result = compare.compare(compare.align(compare.load(plain), compare.load(other)))
    assert result["pooled"]["agreement"] == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"p": pa.array([CANARY] * 3)}, "other types"),
        ({"state": pa.array([[1], [1], [1]])}, "other types"),
        ({"state": pa.array([1, 2, 0], pa.int8())}, "state beside"),
        ({"p": pa.array([1.0, 0.5, float("nan")])}, "p beside"),
        ({"study_id": pa.array(["a", None, "b"])}, "rows without study_id"),
        ({"finding": pa.array(["Mass", CANARY, "Mass"])}, "findings that its vocabulary lacks"),
        ({"finding": pa.array(["Mass", "Mass", "Mass"])}, "more than once"),
    ],
)
def test_what_cannot_be_true_is_refused_without_a_value(tmp_path, changed, said):
    path = write(tmp_path / "e.parquet", **changed)
    with pytest.raises(ValueError, match=said) as error:
        stored.read(path, COLUMNS)
    assert CANARY not in str(error.value) and str(path) in str(error.value)
    assert error.value.__suppress_context__ or error.value.__context__ is None
