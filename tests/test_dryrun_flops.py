"""Operations: the formula against the trace, and both against the compiler where it has no loops to miscount."""

import jax
import jax.numpy as jnp
import pytest

from repgls_jax.dryrun import flops
from repgls_jax.models import luvit, vit

ARCHITECTURES = {
    "conv": (vit.SIZES["demo"], 64),
    "patch": (vit.Architecture(256, 2, 4, 1024), 64),
    "modern": (
        vit.Architecture(96, 2, 3, 160, class_token=True, registers=4, gated=True, position="rope", layer_scale=0.1),
        96,
    ),
}


def shapes(model, side, batch=2):
    films = jax.ShapeDtypeStruct((batch, side, side, 1), jnp.uint8)
    params = jax.eval_shape(model.init, jax.random.key(0), films)["params"]
    return params, films


def predict(model):
    return lambda params, films: model.apply({"params": params}, films)


def gradient(model):
    # With the value: its own products would be dropped with it.
    return jax.value_and_grad(
        lambda params, films: sum(v.sum() for v in model.apply({"params": params}, films).values())
    )


def first_layer(architecture, side):
    """Operations of the layer that reads the film, whose own gradient nobody asks for."""
    if architecture.stem == "patch":
        return 2 * side**2 * architecture.width
    return 2 * (side // 2) ** 2 * 9 * (architecture.width >> architecture.patch.bit_length() - 2)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_formula_is_the_trace(name):
    architecture, side = ARCHITECTURES[name]
    model = luvit.build("", 14, architecture=architecture)
    arguments = shapes(model, side)
    assert flops.traced(predict(model), *arguments) == 2 * flops.forward(model, side)
    stopped = 2 * 14 * architecture.width  # no gradient flows from the second head into the rest
    less = first_layer(architecture, side) + stopped
    assert flops.traced(gradient(model), *arguments) == 2 * (flops.training(model, side) - less)


def test_the_compiler_counts_the_same_and_what_is_no_product():
    architecture, side = ARCHITECTURES["patch"]
    model = luvit.build("", 14, architecture=architecture)
    arguments = shapes(model, side)
    for function in (predict(model), gradient(model)):
        counted = jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]
        assert flops.traced(function, *arguments) < counted < 1.06 * flops.traced(function, *arguments)


@pytest.mark.parametrize(("name", "published"), [("B/16", 17.58e9), ("L/16", 61.60e9)])
def test_forward_of_a_vit_is_as_published(name, published):
    # timm's table of vit_{base,large}_patch16_224, a multiply-add counting one; ours has one channel and a read-out.
    assert flops.forward(luvit.build(name, 14), 224) == pytest.approx(2 * published, rel=0.03)


def test_scan_and_recomputation_count_what_is_done():
    architecture, side = vit.Architecture(96, 4, 3, 256), 96

    def work(**execution):
        model = luvit.build("", 14, architecture=architecture, **execution)
        return flops.traced(gradient(model), *shapes(model, side))

    plain = work()
    assert work(scan=True) == plain
    again = work(remat="full")
    assert work(remat="full", scan=True) == again
    # The blocks run once more, but for the MLP's last product, which no gradient needs.
    tokens, d = 36, architecture.width
    block = 2 * tokens * (4 * d * d + d * architecture.mlp) + 4 * tokens * tokens * d
    assert again - plain == 2 * architecture.depth * block
    assert plain < work(remat="dots") < again


def test_branches_and_loops():
    x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    product = 2 * 8**3

    def branching(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x)

    assert flops.traced(branching, x) == product
    assert flops.traced(lambda x: jax.lax.fori_loop(0, 7, lambda i, y: y @ x, x), x) == 7 * product
