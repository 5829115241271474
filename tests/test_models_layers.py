"""Layers written for speed against the plain ones: Flax's, SciPy's, and what dropout promises."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from repgls_jax.models import stem, vit


def both(ours: nn.Module, plain: nn.Module, x: jax.Array):
    """Output, and gradients for parameters and input, of two modules with the same parameters."""
    params = jax.jit(plain.init)(jax.random.key(1), x)["params"]
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.key(2), p.shape), params)
    towards = jax.random.normal(jax.random.key(3), plain.apply({"params": params}, x).shape)
    made = jax.eval_shape(ours.init, jax.random.key(1), x)["params"]
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, params)
    for module in (ours, plain):

        def loss(p, x, module=module):
            return (module.apply({"params": p}, x) * towards).sum()

        yield jax.jit(module.apply)({"params": params}, x), *jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)


@pytest.mark.parametrize("shape", [(2, 8, 12, 1), (3, 4, 4, 8)])
def test_halving_is_the_strided_convolution(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    plain = nn.Conv(6, (3, 3), (2, 2), use_bias=False)
    got, want = both(stem.HalvingConv(6), plain, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, want)


def test_odd_sides_are_not_halved():
    with pytest.raises(ValueError, match="7 x 8 pixels"):
        stem.HalvingConv(6).init(jax.random.key(0), jnp.zeros((1, 7, 8, 1)))


def test_group_norm_is_flax_s():
    x = 2.0 + 3.0 * jax.random.normal(jax.random.key(0), (3, 4, 6, 8))
    got, want = both(stem.ChannelGroupNorm(4), nn.GroupNorm(num_groups=4), x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)


def test_half_precision_keeps_its_type():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 4), jnp.bfloat16)
    for module in (stem.HalvingConv(8, jnp.bfloat16), stem.ChannelGroupNorm(4, jnp.bfloat16)):
        params = jax.jit(module.init)(jax.random.key(0), x)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        assert jax.eval_shape(module.apply, params, x).dtype == jnp.bfloat16


def test_gelu_against_scipy():
    x = np.linspace(-12, 12, 4001, dtype=np.float32)
    want = x * scipy.special.ndtr(x.astype(np.float64))
    np.testing.assert_allclose(vit.ACTIVATIONS["gelu"](jnp.asarray(x)), want, rtol=1e-5, atol=1e-6)
    slope = jax.vmap(jax.grad(vit.ACTIVATIONS["gelu"]))(jnp.asarray(x))
    want = scipy.special.ndtr(x.astype(np.float64)) + x * np.exp(-0.5 * x.astype(np.float64) ** 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(slope, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.99999999])
def test_dropout_leaves_its_share_out_and_keeps_the_mean(rate):
    bits = jnp.arange(2**16, dtype=jnp.uint32)  # every value once: the mean over them is the expectation
    got = np.asarray(vit.dropped(jnp.ones(2**16), bits, rate), np.float64)
    assert np.mean(got == 0) == pytest.approx(rate, abs=2**-16)
    assert got.mean() == pytest.approx(1.0, rel=1e-6)
    assert len(set(got)) == 2


def test_residual_branches_are_dropped_independently():
    block = vit.Block(heads=1, mlp=4, dropout=0.5)
    x = jnp.zeros((64, 8, 4))
    params = jax.jit(block.init)(jax.random.key(0), x)["params"]
    # Without input only the last biases of the two branches come through: 1 of the first, 100 of the second.
    params = jax.tree.map(jnp.zeros_like, params)
    params["attention"]["out"]["bias"] += 1.0
    params["mlp"]["down"]["bias"] += 100.0
    out = np.asarray(block.apply({"params": params}, x, train=True, rngs={"dropout": jax.random.key(1)}))
    values, counts = np.unique(out, return_counts=True)
    assert set(values) == {0.0, 2.0, 200.0, 202.0}
    assert np.all(np.abs(counts / out.size - 0.25) < 0.05)
