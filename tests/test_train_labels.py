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
    blank = {"cue": "x", "section": "findings", "field": "findings", "start": 0, "end": 1}
    blank |= {"mention": 0, "mention_end": 1, "cue_start": -1, "cue_end": -1}
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


def test_a_report_that_could_not_be_read_says_nothing_not_even_absence(tmp_path):
    both = examples()
    both["labels"][0, 4], both["observed"][0, 4] = 1, True  # study a has a label of its own too
    path = tmp_path / "evidence.parquet"
    rows = evidence([("zzz", "Edema", 1, 1.0)]).to_pydict()
    sidecars.write(path, rows, sidecars.EVIDENCE, CHEXPERT, unread=["a"])
    table = sidecars.read(path, sidecars.EVIDENCE, CHEXPERT)
    assert labels.was_read(both, table).tolist() == [False] * 3
    made = labels.columns(both, table, CHEXPERT)
    assert made["observed"].tolist() == both["observed"].tolist() and made["state"][0, 4] == 1
    assert labels.columns(both, evidence([]), CHEXPERT)["observed"].sum() == 2 * C + 1


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


def test_reference_prefers_truth_then_given_labels_and_leaves_doubt_out():
    both = examples()
    both["labels"][0, 2], both["observed"][0, 2] = 1, True  # study a has a report and a label of its own
    both["labels"][0, 3], both["observed"][0, 3] = -1, True
    alone = examples(labels=np.full((3, C), NOT_MENTIONED, np.int8), observed=np.zeros((3, C), bool))
    edema = CHEXPERT.index("Edema")
    table = evidence(
        [("a", "Edema", -1, 0.7), ("a", CHEXPERT.findings[2], 0, 0.0), ("a", CHEXPERT.findings[3], 1, 1.0)]
    )
    made = labels.columns(both, table, CHEXPERT)
    assert made["state"][0, 2] == 0  # training reads the report
    y, mask, name = labels.reference(made, both["has_report"])
    assert y[0, 2] == 1 and mask[0, 2]  # scoring the label
    assert not mask[0, 3] and not mask[0, edema] and mask[0, 0]
    assert y[1, 2] == 1 and mask[1].sum() == 1
    assert "labels of the data set (3)" in name and "wording" in name
    assert not mask[2].any()  # no label of its own in a split that has labels
    y, mask, name = labels.reference(labels.columns(alone, table, CHEXPERT), alone["has_report"])
    assert "the reports" in name and mask[[0, 2]].sum() == 2 * (C - 1) and not mask[1].any()
    truth = np.ones((3, C), np.int8)
    y, mask, name = labels.reference(made | {"truth": truth}, both["has_report"])
    assert name == "truth" and mask.all() and y.all()


@pytest.mark.parametrize("policy", ["permuted", "rgn_permuted"])
def test_the_control_is_permuted_by_study(policy):
    n = 200
    ids = [f"s{i // 2}" for i in range(n)]  # two images a study
    p = np.random.default_rng(0).choice([0.55, 0.65, 0.75, 0.85, 0.95, 1.0], n // 2)
    table = evidence([(f"s{i}", "Edema", -1, float(v)) for i, v in enumerate(p)])
    given = {"labels": np.full((n, C), NOT_MENTIONED, np.int8), "observed": np.zeros((n, C), bool)}
    made = labels.columns({"study_id": ids, "has_report": np.ones(n, bool), **given}, table, CHEXPERT)
    k = CHEXPERT.index("Edema")
    plain = policy.replace("permuted", "expert") if policy == "permuted" else "rgn"
    values = {"study_id": [f"s{i}" for i in range(n // 2)], "finding": ["Edema"] * (n // 2), "rate": 2 * (1 - p)}
    rates = pa.table(values | {c: [""] * (n // 2) for c in ("labeller", "version", "evidence_hash")}, sidecars.RATES)
    before = labels.with_rates(made, ids, rates, CHEXPERT, PolicyConfig(plain), 0)["rate"][:, k]
    after = labels.with_rates(made, ids, rates, CHEXPERT, PolicyConfig(policy), 0)["rate"][:, k]
    np.testing.assert_array_equal(after[::2], after[1::2])
    np.testing.assert_allclose(np.sort(after), np.sort(before))
    assert np.mean(after != before) > 0.5 and abs(np.corrcoef(after, before)[0, 1]) < 0.3


def test_labels_without_a_report_keep_the_experts_rate_under_the_rgn():
    alone = examples()
    alone["labels"][1, 4], alone["observed"][1, 4] = -1, True
    made = labels.columns(alone, evidence([("a", "Edema", -1, 0.7)]), CHEXPERT)
    rates = pa.table({name: [] for name in sidecars.RATES.names}, schema=sidecars.RATES)
    rate = labels.with_rates(made, alone["study_id"], rates, CHEXPERT, PolicyConfig("rgn"), 0)["rate"]
    assert rate[1, 4] == pytest.approx(0.95)  # p = 1/2, clipped


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
