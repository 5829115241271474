"""Operating points, selective risk, strata and DeLong's test against scikit-learn and plain float64."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from repgls_jax.findings import Vocabulary
from repgls_jax.results import bootstrap, delong, operating, score, selective, strata

FINDINGS = ("Edema", "Fracture", "Nodule")
VOCABULARY = Vocabulary("three", 1, FINDINGS)


def case(seed, n=60, levels=1000, prevalence=0.3):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 3)) < prevalence).astype(np.int8)
    p = 1 / (1 + np.exp(-rng.normal(size=(n, 3)) - labels))
    return (
        (np.round(p * levels) / levels).astype(np.float32),
        labels,
        rng.random((n, 3)) < 0.8,
        rng.integers(0, n // 3, n),
    )


cases = st.builds(
    case,
    st.integers(0, 2**32 - 1),
    levels=st.sampled_from([1, 4, 1000]),
    prevalence=st.sampled_from([0.0, 0.05, 0.4, 1.0]),
)


@settings(max_examples=40, deadline=None)
@given(cases)
def test_thresholds_are_the_best_of_scikit_learns(made):
    p, y, m, _ = made
    chosen = operating.choose(p, y, m, FINDINGS)
    assert set(chosen) == set(operating.RULES) == set(operating.NOTES) and operating.MAIN in chosen
    for j, finding in enumerate(FINDINGS):
        pj, yj = p[m[:, j], j], y[m[:, j], j]
        if len(np.unique(yj)) < 2:
            assert all(each[finding] is None for each in chosen.values())
            continue
        fpr, tpr, at = sk.roc_curve(yj, pj, drop_intermediate=False)
        youden, f1, sensitive = (chosen[rule][finding] for rule in ("youden", "f1", "sensitivity_0.9"))
        assert (tpr - fpr)[1:].max() == pytest.approx((tpr - fpr)[at == np.float32(youden)][0])
        assert np.float32(sensitive) == at[1:][tpr[1:] >= 0.9 - 1e-9].max()
        precision, recall, _ = sk.precision_recall_curve(yj, pj)
        best = (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()
        assert sk.f1_score(yj, pj >= np.float32(f1)) == pytest.approx(best, abs=1e-12)
    assert operating.require(json.loads(json.dumps(chosen)), FINDINGS, "here") == chosen


@settings(max_examples=25, deadline=None)
@given(cases, st.sampled_from([0.25, 0.5, 1.0]))
def test_rates_and_counts_are_scikit_learns(made, threshold):
    p, y, m, patient = made
    thresholds = {"Edema": threshold, "Fracture": threshold, "Nodule": None}
    found = operating.measure(p, y, m, patient, thresholds, FINDINGS, patients=20, replicates=0)
    assert set(found["findings"]["Edema"]) == {"threshold", *operating.CELLS, *operating.RATES}
    for j, finding in enumerate(FINDINGS[:2]):
        yj, call = y[m[:, j], j], p[m[:, j], j] >= threshold
        row = found["findings"][finding]
        tn, fp, fn, tp = sk.confusion_matrix(yj, call, labels=[0, 1]).ravel()
        assert [row[cell] for cell in ("tn", "fp", "fn", "tp")] == [tn, fp, fn, tp]
        expected = {
            "sensitivity": sk.recall_score(yj, call, zero_division=np.nan),
            "specificity": sk.recall_score(yj, call, pos_label=0, zero_division=np.nan),
            "ppv": sk.precision_score(yj, call, zero_division=np.nan),
            "npv": sk.precision_score(yj, call, pos_label=0, zero_division=np.nan),
            "f1": sk.f1_score(yj, call, zero_division=np.nan),
        }
        for name, value in expected.items():
            got = row[name]["value"]
            assert np.isnan(value) if got is None else got == pytest.approx(value, abs=1e-12), name
    nothing = found["findings"]["Nodule"]
    assert nothing["tp"] == nothing["tn"] == 0 and nothing["sensitivity"]["value"] is None


def test_intervals_of_rates_are_those_of_resampled_patients():
    p, y, m, patient = case(3)
    thresholds = dict.fromkeys(FINDINGS, 0.6)
    found = operating.measure(p, y, m, patient, thresholds, FINDINGS, patients=20, replicates=90, seed=5)
    values = []
    for i in range(90):
        drawn = bootstrap.draw(5, i, 20)
        rows = np.concatenate([np.flatnonzero((patient == k) & m[:, 0]) for k in range(20) for _ in range(drawn[k])])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values.append(sk.f1_score(y[rows, 0], p[rows, 0] >= np.float32(0.6), zero_division=np.nan))
    low, high, kept = bootstrap.interval(np.array(values))
    entry = found["findings"]["Edema"]["f1"]
    assert (entry["low"], entry["high"], entry["replicates"]) == (pytest.approx(low), pytest.approx(high), kept)
    mean = found["mean"]["f1"]
    assert mean["findings"] == 3 and mean["low"] < mean["value"] < mean["high"]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ([1], "is not of the form rule -> finding"),
        ({"youden": 0.5}, "is not of the form"),
        ({"youden": {"Edema": 0.5}}, "has no youden threshold of Fracture, Nodule"),
        ({"youden": {"Edema": 2, "Fracture": None, "Nodule": 0.1}}, "threshold 2 of Edema"),
        ({"youden": {"Edema": 0.2, "Fracture": "x", "Nodule": 0.1}}, "threshold 'x' of Fracture"),
    ],
)
def test_thresholds_of_another_form_are_refused(told, message):
    with pytest.raises(ValueError, match=message):
        operating.require(told, FINDINGS, "thresholds.json")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 5, 1000]))
def test_selective_risk_is_what_its_definition_says(seed, levels):
    rng = np.random.default_rng(seed)
    wrong, unsure = rng.random(40) < 0.3, rng.integers(0, levels, 40) / levels
    coverage, risk = selective.risks(wrong, unsure)
    accepted = [unsure <= u for u in np.unique(unsure)]
    np.testing.assert_allclose(coverage, [a.mean() for a in accepted])
    np.testing.assert_allclose(risk, [wrong[a].mean() for a in accepted])
    each = np.mean([wrong[unsure <= u].mean() for u in unsure])
    assert selective.area(coverage, risk) == pytest.approx(each)
    assert selective.at(coverage, risk, 1.0) == pytest.approx(wrong.mean())
    best = selective.area(*selective.risks(wrong, wrong.astype(float) + np.arange(40) * 1e-6))
    assert selective.area(*selective._best(wrong)) == pytest.approx(best)
    assert best <= selective.area(coverage, risk) + 1e-12


def test_an_honest_uncertainty_lowers_the_risk_and_noise_does_not():
    rng = np.random.default_rng(1)
    p = rng.random((4000, 3)).astype(np.float32)
    y = (rng.random(p.shape) < p).astype(np.int8)
    found = selective.measure(
        p, rng.random(p.shape), y, y >= 0, {"Edema": 0.5, "Fracture": None, "Nodule": 0.5}, FINDINGS
    )
    assert found["findings"]["Fracture"] is None
    row, mean = found["findings"]["Edema"], found["mean"]
    assert row["best"] < row["probability"]["aurc"] < 0.7 * row["error"]
    assert row["rate"]["aurc"] == pytest.approx(row["error"], abs=0.03)
    assert row["probability"]["risk"]["0.5"] < row["probability"]["risk"]["0.9"] < row["error"]
    assert mean["error"] == pytest.approx(np.mean([found["findings"][f]["error"] for f in ("Edema", "Nodule")]))
    json.dumps(found, allow_nan=False)


def test_strata_divide_the_pairs_and_score_each_level_by_itself():
    p, y, m, patient = case(4, n=90)
    rng = np.random.default_rng(0)
    wording, mentioned = rng.choice([0.0, 0.05, 0.1, 0.5, 0.7, 0.9, 1.0], p.shape), rng.random(p.shape) < 0.7
    certainty = strata.by_certainty(wording.astype(np.float32), mentioned)
    assert tuple(certainty) == strata.CERTAINTY
    assert (sum(of.astype(int) for of in certainty.values()) == 1).all()
    assert certainty["hedged"][mentioned & (wording == 0.5)].all()
    assert certainty["certain"][mentioned & np.isin(wording, (0.0, 0.1, 0.9))].all()
    age = strata.by_age(rng.integers(-1, 120, 90))
    assert sum(of.sum() for of in age.values()) == 90
    dimensions = {"certainty": certainty, "sex": strata.by_name(["F", "M", ""] * 30), "one": strata.by_name(["x"] * 90)}
    ids, thresholds = [str(i) for i in patient], dict.fromkeys(FINDINGS, 0.5)
    found = strata.measure(p, y, m, ids, VOCABULARY, dimensions, thresholds, replicates=50)
    assert list(found) == ["certainty", "sex"] and list(found["sex"]) == ["F", "M", strata.UNKNOWN]
    assert sum(level["labels"] for level in found["certainty"].values()) == m.sum()
    rows = np.flatnonzero(np.arange(90) % 3 == 0)
    alone = score.score(p[rows], y[rows], m[rows], [ids[i] for i in rows], VOCABULARY, replicates=0)
    level = found["sex"]["F"]
    for finding in FINDINGS:
        for name in ("auroc", "auprc", "brier", "ece"):
            assert level["findings"][finding][name]["value"] == alone["findings"][finding][name]["value"]
    assert level["mean"]["auroc"]["low"] < level["mean"]["auroc"]["value"] < level["mean"]["auroc"]["high"]
    json.dumps(found, allow_nan=False)


def test_rare_levels_are_scored_together():
    levels = strata.by_name([f"view {min(i, 20)}" for i in range(200)])
    assert len(levels) == strata.MOST_LEVELS and next(iter(levels)) == "view 20"
    assert (
        levels[strata.OTHERS].sum() == 200 - sum(of.sum() for name, of in levels.items() if name != strata.OTHERS) > 1
    )


def plain_delong(first, second, y):
    """DeLong's variance of the difference from its definition, pair by pair."""

    def psi(s):
        x, z = s[y == 1].astype(np.float64), s[y == 0].astype(np.float64)
        return (x[:, None] > z) + 0.5 * (x[:, None] == z)

    d = psi(first) - psi(second)
    return d.mean(), d.mean(1).var(ddof=1) / d.shape[0] + d.mean(0).var(ddof=1) / d.shape[1]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 5, 1000]))
def test_delong_is_its_definition(seed, levels):
    rng = np.random.default_rng(seed)
    y = rng.permutation([1] * 8 + [0] * 22).astype(np.int8)
    first, second = (np.round(rng.random((2, 30)) * levels) / levels).astype(np.float32)
    expected, variance = plain_delong(first, second, y)
    found = delong.test(first, second, y)
    assert found.difference == pytest.approx(expected, abs=1e-12)
    assert found.first == pytest.approx(sk.roc_auc_score(y, first), abs=1e-12)
    assert found.error**2 == pytest.approx(variance, abs=1e-12)
    alone = delong.test(first, second, y, np.arange(30))  # a patient each
    np.testing.assert_allclose(alone, found, atol=1e-12)


def test_delong_of_patients_agrees_with_their_bootstrap_and_films_of_one_do_not_count_twice():
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(400), 3)
    y = np.repeat((rng.random(400) < 0.3).astype(np.int8), 3)[:, None]
    p = np.repeat(rng.normal(size=(400, 2)) + y[::3], 3, axis=0)  # three copies of each film
    p = (1 / (1 + np.exp(-p))).astype(np.float32)
    copied = delong.test(p[:, 0], p[:, 1], y[:, 0], patient)
    single = delong.test(p[::3, 0], p[::3, 1], y[::3, 0])
    assert copied.error == pytest.approx(single.error, rel=1e-9)
    assert delong.test(p[:, 0], p[:, 1], y[:, 0]).error < 0.6 * single.error
    drawn = [
        bootstrap.replicates(1, p[:, [k]], y, y >= 0, patient, patients=400, count=1000, names=("auroc",))["auroc"]
        for k in (0, 1)
    ]
    assert np.std(drawn[0] - drawn[1]) == pytest.approx(copied.error, rel=0.1)


def test_delong_needs_two_of_each():
    with pytest.raises(ValueError, match="1 positives and 3 negatives"):
        delong.test(np.arange(4.0), np.arange(4.0), np.array([1, 0, 0, 0]))
    with pytest.raises(ValueError, match="1 patients with a positive and 2 with a negative"):
        delong.test(np.arange(4.0), np.arange(4.0), np.array([1, 1, 0, 0]), np.array([1, 1, 2, 3]))
    same = delong.test(np.arange(4.0), np.arange(4.0), np.array([1, 1, 0, 0]))
    assert (same.difference, same.error, same.p) == (0, 0, 1)
