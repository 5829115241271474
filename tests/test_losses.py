"""GLS against a float64 oracle, its minimum, its guard, and masks that let nothing through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repgls_jax import losses

LOGITS = st.floats(-80, 80, width=32)
RATES = st.floats(-0.984375, 0.984375, width=32)


def oracle(z: float, y: int, r: float, cap: float = np.inf) -> float:
    """BCE on t = (1 - r) y + r / 2, in float64, written from the definition."""
    z, r = np.float64(z), np.float64(r)
    t = (1 - r) * y + r / 2
    log_p, log_q = -np.logaddexp(0, -z), -np.logaddexp(0, z)
    loss = -(t * log_p + (1 - t) * log_q)
    m = (2 * y - 1) * z
    if r < 0 and m > cap:
        loss += (r / 2) * (cap - m)
    return float(loss)


@given(z=LOGITS, y=st.integers(0, 1), r=RATES, cap=st.sampled_from([1.0, 4.0, np.inf]))
@settings(max_examples=300, deadline=None)
def test_matches_the_float64_oracle(z, y, r, cap):
    got = float(losses.gls_binary(jnp.float32(z), jnp.float32(y), jnp.float32(r), cap))
    assert got == pytest.approx(oracle(z, y, r, cap), rel=2e-6, abs=2e-6)


@given(z=LOGITS, y=st.integers(0, 1))
@settings(max_examples=200, deadline=None)
def test_rate_zero_is_cross_entropy(z, y):
    got = float(losses.gls_binary(jnp.float32(z), jnp.int8(y), jnp.float32(0)))
    bce = float(np.logaddexp(0, -np.float64(z)) if y else np.logaddexp(0, np.float64(z)))
    assert got == pytest.approx(bce, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("r", [0.1, 0.2, 0.4, 0.6, 0.8])
@pytest.mark.parametrize("y", [0, 1])
def test_minimum_of_positive_rates(r, y):
    expected = np.log((2 - r) / r)
    margins = np.linspace(expected - 1, expected + 1, 2001)
    z = (2 * y - 1) * margins
    with jax.enable_x64(True):
        values = losses.gls_binary(jnp.asarray(z, jnp.float64), jnp.full(z.shape, y), jnp.float64(r))
        assert margins[int(values.argmin())] == pytest.approx(expected, abs=1.1e-3)


def test_gradient_is_sigmoid_minus_target():
    rng = np.random.default_rng(0)
    z, y, r = rng.normal(0, 3, 500), rng.integers(0, 2, 500), rng.uniform(-0.9, 0.9, 500)
    grad = jax.grad(lambda z: losses.gls_binary(z, y, jnp.float32(r)).sum())(jnp.float32(z))
    expected = 1 / (1 + np.exp(-z)) - ((1 - r) * y + r / 2)
    np.testing.assert_allclose(grad, expected, atol=1e-6)


def descend(r: float, cap: float, steps: int = 4000) -> float:
    """Margin after plain gradient descent on one positive label."""

    def step(z, _):
        return z - 0.5 * jax.grad(lambda z: losses.gls_binary(z, jnp.float32(1), jnp.float32(r), cap))(z), None

    return float(jax.lax.scan(step, jnp.float32(0), length=steps)[0])


def test_negative_rates_diverge_without_the_guard_and_not_with_it():
    free = descend(-0.5, losses.NO_CAP)
    assert free > 0.9 * 4000 * 0.5 * 0.25  # a constant pull of |r| / 2 that never ends
    assert float(losses.gls_binary(jnp.float32(free), jnp.float32(1), jnp.float32(-0.5))) < -100
    guarded, bce = descend(-0.5, 4.0), descend(0.0, losses.NO_CAP)
    assert guarded <= bce + 1  # past the cap it creeps as cross entropy does, logarithmically
    assert float(losses.gls_binary(jnp.float32(1e6), jnp.float32(1), jnp.float32(-0.5), 4.0)) >= -1.0


def test_guard_leaves_the_loss_alone_below_the_cap():
    z = jnp.linspace(-6, 3.99, 100)
    free, guarded = (losses.gls_binary(z, jnp.float32(1), jnp.float32(-0.5), cap) for cap in (losses.NO_CAP, 4.0))
    np.testing.assert_array_equal(free, guarded)


@pytest.mark.parametrize("k", [2, 5, 14])
def test_multiclass_form(k):
    rng = np.random.default_rng(k)
    logits, labels, r = rng.normal(0, 4, (200, k)), rng.integers(0, k, 200), rng.uniform(-0.9, 0.9, 200)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = (1 - r) * -log_p[np.arange(200), labels] + r * (-log_p).mean(1)
    soft = (1 - r)[:, None] * np.eye(k)[labels] + r[:, None] / k
    np.testing.assert_allclose(expected, -(soft * log_p).sum(1), rtol=1e-12)
    got = losses.gls_multiclass(jnp.float32(logits), labels, jnp.float32(r))
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)


def test_two_classes_are_the_binary_form():
    rng = np.random.default_rng(1)
    z, y, r = rng.normal(0, 3, 100), rng.integers(0, 2, 100), rng.uniform(-0.9, 0.9, 100)
    pair = jnp.stack([jnp.zeros(100), jnp.float32(z)], 1)
    np.testing.assert_allclose(
        losses.gls_multiclass(pair, y, jnp.float32(r)),
        losses.gls_binary(jnp.float32(z), y, jnp.float32(r)),
        rtol=1e-5,
        atol=1e-5,
    )


@given(z=st.sampled_from([-80.0, 80.0]), y=st.integers(0, 1), r=RATES)
@settings(max_examples=60, deadline=None)
def test_finite_at_extreme_logits(z, y, r):
    value, grad = jax.value_and_grad(losses.gls_binary)(jnp.float32(z), jnp.float32(y), jnp.float32(r))
    assert np.isfinite(value) and np.isfinite(grad)


def test_ramp_holds_then_rises():
    r = jnp.array([0.4, -0.4])
    got = np.stack([losses.ramp_negative(r, jnp.int32(s), 10, 10) for s in (0, 9, 14, 19, 100)])
    np.testing.assert_allclose(got[:, 0], 0.4)
    np.testing.assert_allclose(got[:, 1], [0, 0, -0.2, -0.4, -0.4], atol=1e-6)


def test_masked_entries_reach_neither_value_nor_gradient():
    z = jnp.array([[1.0, 80.0], [2.0, -80.0]])
    mask = jnp.array([[True, False], [True, False]])

    def loss(z, r):
        return losses.masked_mean(losses.gls_binary(z, jnp.ones((2, 2)), r), mask)

    value, grad = jax.value_and_grad(loss)(z, jnp.full((2, 2), 0.1))
    other, again = jax.value_and_grad(loss)(z.at[:, 1].set(3.0), jnp.array([[0.1, -0.9], [0.1, 0.9]]))
    assert value == other
    np.testing.assert_array_equal(grad, again)
    np.testing.assert_array_equal(np.asarray(grad)[:, 1], 0.0)
    assert float(losses.masked_mean(jnp.array([[1.5, jnp.nan], [1.5, jnp.inf]]), mask)) == 1.5
    assert float(losses.masked_mean(z, jnp.zeros((2, 2), bool))) == 0.0
