"""Every policy: its targets by hand, zero gradient on missing labels, and the same table for all."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from repgls_jax import losses, methods, policies
from repgls_jax.findings import NEGATIVE, NOT_MENTIONED, POSITIVE, UNCERTAIN

# One row: positive, negative, hedged above one half, hedged below, not mentioned, and nothing known at all.
STATE = jnp.array([[POSITIVE, NEGATIVE, UNCERTAIN, UNCERTAIN, NOT_MENTIONED, NOT_MENTIONED]], jnp.int8)
P = jnp.array([[1.0, 0.0, 0.7, 0.3, jnp.nan, jnp.nan]])
OBSERVED = jnp.array([[True, True, True, True, True, False]])
LABELS = {
    "state": STATE,
    "p": P,
    "observed": OBSERVED,
    "rate": jnp.array([[0.0, 0.0, 0.6, 0.6, 0.0, 0.0]]),
    "belief": jnp.array([[0.9, 0.1, 0.6, 0.2, 0.05, 0.5]]),
    "truth": jnp.array([[1, 0, 0, 1, 0, 1]], jnp.int8),
}
ALL = [True] * 5 + [False]
# policy -> (y, r, mask); None stands for a random rate that is checked by its range.
EXPECTED = {
    "u_ones": ([1, 0, 1, 1, 0, 0], [0] * 6, ALL),
    "u_zeros": ([1, 0, 0, 0, 0, 0], [0] * 6, ALL),
    "u_ignore": ([1, 0, 0, 0, 0, 0], [0] * 6, [True, True, False, False, True, False]),
    "lsr_ones": ([1, 0, 1, 1, 0, 0], [0, 0, None, None, 0, 0], ALL),
    "lsr_zeros": ([1, 0, 0, 0, 0, 0], [0, 0, None, None, 0, 0], ALL),
    "hard": ([1, 0, 1, 0, 0, 0], [0] * 6, ALL),
    "constant": ([1, 0, 1, 0, 0, 0], [0.2] * 6, ALL),
    "expert": ([1, 0, 1, 0, 0, 0], [0, 0, 0.6, 0.6, 0, 0], ALL),
    "rgn": ([1, 0, 1, 0, 0, 0], [0, 0, 0.6, 0.6, 0, 0], ALL),
    "permuted": ([1, 0, 1, 0, 0, 0], [0, 0, 0.6, 0.6, 0, 0], ALL),
    "rgn_permuted": ([1, 0, 1, 0, 0, 0], [0, 0, 0.6, 0.6, 0, 0], ALL),
    "oracle": ([1, 0, 1, 0, 0, 1], [0, 0, 0.6, 0.6, 0, 0], [True] * 6),
    "clean": ([1, 0, 0, 1, 0, 1], [0] * 6, [True] * 6),
}


def targets(name: str, key: int = 0, **settings: object) -> policies.Targets:
    config = policies.PolicyConfig(name=name, **settings)
    return policies.POLICIES[name].targets(LABELS, jax.random.key(key), config)


def test_every_policy_is_expected():
    assert set(EXPECTED) == set(policies.POLICIES)
    assert all(p.note and p.rates in ("", "expert", "rgn", "belief") for p in policies.POLICIES.values())


@pytest.mark.parametrize("name", EXPECTED)
def test_targets(name):
    y, r, mask = EXPECTED[name]
    got = targets(name)
    seen = np.array(mask)
    np.testing.assert_array_equal(got.mask[0], mask)
    np.testing.assert_array_equal(np.asarray(got.y)[0][seen], np.array(y)[seen])
    fixed = np.array([v is not None for v in r]) & seen
    np.testing.assert_allclose(np.asarray(got.r)[0][fixed], np.array([v or 0 for v in r])[fixed], atol=1e-6)


@pytest.mark.parametrize(("name", "low", "high"), [("lsr_ones", 0.55, 0.85), ("lsr_zeros", 0.0, 0.3)])
def test_lsr_draws_its_target_anew_each_step(name, low, high):
    draws = [targets(name, key) for key in range(200)]
    soft = np.stack([losses.gls_targets(t.y, t.r)[0, 2:4] for t in draws])
    assert soft.min() >= low and soft.max() <= high
    assert soft.std() == pytest.approx((high - low) / np.sqrt(12), rel=0.1)


@pytest.mark.parametrize("name", EXPECTED)
def test_missing_labels_have_exactly_zero_gradient(name):
    def loss(z):
        t = targets(name)
        return losses.masked_mean(losses.gls_binary(z, t.y, t.r, 4.0), t.mask)

    for logits in (0.3, 80.0, -80.0):
        grad = np.asarray(jax.grad(loss)(jnp.full((1, 6), logits)))
        assert np.all(np.isfinite(grad))
        np.testing.assert_array_equal(grad[~np.asarray(targets(name).mask)], 0.0)


def test_blanks_can_be_left_out_or_given_a_rate():
    assert not targets("hard", blank="ignore").mask[0, 4]
    assert targets("u_ones", r_blank=0.1).r[0, 4] == pytest.approx(0.1)
    assert targets("u_ones", r_blank=0.1).r[0, 0] == 0


def test_bad_settings_are_all_named():
    bad = ml_collections.ConfigDict({"name": "u_one", "constant": 1.0, "blank": "zero", "margin_cap": -1.0})
    with pytest.raises(ValueError) as error:
        methods.settings(bad)
    for word in ("u_one", "u_ones", "constant 1.0", "'zero'", "margin_cap"):
        assert word in str(error.value)


def test_truth_is_asked_of_real_data_with_a_way_out():
    with pytest.raises(ValueError, match=r"needs truth.*choose one of.*expert"):
        methods.require_columns("clean", {"state": 0, "p": 0, "observed": 0})
