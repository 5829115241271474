"""The order of the data against what it is said to be: every round a permutation, shares kept, nothing else counts."""

import collections
import fractions
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from repgls_jax.data import mix

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=4)
SEEDS = st.integers(0, 2**64)


def drawn(lengths, weights, seed, count, start=0):
    return mix.Order(lengths, weights, seed)(np.arange(start, start + count))


def parts(lengths, examples):
    """The examples of each data set, in the order in which they came, counted from 0 within it."""
    ends = np.cumsum(lengths)
    return [
        examples[(end - n <= examples) & (examples < end)] - (end - n) for n, end in zip(lengths, ends, strict=True)
    ]


@settings(max_examples=80, deadline=None)
@given(LENGTHS, SEEDS, st.data())
def test_every_round_of_a_data_set_is_a_permutation_of_it(lengths, seed, draw):
    weights = draw.draw(st.just([]) | st.lists(st.floats(0.1, 10), min_size=len(lengths), max_size=len(lengths)))
    for n, of in zip(lengths, parts(lengths, drawn(lengths, weights, seed, 400)), strict=True):
        assert len(of) > 0
        for first in range(0, len(of) - n + 1, n):
            assert sorted(of[first : first + n].tolist()) == list(range(n))


@settings(max_examples=80, deadline=None)
@given(LENGTHS, SEEDS, st.lists(st.integers(0, 10**6), min_size=1, max_size=30), st.randoms())
def test_what_stands_at_a_position_does_not_depend_on_what_was_asked_before(lengths, seed, positions, shuffled):
    order, wanted = mix.Order(lengths, [], seed), [int(drawn(lengths, [], seed, 1, at)[0]) for at in positions]
    pairs = list(zip(positions, wanted, strict=True))
    for asked in (order, pickle.loads(pickle.dumps(order))):  # noqa: S301 - dumped just now
        shuffled.shuffle(pairs)
        found = asked(np.array([at for at, _ in pairs]))
        assert found.tolist() == [example for _, example in pairs] and found.dtype == np.int64


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=5), st.integers(1, 3000))
def test_each_data_set_has_its_share_of_any_beginning(weights, count):
    # Each data set but the last takes a part, to the next whole number, of what those before it leave.
    lengths, most = [7] * len(weights), len(weights) - 1
    total = sum(fractions.Fraction(w) for w in weights)
    for weight, of in zip(weights, parts(lengths, drawn(lengths, weights, 0, count)), strict=True):
        assert abs(len(of) - count * fractions.Fraction(weight) / total) < most + 0.01


@settings(max_examples=40, deadline=None)
@given(LENGTHS, SEEDS)
def test_without_weights_each_image_comes_once_in_as_many_draws_as_there_are_images(lengths, seed):
    n = sum(lengths)
    for start in (0, n, 1000 * n):
        assert sorted(drawn(lengths, [], seed, n, start).tolist()) == list(range(n))


def test_all_permutations_are_as_likely_over_seeds_and_over_rounds():
    for orders in (
        [tuple(drawn([4], [], seed, 4).tolist()) for seed in range(2400)],
        [tuple(row) for row in drawn([4], [], 0, 4 * 2400).reshape(-1, 4).tolist()],
    ):
        counts = collections.Counter(orders)
        assert len(counts) == 24 and stats.chisquare(list(counts.values())).pvalue > 1e-4


def test_data_sets_of_one_length_are_not_shuffled_alike():
    first, second = parts([50, 50], drawn([50, 50], [], 3, 100))
    assert (first != second).any()


def test_far_positions_cost_no_more_and_do_not_overflow():
    lengths = [377_110, 224_316, 112_120, 3_955]
    for weights in ([], [1, 1e6, 1, 1e-3]):
        order = mix.Order(lengths, weights, 1)
        found = order(np.arange(2**52, 2**52 + 4096))
        assert found.min() >= 0 and found.max() < sum(lengths)
        again = order(np.arange(2**52, 2**52 + 4096, 2))
        np.testing.assert_array_equal(again, found[::2])


@pytest.mark.parametrize("seed", [0, 7])
def test_the_order_is_the_one_of_every_version(seed):
    """By an implementation of its own, from the counter-based generator's definition (Philox 4x64, 10 rounds)."""

    def philox(counter, key):
        x, mask = list(counter), 2**64 - 1
        for round_ in range(10):
            if round_:
                key = [(key[0] + 0x9E3779B97F4A7C15) & mask, (key[1] + 0xBB67AE8584CAA73B) & mask]
            a, b = x[0] * 0xD2E7470EE14C6C93, x[2] * 0xCA5A826395121157
            x = [(b >> 64) ^ x[1] ^ key[0], b & mask, (a >> 64) ^ x[3] ^ key[1], a & mask]
        return x

    key = [int(k) for k in np.random.SeedSequence(seed, spawn_key=(0, 2)).generate_state(2, np.uint64)]
    bits = [value for block in range(1, 6) for value in philox([block, 0, 0, 0], key)]
    assert drawn([20], [], seed, 20, 40).tolist() == sorted(range(20), key=lambda i: bits[i])


@given(
    weights=st.lists(st.floats(0.2, 5), min_size=2, max_size=3), seed=st.integers(0, 2**31), step=st.integers(0, 10**6)
)
@settings(max_examples=50, deadline=None)
def test_a_batch_of_several_data_sets_has_its_examples_in_no_pattern(weights, seed, step):
    order = mix.Order([40, 30, 20][: len(weights)], weights, seed)
    batch = order.batch(step, 64)
    assert sorted(batch) == sorted(order(np.arange(64 * step, 64 * step + 64)))
    assert list(batch) != sorted(batch)
    np.testing.assert_array_equal(batch, mix.Order([40, 30, 20][: len(weights)], weights, seed).batch(step, 64))


def test_neighbours_in_a_batch_are_of_two_data_sets_as_often_as_chance_has_it():
    order = mix.Order([500, 500], [1.0, 1.0], 3)
    pairs = np.concatenate([order.batch(step, 32).reshape(-1, 2) for step in range(200)]) < 500
    share = (pairs[:, 0] != pairs[:, 1]).mean()  # 3,200 pairs: one standard deviation is .009
    assert abs(share - 16 / 31) < 0.04
