"""Sizes, shapes, what the networks may and may not see, and names that do not exist."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repgls_jax.models import luvit, vit

# Exact parameter counts at 14 findings; an entry for every size, so that nobody half-adds one.
PARAMETERS = {
    "tiny/16@64": 26_296,
    "demo/16@64": 519_052,
    "Ti/16@224": 5_878_684,
    "S/16@224": 23_258_908,
    "B/16@224": 92_524_060,
    "L/16@224": 315_414_556,
    "H/14@224": 649_991_708,
    "So400m/14@224": 427_278_684,
    "B/8@224": 92_828_188,
}


def count(name: str) -> int:
    model, _, side = name.partition("@")
    net = luvit.build(model, 14, scan=True)  # the same parameters, in less time
    image = jax.ShapeDtypeStruct((1, int(side), int(side), 1), jnp.uint8)
    shapes = jax.eval_shape(net.init, jax.random.key(0), image)["params"]
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))


def test_every_size_has_its_count():
    assert {name.split("/")[0] for name in PARAMETERS} == set(vit.SIZES)
    assert {name: count(name) for name in PARAMETERS} == PARAMETERS


@pytest.mark.parametrize("name", ["S", "S/12", "XL/16", "", "S/16/2", "demo/14"])
def test_unknown_models_are_refused(name):
    with pytest.raises(ValueError, match=r"model"):
        luvit.build(name, 14)


def test_uneven_images_are_refused():
    with pytest.raises(ValueError, match="not divisible into patches of 16"):
        luvit.build("Ti/16", 3).init(jax.random.key(0), jnp.zeros((1, 40, 40, 1), jnp.uint8))


@pytest.fixture(scope="module")
def net():
    model = luvit.LUViT(3, vit.Architecture(16, 1, 2, 32, patch=8))
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 1), dtype=np.uint8))
    return model, jax.jit(model.init)(jax.random.key(0), images)["params"], images


def test_luvit_output(net):
    model, params, images = net
    out = model.apply({"params": params}, images)
    assert out["logits"].shape == out["rate"].shape == (4, 3)
    assert out["logits"].dtype == out["rate"].dtype == jnp.float32
    assert np.all(np.abs(out["rate"]) < 1)


def test_uncertainty_head_leaves_the_rest_alone(net):
    model, params, images = net
    grads = jax.grad(lambda p: model.apply({"params": p}, images)["rate"].sum())(params)
    moved = {jax.tree_util.keystr(path) for path, g in jax.tree_util.tree_leaves_with_path(grads) if np.any(g)}
    assert moved == {"['uncertainty']['kernel']", "['uncertainty']['bias']"}


def test_normalization_contract(net):
    got = luvit.normalize(jnp.array([[[[0], [255]]]], jnp.uint8))
    np.testing.assert_allclose(np.ravel(got), [-1, 1])
    model, params, images = net
    again = model.apply({"params": params}, luvit.normalize(images))
    np.testing.assert_array_equal(again["logits"], model.apply({"params": params}, images)["logits"])
