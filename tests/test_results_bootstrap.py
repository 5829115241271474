"""The bootstrap: weights equal resampling, patients move together, intervals cover, draws repeat."""

import jax
import numpy as np
import pytest

from repgls_jax.findings import Vocabulary
from repgls_jax.results import bootstrap, compare, metrics, score, table

VOCABULARY = Vocabulary("four", 1, ("Edema", "Fracture", "Pneumonia", "Nodule"))


def predictions(n, seed=0, gap=1.0, prevalence=0.3):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 4)) < prevalence).astype(np.int8)
    p = 1 / (1 + np.exp(-(rng.normal(size=(n, 4)) + gap * labels)))
    return np.round(p, 2).astype(np.float32), labels, rng.random((n, 4)) < 0.9


def test_weights_equal_explicit_resampling():
    p, y, m = predictions(40)
    patient = np.random.default_rng(1).integers(0, 15, 40)
    key = jax.random.key(3)
    found = bootstrap.replicates(key, p, y, m, patient, patients=15, count=70)
    for i in range(5):
        counts = np.asarray(bootstrap.draw(jax.random.fold_in(key, i), 15)).astype(int)
        assert counts.sum() == 15
        rows = np.repeat(np.arange(40), counts[patient])
        # Zero-padded to one shape, so that one program is compiled.
        padded = np.pad(rows, (0, 120 - len(rows)))
        kept = (np.arange(120) < len(rows))[:, None] & m[padded]
        expected = metrics.measure(p[padded], y[padded], kept)
        for name in metrics.METRICS:
            np.testing.assert_allclose(found[name][i], expected[name], atol=1e-6, err_msg=name)


def test_a_replicate_depends_on_its_key_and_number_alone():
    p, y, m = predictions(40)
    patient = np.random.default_rng(1).integers(0, 15, 40)

    def run(seed, count):
        found = bootstrap.replicates(jax.random.key(seed), p, y, m, patient, patients=15, count=count)
        return np.stack([found[name] for name in metrics.METRICS])

    np.testing.assert_array_equal(run(0, 70), run(0, 70))
    np.testing.assert_allclose(run(0, 70)[:, :9], run(0, 9), atol=1e-6)
    assert not np.array_equal(run(0, 70), run(1, 70), equal_nan=True)


def test_intervals_cover_the_truth():
    # AUROC of N(1, 1) against N(0, 1) is Phi(1 / sqrt 2).
    truth, trials = 0.7602, 60
    covered = 0
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        y = (rng.random((200, 1)) < 0.4).astype(np.int8)
        z = (rng.normal(size=(200, 1)) + y).astype(np.float32)
        found = bootstrap.replicates(
            jax.random.key(seed), z, y, y >= 0, np.arange(200), patients=200, count=200, names=("auroc",)
        )
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
