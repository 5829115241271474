"""Guided refinement: its gradient, its bound, and that it moves a wrongly calibrated cue the right way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from repgls_jax.train import refine

FLOATS = st.floats(-1, 1, exclude_min=True, exclude_max=True, width=32)


def linear(params, x):
    return x @ params["w"] + params["b"]


def examples(n, c=2, d=4, groups=3, seed=0):
    """A linear world: features [n, d], true labels [n, c], and groups [n, c] in [-1, groups)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    z = 3 * x @ np.random.default_rng(7).normal(size=(d, c))
    truth = (rng.random((n, c)) < 1 / (1 + np.exp(-z))).astype(float)
    return x, truth, rng.integers(-1, groups, (n, c))


def test_gradient_against_finite_differences_of_an_update_by_hand():
    x, truth, group = examples(12)
    rng = np.random.default_rng(1)
    r, mask = rng.uniform(-0.6, 0.8, truth.shape), rng.random(truth.shape) < 0.8
    x_v, truth_v, _ = examples(7, seed=2)
    mask_v = np.random.default_rng(3).random(truth_v.shape) < 0.8
    w, b = rng.normal(size=(4, 2)), rng.normal(size=2)
    flat = rng.normal(0, 0.3, 3 + 6)
    bound, step = 2.0, 0.7

    def by_hand(flat):
        """The look-ahead loss in float64 numpy: BCE on t = (1 - r) y + r / 2, one step down, BCE on the truth."""
        raw = flat[:3, None] + flat[3:].reshape(3, 2)
        moved = np.tanh(np.arctanh(r) + (bound * np.tanh(raw / bound))[group, np.arange(2)])
        rates = np.where(group < 0, r, moved)
        slope = mask * (1 / (1 + np.exp(-(x @ w + b))) - ((1 - rates) * truth + rates / 2)) / mask.sum()
        z = x_v @ (w - step * x.T @ slope) + b - step * slope.sum(0)
        return (mask_v * (np.logaddexp(0, z) - truth_v * z)).sum() / mask_v.sum()

    with jax.enable_x64(True):
        params = {"w": jnp.asarray(w), "b": jnp.asarray(b)}
        batch = refine.Train(jnp.asarray(x), jnp.asarray(truth), jnp.asarray(r), jnp.asarray(mask), jnp.asarray(group))
        verified = refine.Verified(jnp.asarray(x_v), jnp.asarray(truth_v), jnp.asarray(mask_v))
        at = {"shared": jnp.asarray(flat[:3]), "own": jnp.asarray(flat[3:].reshape(3, 2))}
        value, grads = jax.value_and_grad(refine.look_ahead)(at, linear, params, batch, verified, step, bound)
        got = np.concatenate([grads["shared"], np.ravel(grads["own"])])
    assert float(value) == pytest.approx(by_hand(flat), rel=1e-12)
    h = 1e-5
    slopes = [(by_hand(flat + h * e) - by_hand(flat - h * e)) / (2 * h) for e in np.eye(9)]
    np.testing.assert_allclose(got, slopes, rtol=1e-6, atol=1e-11)
    assert np.abs(got).max() > 1e-4


@given(hnp.arrays(np.float32, (5, 2), elements=FLOATS), st.floats(-1e6, 1e6), st.floats(0.1, 3))
@settings(deadline=None)
def test_rates_stay_inside_whatever_the_refinement(r, raw, bound):
    at = {"shared": jnp.full(1, raw), "own": jnp.zeros((1, 2))}
    moved = refine.shifted(jnp.asarray(r), jnp.zeros((5, 2), int), at, bound)
    assert np.all(np.abs(moved) < 1)
    np.testing.assert_array_equal(refine.shifted(jnp.asarray(r), jnp.full((5, 2), -1), at, bound), r)


def test_nothing_changes_nothing_and_order_within_a_group_is_kept():
    r = jnp.linspace(-0.99, 0.99, 101)[:, None]
    group = jnp.zeros(r.shape, int)
    np.testing.assert_allclose(refine.shifted(r, group, refine.nothing(1, 1), 2.0), r, atol=1e-6)
    at = {"shared": jnp.array([0.7]), "own": jnp.array([[-1.1]])}
    assert np.all(np.diff(refine.shifted(r, group, at, 2.0)[:, 0]) > 0)


def test_a_wrongly_calibrated_cue_is_moved_the_right_way():
    """Both cues claim presence: 0 is called doubtful and always right, 1 is called sure and as often wrong as right."""
    n, m = 1500, 200
    x, truth, _ = examples(n + m)
    coin = np.random.default_rng(5).random(truth.shape)
    group = np.where(truth == 1, np.where(coin < 0.4, 0, np.where(coin < 0.7, 1, -1)), np.where(coin < 0.3, 1, -1))
    y = np.where(group == -1, truth, 1.0)
    r = np.array([0.8, 0.0, 0.0], np.float32)[group]  # the last is that of group -1
    seen = np.ones(y.shape, bool)
    train = refine.Train(*(jnp.asarray(a[:n]) for a in (np.float32(x), y, r, seen, group)))
    verified = refine.Verified(*(jnp.asarray(a[n:]) for a in (np.float32(x), truth, seen)))
    start = {"w": jnp.zeros((4, 2)), "b": jnp.zeros(2)}
    still = refine.RefineConfig(steps=300, learning_rate=0.03, rate_learning_rate=0.0)
    warm = refine.refine(linear, start, train, verified, 2, still, jax.random.key(0))
    np.testing.assert_array_equal(warm.delta, 0)
    config = refine.RefineConfig(steps=300, learning_rate=0.03, rate_learning_rate=0.02)
    found = refine.refine(linear, warm.params, train, verified, 2, config, jax.random.key(1))
    moved = np.asarray(refine.shifted(train.r, train.group, found.refinement, config.bound))
    assert np.all(np.abs(moved) < 1)
    doubted, sure = (moved[np.asarray(train.group) == g].mean() for g in (0, 1))
    assert doubted < 0.6 and sure > 0.2
    np.testing.assert_array_equal(moved[np.asarray(train.group) < 0], 0)
    np.testing.assert_array_equal(found.seen.sum(1), [(group[:n] == g).sum() for g in (0, 1)])


def test_groups_are_categories_with_one_for_bare_mentions_and_one_for_silence():
    cue = np.array([["possible:may", "", "possible:could"], ["probable:likely", "", ""]])
    mentioned = np.array([[True, True, True], [True, False, True]])
    group, names = refine.groups_of(cue, mentioned)
    assert names == ("bare", "not mentioned", "possible", "probable")
    np.testing.assert_array_equal(group, [[2, 0, 2], [3, 1, 0]])


def test_shapes_and_settings_are_checked():
    a = jnp.zeros((4, 2))
    train, verified = refine.Train(a, a, a, a, a[:3]), refine.Verified(a, a, a)
    with pytest.raises(ValueError, match=r"'group': \(3, 2\)"):
        refine.refine(linear, {}, train, verified, 1, refine.RefineConfig(), jax.random.key(0))
    with pytest.raises(ValueError, match="at least 1"):
        refine.refine(linear, {}, train._replace(group=a), verified, 0, refine.RefineConfig(), jax.random.key(0))
    with pytest.raises(ValueError, match="bound of at most 3"):
        refine.RefineConfig(bound=4.0)
