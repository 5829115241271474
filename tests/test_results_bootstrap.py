"""The bootstrap: weights equal resampling, patients move together, intervals cover, draws repeat."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import ece_oracle
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from repgls_jax.findings import Vocabulary
from repgls_jax.results import bootstrap, compare, metrics, score, table, weighted

VOCABULARY = Vocabulary("four", 1, ("Edema", "Fracture", "Pneumonia", "Nodule"))


def predictions(n, seed=0, gap=1.0, prevalence=0.3):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 4)) < prevalence).astype(np.int8)
    p = 1 / (1 + np.exp(-(rng.normal(size=(n, 4)) + gap * labels)))
    return np.round(p, 2).astype(np.float32), labels, rng.random((n, 4)) < 0.9


def plain(p, y, patient, drawn):
    """One replicate the long way: the images of each patient, as often as drawn, scored by scikit-learn in float64."""
    rows = np.concatenate([np.flatnonzero(patient == i) for i in range(len(drawn)) for _ in range(drawn[i])])
    p, y = p[rows].astype(np.float64), y[rows]
    both = len(np.unique(y)) == 2
    return {
        "auroc": roc_auc_score(y, p) if both else np.nan,
        "auprc": average_precision_score(y, p) if both else np.nan,
        "brier": brier_score_loss(y, p) if len(y) else np.nan,
        "ece": ece_oracle(p, y, np.ones(len(y))) if len(y) else np.nan,
    }


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 1000]), st.sampled_from([40, 131, 300]))
def test_weights_equal_explicit_resampling(seed, levels, n):
    """Few levels make many ties, and blocks of one score; n passes the size of a block and of the running sums."""
    rng = np.random.default_rng(seed)
    p, y, m = predictions(n, seed, prevalence=rng.choice([0.02, 0.3, 0.95]))
    p = (np.round(p * levels) / levels).astype(np.float32)
    patient = rng.integers(0, 15, n)
    found = bootstrap.replicates(7, p, y, m, patient, patients=15, count=70)
    for i in (0, 66):  # of two blocks of draws
        drawn = bootstrap.draw(7, i, 15)
        assert drawn.sum() == 15
        for j in range(4):
            kept = m[:, j]
            expected = plain(p[kept, j], y[kept, j], patient[kept], drawn)
            assert set(found) == set(expected) == set(metrics.METRICS) == set(weighted.METRICS)
            for name, value in expected.items():
                np.testing.assert_allclose(found[name][i, j], value, atol=1e-6, err_msg=name)


def test_intervals_are_those_of_a_plain_numpy_bootstrap():
    """Other draws, by another way: percentiles of 400 replicates of 400 agree to what their own chance allows."""
    rng = np.random.default_rng(2)
    p, y, m = predictions(400)
    patient = rng.integers(0, 150, 400)
    found = bootstrap.interval(
        bootstrap.replicates(0, p, y, m, patient, patients=150, count=2000, names=("auroc",))["auroc"]
    )
    kept = np.flatnonzero(m[:, 0])
    of = [kept[patient[kept] == i] for i in range(150)]
    areas = []
    for _ in range(400):
        rows = np.concatenate([of[i] for i in rng.integers(0, 150, 150)])
        areas.append(roc_auc_score(y[rows, 0], p[rows, 0]))
    width = found.high[0] - found.low[0]
    np.testing.assert_allclose(np.quantile(areas, [0.025, 0.975]), [found.low[0], found.high[0]], atol=0.15 * width)


def test_a_replicate_depends_on_the_seed_and_its_number_alone():
    p, y, m = predictions(40)
    patient = np.random.default_rng(1).integers(0, 15, 40)

    def run(seed, count):
        found = bootstrap.replicates(seed, p, y, m, patient, patients=15, count=count)
        return np.stack([found[name] for name in metrics.METRICS])

    np.testing.assert_array_equal(run(0, 70), run(0, 70))
    np.testing.assert_allclose(run(0, 70)[:, :9], run(0, 9), rtol=1e-12)
    assert not np.array_equal(run(0, 70), run(1, 70), equal_nan=True)


def test_large_weights_and_large_sets_keep_their_digits():
    """Sums past 2^24, which float32 does not count: the same as of one patient each, and scikit-learn's."""
    p, y, m = predictions(300)
    huge = np.full(300, 2.0**20, np.float32)
    one, other = bootstrap.exact(p, y, m), bootstrap.exact(p, y, m, weights=huge)
    for name in metrics.METRICS:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-12)
    rng = np.random.default_rng(3)
    y = (rng.random((200_000, 1)) < 0.01).astype(np.int8)
    p = np.round(1 / (1 + np.exp(-rng.normal(size=y.shape) - y)), 4).astype(np.float32)
    found = bootstrap.exact(p, y, y >= 0)
    assert found["auroc"][0] == pytest.approx(roc_auc_score(y[:, 0], p[:, 0]), abs=1e-10)
    assert found["auprc"][0] == pytest.approx(average_precision_score(y[:, 0], p[:, 0]), abs=1e-10)


def test_intervals_cover_the_truth():
    # AUROC of N(1, 1) against N(0, 1) is Phi(1 / sqrt 2).
    truth, trials = 0.7602, 60
    covered = 0
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        y = (rng.random((200, 1)) < 0.4).astype(np.int8)
        z = (rng.normal(size=(200, 1)) + y).astype(np.float32)
        found = bootstrap.replicates(seed, z, y, y >= 0, np.arange(200), patients=200, count=200, names=("auroc",))
        low, high, _ = bootstrap.interval(found["auroc"])
        covered += bool(low[0] <= truth <= high[0])
    # 95 % of 60 is 57; below 50 or at 60 of 60 with intervals of this width would be a fault, or luck of 1 in 1,000.
    assert covered >= 50


def test_interval_counts_what_remains():
    values = np.linspace(0, 1, 101)[:, None].repeat(3, axis=1)
    values[:50, 1], values[: 101 - bootstrap.FEWEST + 1, 2] = np.nan, np.nan
    low, high, kept = bootstrap.interval(values)
    assert kept.tolist() == [101, 51, bootstrap.FEWEST - 1]
    np.testing.assert_allclose(low[:2], [0.025, 0.5 + 0.5 * 0.025])
    np.testing.assert_allclose(high[:2], [0.975, 0.5 + 0.5 * 0.975])
    assert np.isnan(low[2]) and np.isnan(high[2])


def test_the_mean_is_always_over_the_same_findings():
    values = np.array([[0.5, 0.7, np.nan], [0.5, np.nan, np.nan]])
    mean = bootstrap.mean(values, np.array([True, True, False]))
    assert mean[0] == pytest.approx(0.6) and np.isnan(mean[1])
    assert np.isnan(bootstrap.mean(values, np.zeros(3, bool))).all()


def test_a_paired_comparison_is_sharper_than_two_intervals():
    p, y, m = predictions(60)
    noise = np.random.default_rng(9).normal(size=p.shape) * 0.05
    worse = np.clip(p + noise, 0, 1).astype(np.float32)
    ids = [f"p{i // 2}" for i in range(60)]
    same = compare.compare(p, p, y, m, ids, VOCABULARY, replicates=100)
    assert same["mean"]["auroc"] | {"replicates": 0} == {
        "value": 0, "low": 0, "high": 0, "replicates": 0, "above_zero": 0.5, "findings": 4
    }  # fmt: skip
    found = compare.compare(worse, p, y, m, ids, VOCABULARY, replicates=100)["mean"]["auroc"]
    assert found["low"] <= found["value"] <= found["high"]
    one = score.score(p, y, m, ids, VOCABULARY, replicates=100)["mean"]["auroc"]
    assert found["high"] - found["low"] < 0.5 * (one["high"] - one["low"])
    with pytest.raises(ValueError, match="replicates is 0"):
        compare.compare(p, p, y, m, ids, VOCABULARY, replicates=0)


def test_arms_average_their_seeds_and_share_the_draws():
    p, y, m = predictions(60)
    ids = [f"p{i // 2}" for i in range(60)]
    worse = [np.clip(p + np.random.default_rng(k).normal(size=p.shape) * 0.2, 0, 1).astype(np.float32) for k in (0, 1)]
    rows = compare.arms({"a": [p], "b": worse}, "a", y, m, ids, VOCABULARY, replicates=100)
    pairs = [compare.compare(p, w, y, m, ids, VOCABULARY, replicates=100)["mean"] for w in worse]
    for metric in metrics.METRICS:
        entry = rows["b"][metric]
        singles = [score.score(w, y, m, ids, VOCABULARY, replicates=0)["mean"][metric]["value"] for w in worse]
        assert entry["seeds"] == pytest.approx(singles) and entry["value"] == pytest.approx(np.mean(singles))
        expected = np.mean([pair[metric]["value"] for pair in pairs])
        assert entry["difference"]["value"] == pytest.approx(expected, abs=1e-6)
        assert rows["a"][metric]["difference"]["value"] == 0
    text = table.format_arms(rows, "a")
    assert text.count("\n") == 4 and "+0.000 [+0.000, +0.000]" in text and "AUROC less a" in text
    with pytest.raises(ValueError, match="baseline 'c' is not an arm; expected one of a, b"):
        compare.arms({"a": [p], "b": worse}, "c", y, m, ids, VOCABULARY)
