"""Joining evidence, given labels and rates, in the order of the examples."""

import numpy as np
import pyarrow as pa
import pytest

from repgls_jax import sidecars
from repgls_jax.findings import CHEXPERT, NIH, NOT_MENTIONED
from repgls_jax.policies import PolicyConfig
from repgls_jax.train import labels

C = len(CHEXPERT)


def evidence(rows: list[tuple[str, str, int, float]]) -> pa.Table:
    blank = {"cue": "x", "section": "findings", "field": "findings", "start": 0, "end": 1, "mention": 0}
    blank |= {"labeller": "l", "version": "v", "prompt_hash": "", "report_hash": "h"}
    values = [dict(zip(("study_id", "finding", "state", "p"), row, strict=True)) | blank for row in rows]
    return pa.Table.from_pylist(values, schema=sidecars.EVIDENCE)


def examples(**changes: object) -> dict[str, np.ndarray]:
    """Three images: two of study a (with a report), one of study b (labelled, without)."""
    given = np.full((3, C), NOT_MENTIONED, np.int8)
    given[2, 2] = 1
    observed = np.zeros((3, C), bool)
    observed[2, 2] = True
    made = {"study_id": ["a", "b", "a"], "has_report": np.array([True, False, True])}
    order = [0, 2, 1]
    return made | {"labels": given[order], "observed": observed[order]} | changes


def test_reports_label_their_studies_and_given_labels_the_rest():
    made = labels.columns(examples(), evidence([("a", "Edema", -1, 0.7), ("zzz", "Edema", 1, 1.0)]), CHEXPERT)
    k = CHEXPERT.index("Edema")
    np.testing.assert_array_equal(made["state"][:, k], [-1, NOT_MENTIONED, -1])
    np.testing.assert_allclose(made["p"][:, k], [0.7, np.nan, 0.7])
    np.testing.assert_array_equal(made["state"][:, 2], [NOT_MENTIONED, 1, NOT_MENTIONED])
    assert made["p"][1, 2] == 1.0
    # A report observes all findings, a given label its own.
    np.testing.assert_array_equal(made["observed"].sum(1), [C, 1, C])
    assert made["observed"][1, 2]


def test_rates_by_policy():
    table = evidence([("a", "Edema", -1, 0.7)])
    made = labels.columns(examples(), table, CHEXPERT)
    k = CHEXPERT.index("Edema")
    ids = examples()["study_id"]
    assert "rate" not in labels.with_rates(made, ids, None, CHEXPERT, PolicyConfig("u_ones"), 0)
    expert = labels.with_rates(made, ids, None, CHEXPERT, PolicyConfig("expert", r_blank=0.1), 0)["rate"]
    np.testing.assert_allclose(expert[:, k], [0.6, 0.1, 0.6], atol=1e-6)
    values = {"study_id": ["a"], "finding": ["Edema"], "rate": [0.3], "labeller": [""], "version": [""]}
    rates = pa.table({**values, "evidence_hash": [""]}, schema=sidecars.RATES)
    rgn = labels.with_rates(made, ids, rates, CHEXPERT, PolicyConfig("rgn"), 0)["rate"]
    np.testing.assert_allclose(rgn[:, k], [0.3, 0, 0.3], atol=1e-6)
    with pytest.raises(ValueError, match="no reports"):
        labels.with_rates(made, ids, None, CHEXPERT, PolicyConfig("rgn"), 0)
    with pytest.raises(ValueError, match="belief"):
        labels.with_rates(made, ids, None, CHEXPERT, PolicyConfig("oracle"), 0)


def test_reference_prefers_truth_and_leaves_doubt_out():
    made = labels.columns(examples(), evidence([("a", "Edema", -1, 0.7)]), CHEXPERT)
    told = examples()["has_report"]
    y, mask, name = labels.reference(made, told)
    assert not mask[0, CHEXPERT.index("Edema")] and mask[0, 0] and "wording" in name
    assert y[1, 2] == 1 and mask[1].sum() == 1
    truth = np.ones((3, C), np.int8)
    y, mask, name = labels.reference(made | {"truth": truth}, told)
    assert name == "truth" and mask.all() and y.all()


def test_side_cars_refuse_what_they_are_not(tmp_path):
    path = tmp_path / "evidence.parquet"
    columns = evidence([("a", "Edema", -1, 0.7)]).to_pydict()
    sidecars.write(path, columns, sidecars.EVIDENCE, CHEXPERT)
    assert sidecars.read(path, sidecars.EVIDENCE, CHEXPERT).num_rows == 1
    with pytest.raises(ValueError, match=r"Enlarged Cardiomediastinum.*Infiltrate"):
        sidecars.read(path, sidecars.EVIDENCE, NIH)
    with pytest.raises(ValueError, match="lacks the columns"):
        sidecars.read(path, sidecars.RATES, CHEXPERT)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        sidecars.read(tmp_path / "none.parquet", sidecars.EVIDENCE, CHEXPERT)
    sidecars.write(path, {k: v * 2 for k, v in columns.items()}, sidecars.EVIDENCE, CHEXPERT)
    with pytest.raises(ValueError, match="more than once"):
        sidecars.read(path, sidecars.EVIDENCE, CHEXPERT)
