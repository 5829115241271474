"""The expert map reproduces the certainty as the loss's target; the permuted control breaks only the link."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repgls_jax import rates

CERTAINTY = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50)


@given(CERTAINTY)
def test_target_is_the_certainty(p):
    p = np.array(p, np.float32)
    y, r = rates.expert_rates(p)
    t = (1 - r) * y + r / 2
    # The clip at R_MAX moves targets next to one half by at most .025.
    np.testing.assert_allclose(t, p, atol=(1 - rates.R_MAX) / 2 + 1e-6)
    far = np.abs(p - 0.5) > 0.026
    np.testing.assert_allclose(t[far], p[far], atol=1e-6)
    assert np.all(np.abs(r) < 1)


@given(CERTAINTY)
def test_target_keeps_the_order_of_certainty(p):
    p = np.sort(np.array(p, np.float32))
    y, r = rates.expert_rates(p)
    assert np.all(np.diff((1 - r) * y + r / 2) >= -1e-6)


def test_plain_wording_is_sharpened_and_blanks_keep_their_own_rate():
    y, r = rates.expert_rates(np.array([1, 0.9, 0.7, 0.05, np.nan]), rho=0.25, r_blank=0.1)
    np.testing.assert_array_equal(y, [1, 1, 1, 0, 0])
    np.testing.assert_allclose(r, [-0.25, -0.25, 0.6, -0.25, 0.1], atol=1e-6)


@pytest.mark.parametrize(("e", "rho"), [(0.0, 0.0), (0.1, 0.25), (0.2, 2 / 3)])
def test_sharpening_undoes_flips(e, rho):
    assert rates.sharpening(e) == pytest.approx(rho)
    # The expectation of the sharpened loss over flips is the clean loss, up to scale: its target is y again.
    r = -rates.sharpening(e)
    targets = {y: (1 - r) * y + r / 2 for y in (0, 1)}
    assert (1 - e) * targets[1] + e * targets[0] == pytest.approx(1)


@pytest.mark.parametrize("bad", [{"p": [1.2]}, {"p": [0.5], "rho": 1}, {"p": [0.5], "r_blank": -1}])
def test_out_of_range_is_refused(bad):
    with pytest.raises(ValueError, match="expected"):
        rates.expert_rates(np.array(bad.pop("p")), **bad)


def test_flip_rates_that_leave_the_range_are_refused():
    with pytest.raises(ValueError, match=r"\.25"):
        rates.sharpening(0.25)


def test_permutation_keeps_the_distribution_given_the_label():
    rng = np.random.default_rng(0)
    r, y = rng.uniform(-1, 1, (500, 4)).astype(np.float32), rng.integers(0, 2, (500, 4))
    among = rng.random((500, 4)) < 0.8
    shuffled = rates.permute(r, y, among, seed=3)
    assert np.mean(shuffled[among] != r[among]) > 0.95
    np.testing.assert_array_equal(shuffled[~among], r[~among])
    for k in range(4):
        for label in (0, 1):
            rows = among[:, k] & (y[:, k] == label)
            np.testing.assert_array_equal(np.sort(shuffled[rows, k]), np.sort(r[rows, k]))
            assert abs(np.corrcoef(shuffled[rows, k], r[rows, k])[0, 1]) < 0.25
    np.testing.assert_array_equal(shuffled, rates.permute(r, y, among, seed=3))
