"""How a network is computed does not change what it computes: scan, remat, precision, constraints, attention."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repgls_jax.models import attention, luvit, positions, vit

# Everything that a pre-trained encoder can bring along, at once.
RICH = vit.Architecture(
    width=32,
    depth=2,
    heads=2,
    mlp=48,
    patch=8,
    class_token=True,
    registers=2,
    position="rope",
    activation="silu",
    gated=True,
    layer_scale=0.5,
    bias="qv",
    norm_epsilon=1e-5,
)
PLAIN = vit.Architecture(width=32, depth=3, heads=2, mlp=48, patch=8)
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 24, 16, 1), dtype=np.uint8)


def build(architecture=RICH, **execution):
    return luvit.build("", 3, architecture=architecture, **execution)


# Most of the time would go into optimising code that runs once.
JIT = {"compiler_options": {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}}


@pytest.fixture(scope="module")
def reference():
    """The unrolled parameters, the logits and their gradient."""
    net = build()
    params = jax.jit(net.init, **JIT)(jax.random.key(0), IMAGES)["params"]
    return params, *evaluate(net, params)


def evaluate(net, params):
    def total(params):
        logits = net.apply({"params": params}, IMAGES)["logits"]
        return (logits**2).sum(), logits

    (_, logits), grads = jax.jit(jax.value_and_grad(total, has_aux=True), **JIT)(params)
    return logits, grads


def largest_difference(a, b):
    """Over all arrays: the norm of the difference, relative to the norm of ``b`` or to a thousandth of the whole's."""
    floor = 1e-3 * np.sqrt(sum(float((x**2).sum()) for x in jax.tree.leaves(b)))
    norms = jax.tree.map(lambda x, y: float(jnp.linalg.norm(x - y) / jnp.maximum(jnp.linalg.norm(y), floor)), a, b)
    return max(jax.tree.leaves(norms))


@pytest.mark.parametrize(("scan", "remat"), [(False, "dots"), (False, "full"), (True, "none"), (True, "full")])
def test_scan_and_remat_compute_the_same(reference, scan, remat):
    params, logits, grads = reference
    got, moved = evaluate(build(scan=scan, remat=remat), vit.stack_blocks(params) if scan else params)
    np.testing.assert_allclose(got, logits, rtol=0, atol=1e-5)
    assert largest_difference(vit.unstack_blocks(moved) if scan else moved, grads) < 1e-4


def test_remat_keeps_less_and_computes_more():
    def products(remat):
        net = build(PLAIN, remat=remat)
        params = jax.eval_shape(net.init, jax.random.key(0), IMAGES)["params"]
        grad = jax.grad(lambda p: net.apply({"params": p}, IMAGES)["logits"].sum())
        return str(jax.make_jaxpr(grad)(params)).count(" dot_general")

    none, dots, full = (products(name) for name in ("none", "dots", "full"))
    # Of a block's eight products in the forward pass, two are the attention's; "full" repeats all, but the last.
    assert dots == none + 2 * PLAIN.depth
    assert full > dots + 3 * PLAIN.depth


def test_stacking_is_undone_exactly(reference):
    params, *_ = reference
    stacked = vit.stack_blocks(params)
    shapes = jax.eval_shape(build(scan=True).init, jax.random.key(0), IMAGES)["params"]
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, shapes)
    for tree in (params, jax.tree.map(np.asarray, params)):
        again = vit.unstack_blocks(vit.stack_blocks(tree))
        assert jax.tree.structure(again) == jax.tree.structure(tree)
        jax.tree.map(np.testing.assert_array_equal, again, tree)
        assert {isinstance(x, np.ndarray) for x in jax.tree.leaves(again)} == {
            isinstance(x, np.ndarray) for x in jax.tree.leaves(tree)
        }
    jax.tree.map(np.testing.assert_array_equal, vit.stack_blocks(vit.unstack_blocks(stacked)), stacked)


def test_blocks_are_stacked_by_number():
    params = {f"block_{i}": {"w": np.full(2, i)} for i in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9)}
    np.testing.assert_array_equal(vit.stack_blocks(params)["blocks"]["w"][:, 0], np.arange(11))
    with pytest.raises(ValueError, match="every number from 0 on"):
        vit.stack_blocks({"block_0": {}, "block_2": {}})


@pytest.mark.parametrize("scan", [False, True])
def test_half_precision_is_of_the_computation_only(reference, scan):
    params, logits, _ = reference
    net = build(dtype="bfloat16", scan=scan)
    shapes = jax.eval_shape(net.init, jax.random.key(0), IMAGES)["params"]
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    given = vit.stack_blocks(params) if scan else params
    out = jax.jit(net.apply, **JIT)({"params": given}, IMAGES)
    assert out["logits"].dtype == out["rate"].dtype == jnp.float32
    assert 0 < float(jnp.abs(out["logits"] - logits).max()) < 0.03
    text = str(jax.make_jaxpr(lambda p: net.apply({"params": p}, IMAGES))(given))
    # Softmax and the statistics of the norms; the products but those of the heads are in half precision.
    assert ":bf16" not in "".join(line for line in text.splitlines() if " exp " in line or " rsqrt " in line)
    assert ":bf16" in "".join(line for line in text.splitlines() if " dot_general[" in line)


@pytest.mark.parametrize("scan", [False, True])
def test_drop_path_leaves_whole_samples_out_and_makes_up_for_it(scan):
    """Blocks that add 1 to every token add 0 or 1 / (1 - rate) to a sample's: the rate rises from 0 to the last's."""
    encoder = vit.VisionTransformer(dataclasses.replace(PLAIN, position="rope"), drop_path=0.5, scan=scan)
    images = jnp.zeros((1024, 8, 8, 1))
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), images)["params"]
    params = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)
    for group in [params["blocks"]] if scan else [params[f"block_{i}"] for i in range(3)]:
        group["mlp"]["down"]["bias"] += 1.0

    def last_block(train):
        _, state = encoder.apply(
            {"params": params},
            images,
            train=train,
            rngs={"dropout": jax.random.key(1)},
            capture_intermediates=lambda m, _: isinstance(m, vit.Block),
        )
        blocks = state["intermediates"]
        return np.asarray(blocks["blocks"]["__call__"][0][-1] if scan else blocks["block_2"]["__call__"][0])

    out = last_block(train=True)
    np.testing.assert_array_equal(out, np.broadcast_to(out[:, :1, :1], out.shape))
    sums, counts = np.unique(out[:, 0, 0].round(4), return_counts=True)
    # 1, with 4/3 in three of four cases, with 2 in one of two: all drawn independently.
    np.testing.assert_allclose(sums, [1, 1 + 4 / 3, 1 + 2, 1 + 4 / 3 + 2], atol=1e-3)
    np.testing.assert_allclose(counts / 1024, [1 / 8, 3 / 8, 1 / 8, 3 / 8], atol=0.06)  # four standard deviations
    np.testing.assert_allclose(last_block(train=False), 3, rtol=1e-6)


def test_constraints_are_put_between_the_blocks():
    for scan in (False, True):
        seen = []

        def constrain(x, seen=seen):
            seen.append(x.shape)
            return x

        net = build(RICH, scan=scan, constrain=constrain)
        jax.eval_shape(net.init, jax.random.key(0), IMAGES)
        tokens, findings = (3, RICH.prefix + 6, 32), (3, 3, 32)
        # A scan traces its block as often as it likes, but at least once.
        assert seen[0] == tokens and seen[-1] == findings and set(seen[:-1]) == {tokens}
        assert scan or len(seen) == 1 + RICH.depth + 1


def test_registers_are_not_read_but_the_class_token_is():
    net = build(dataclasses.replace(RICH, depth=1, layer_scale=0.0))
    params = jax.jit(net.init, **JIT)(jax.random.key(0), IMAGES)["params"]
    # Without a block's own mixing, what the queries see of a token is all that it can do.
    params["encoder"]["block_0"]["attention"]["out"] = jax.tree.map(
        jnp.zeros_like, params["encoder"]["block_0"]["attention"]["out"]
    )
    apply = jax.jit(net.apply, **JIT)
    seen = apply({"params": params}, IMAGES)["logits"]
    for name, read in (("registers", False), ("class_token", True)):
        moved = params | {"encoder": params["encoder"] | {name: params["encoder"][name] + 1.0}}
        assert np.any(apply({"params": moved}, IMAGES)["logits"] != seen) == read


def test_a_description_gives_the_network_back():
    for architecture in (PLAIN, RICH):
        text = json.dumps(luvit.describe(build(architecture, dropout=0.1, scan=True)))
        again = luvit.from_description(json.loads(text), 3, dtype="bfloat16")
        assert again == build(architecture, dtype="bfloat16")
    assert luvit.from_description("S/16", 5) == luvit.build("S/16", 5)
    with pytest.raises(ValueError, match=r"unknown fields \['colour'\] and without \['mlp'\]"):
        luvit.from_description({"width": 8, "depth": 1, "heads": 1, "colour": 3}, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"remat": "some"}, "remat 'some' is unknown; expected one of none, dots, full"),
        ({"attention": "flash"}, "attention 'flash' is unknown"),
        ({"attention": "cudnn"}, "half precision"),
        ({"drop_path": 1.0}, r"shares in \[0, 1\)"),
    ],
)
def test_settings_that_do_not_exist_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "not a multiple of 3 heads"),
        ({"position": "rope", "heads": 16}, "cannot be turned"),
        ({"stem": "conv", "patch": 14}, "a power of 2, not 14"),
        ({"activation": "relu", "bias": "k", "stem": "x", "position": "y"}, "stem.*position.*activation.*bias"),
    ],
)
def test_architectures_that_do_not_fit_together_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAIN, **change)


def device(platform="gpu", version="PJRT C API\ncuda 12080", capability="9.0"):
    client = types.SimpleNamespace(platform_version=version)
    return types.SimpleNamespace(platform=platform, client=client, compute_capability=capability)


@pytest.mark.parametrize(
    ("where", "dtype", "width", "runs"),
    [
        (device(), "bfloat16", 64, True),
        (device(), "float32", 64, False),
        (device(), "bfloat16", 72, True),  # So400m
        (device(), "bfloat16", 70, False),
        (device(), "bfloat16", 192, True),
        (device(capability="8.0"), "float16", 128, True),
        (device(capability="8.6"), "bfloat16", 192, False),
        (device(capability="7.5"), "bfloat16", 64, False),
        (device(capability="10.0"), "bfloat16", 64, True),
        (device(version="rocm 60", capability="gfx942"), "bfloat16", 64, False),
        (device(platform="cpu"), "bfloat16", 64, False),
        (device(platform="tpu"), "bfloat16", 64, False),
    ],
)
def test_flash_attention_runs_where_cudnn_has_it(where, dtype, width, runs):
    assert attention.flash(where, dtype, width) is runs


def test_attention_is_chosen_for_the_device(monkeypatch):
    assert attention.choose("auto", "bfloat16", 64) == "xla" or jax.default_backend() == "gpu"
    monkeypatch.setattr(jax, "local_devices", lambda: [device()])
    assert attention.choose("auto", "bfloat16", 64) == attention.choose("cudnn", "bfloat16", 64) == "cudnn"
    assert attention.choose("auto", "float32", 64) == attention.choose("xla", "bfloat16", 64) == "xla"


def test_rotary_scores_depend_on_the_offset_between_patches_only():
    cosine, sine = positions.rotary(4, 4, 16, 100.0, 1)
    assert cosine.shape == sine.shape == (17, 16)
    np.testing.assert_array_equal(cosine[0], 1)
    np.testing.assert_array_equal(sine[0], 0)
    rng = np.random.default_rng(0)
    query, key = (np.broadcast_to(rng.normal(size=16).astype(np.float32), (1, 17, 1, 16)) for _ in range(2))
    query, key = (np.asarray(positions.rotate(jnp.asarray(v), (cosine, sine)))[0, 1:, 0] for v in (query, key))
    scores = (query @ key.T).reshape(4, 4, 4, 4)
    np.testing.assert_allclose(scores[0, 0, 1, 2], scores[2, 1, 3, 3], rtol=1e-4)
    assert abs(scores[0, 0, 1, 2] - scores[0, 0, 2, 1]) > 1e-3
