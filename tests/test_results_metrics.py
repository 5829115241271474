"""Metrics against scikit-learn and a float64 numpy oracle: ties, masks, weights, one class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import ece_oracle
from sklearn.metrics import average_precision_score, roc_auc_score

from repgls_jax.results import curves, metrics

# Few shapes, so that few programs are compiled.
N, C = 24, 3


@st.composite
def cases(draw):
    """(scores, labels, mask, weights) with few distinct scores, so that ties abound, and some weights of 0."""
    levels = draw(st.sampled_from([1, 2, 3, 5, 1000]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = (rng.integers(0, levels + 1, (N, C)) / levels).astype(np.float32)
    labels = (rng.random((N, C)) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))).astype(np.int8)
    mask = rng.random((N, C)) < draw(st.sampled_from([0.0, 0.2, 0.8, 1.0]))
    return scores, labels, mask, rng.integers(0, 4, N).astype(np.float32)


def oracle(p, y, w):
    kept = w > 0  # scikit-learn counts a class that has no weight
    p, y, w = p[kept], y[kept], w[kept]
    both = len(np.unique(y)) == 2
    return {
        "auroc": roc_auc_score(y, p, sample_weight=w) if both else np.nan,
        "auprc": average_precision_score(y, p, sample_weight=w) if both else np.nan,
        "brier": np.average((p.astype(np.float64) - y) ** 2, weights=w) if len(y) else np.nan,
        "ece": ece_oracle(p, y, w) if len(y) else np.nan,
    }


@settings(max_examples=80, deadline=None)
@given(cases())
def test_every_metric_equals_its_oracle(case):
    scores, labels, mask, weights = case
    for w in (None, weights):
        found = metrics.measure(scores, labels, mask, w)
        for j in range(C):
            m = mask[:, j]
            expected = oracle(scores[m, j], labels[m, j], (np.ones(N, np.float32) if w is None else w)[m])
            assert set(found) == set(expected), "a metric has no oracle"
            for name, value in expected.items():
                np.testing.assert_allclose(found[name][j], value, atol=1e-6, err_msg=name)


@settings(max_examples=25, deadline=None)
@given(cases(), st.integers(0, 1000))
def test_the_order_of_the_images_does_not_matter(case, seed):
    order = np.random.default_rng(seed).permutation(N)
    one, other = metrics.measure(*case), metrics.measure(*(a[order] for a in case))
    for name in metrics.METRICS:
        np.testing.assert_allclose(one[name], other[name], atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(cases())
def test_what_is_masked_does_not_matter(case):
    scores, labels, mask, weights = case
    spoilt = np.where(mask, scores, np.nan).astype(np.float32), np.where(mask, labels, -2).astype(np.int8)
    one, other = metrics.measure(scores, labels, mask, weights), metrics.measure(*spoilt, mask, weights)
    for name in metrics.METRICS:
        np.testing.assert_array_equal(one[name], other[name])


def test_one_class_and_no_label_are_not_numbers():
    scores = np.linspace(0, 1, N * C, dtype=np.float32).reshape(N, C)
    labels = np.tile(np.array([0, 1, 1], np.int8), (N, 1))
    mask = np.tile(np.array([True, True, False]), (N, 1))
    found = metrics.measure(scores, labels, mask)
    assert np.isnan(found["auroc"]).all() and np.isnan(found["auprc"]).all()
    assert np.isfinite(found["brier"][:2]).all() and np.isfinite(found["ece"][:2]).all()
    assert np.isnan(found["brier"][2]) and np.isnan(found["ece"][2])
    assert np.isnan(metrics.mean_auroc(scores, labels, mask))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_counted_score_that_is_not_finite_shows(bad):
    scores = np.random.default_rng(0).random((N, C)).astype(np.float32)
    labels, mask = np.arange(N * C).reshape(N, C) % 2, np.ones((N, C), bool)
    scores[3, 1] = bad
    found = metrics.measure(scores, labels, mask)
    for name in metrics.METRICS:
        assert np.isnan(found[name]).tolist() == [False, True, False], name


def test_the_mean_leaves_out_what_is_not_defined():
    mean, count = metrics.macro(jnp.array([0.25, jnp.nan, 0.75]))
    assert (float(mean), int(count)) == (0.5, 2)
    rng = np.random.default_rng(1)
    scores, labels = rng.random((N, C)).astype(np.float32), (rng.random((N, C)) < 0.5).astype(np.int8)
    labels[:, 1] = 0
    expected = np.mean([roc_auc_score(labels[:, j], scores[:, j]) for j in (0, 2)])
    assert metrics.mean_auroc(scores, labels, np.ones((N, C), bool)) == pytest.approx(expected, abs=1e-6)


def test_ranking_metrics_take_logits():
    rng = np.random.default_rng(2)
    logits, labels = rng.normal(size=(N, C)).astype(np.float32), (rng.random((N, C)) < 0.5).astype(np.int8)
    mask = np.ones((N, C), bool)
    one, other = metrics.measure(logits, labels, mask), metrics.measure(jax.nn.sigmoid(logits), labels, mask)
    np.testing.assert_allclose(one["auroc"], other["auroc"], atol=1e-6)
    np.testing.assert_allclose(one["auprc"], other["auprc"], atol=1e-6)


def test_large_sets_keep_their_digits():
    rng = np.random.default_rng(3)
    labels = (rng.random((200_000, 1)) < 0.01).astype(np.int8)
    scores = np.round(jax.nn.sigmoid(rng.normal(size=labels.shape) + labels), 4).astype(np.float32)
    found = metrics.measure(scores, labels, np.ones(labels.shape, bool), names=("auroc", "auprc"))
    assert float(found["auroc"][0]) == pytest.approx(roc_auc_score(labels[:, 0], scores[:, 0]), abs=2e-6)
    assert float(found["auprc"][0]) == pytest.approx(average_precision_score(labels[:, 0], scores[:, 0]), abs=2e-6)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_curves_integrate_to_the_metrics(case):
    scores, labels, _, _ = case
    p, y = scores[:, 0], labels[:, 0]
    expected = oracle(p, y, np.ones(N))
    roc, pr, bins = curves.roc(p, y), curves.precision_recall(p, y), curves.reliability(p, y)
    assert (roc is None) == (pr is None) == bool(np.isnan(expected["auroc"]))
    if roc is not None:
        assert np.trapezoid(roc["tpr"], roc["fpr"]) == pytest.approx(expected["auroc"], abs=1e-3)
        steps = np.diff(np.array(pr["recall"]), prepend=0.0) * np.array(pr["precision"])
        assert steps.sum() == pytest.approx(expected["auprc"], abs=1e-3)
    count, mean, share = (np.array(bins[k]) for k in ("count", "mean", "share"))
    assert count.sum() == N
    assert (count * abs(mean - share)).sum() / N == pytest.approx(expected["ece"], abs=1e-3)


def test_long_curves_are_thinned_and_keep_their_ends():
    rng = np.random.default_rng(4)
    y = (rng.random(5000) < 0.3).astype(np.int8)
    p = jax.nn.sigmoid(rng.normal(size=5000) + 2 * y)
    roc = curves.roc(np.asarray(p), y)
    assert len(roc["fpr"]) <= curves.MOST_POINTS
    assert (roc["fpr"][0], roc["tpr"][0], roc["fpr"][-1], roc["tpr"][-1]) == (0, 0, 1, 1)
    assert np.trapezoid(roc["tpr"], roc["fpr"]) == pytest.approx(roc_auc_score(y, p), abs=5e-3)
