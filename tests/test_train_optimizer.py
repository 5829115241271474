"""What the optimizer moves and how far: against AdamW in float64, by layer, frozen, and in scanned blocks alike."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from flax import traverse_util

from repgls_jax.models import vit
from repgls_jax.train import optimizer as opt

DEPTH = 3


def params(seed: int = 0) -> dict:
    """A tree with the names of LU-ViT: three blocks, what is in front of them, and what is behind."""
    rng = np.random.default_rng(seed)
    block = {"mlp/up/kernel": (4, 6), "mlp/up/bias": (6,), "attention/query/kernel": (4, 2, 2), "mlp_norm/scale": (4,)}
    shapes = {"encoder/embedding/kernel": (2, 2, 1, 4), "encoder/position": (1, 5, 4), "encoder/norm/scale": (4,)}
    shapes |= {"queries": (1, 3, 4), "presence/kernel": (3, 4), "presence/bias": (3,)}
    shapes |= {f"encoder/block_{i}/{name}": shape for i in range(DEPTH) for name, shape in block.items()}
    flat = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def flat(tree) -> dict[str, np.ndarray]:
    return {path: np.asarray(x) for path, x in traverse_util.flatten_dict(tree, sep="/").items()}


def config(**changes) -> ml_collections.ConfigDict:
    settings = {
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "warmup": 0.2,
        "clip": 1.0,
        "layer_decay": 1.0,
        "freeze": (),
    }
    return ml_collections.ConfigDict(settings | changes)


def updates(settings: ml_collections.ConfigDict, weights: dict, steps: int = 3, stacked: bool = False) -> dict:
    """The parameters after some steps whose gradients do not depend on them."""
    tx = opt.optimizer(settings, 10)
    gradients = [params(seed=step + 1) for step in range(steps)]

    @jax.jit
    def run(weights: dict, gradients: list[dict]) -> dict:
        state = tx.init(weights)
        for grads in gradients:
            moved, state = tx.update(grads, state, weights)
            weights = optax.apply_updates(weights, moved)
        return weights

    return run(weights, [vit.stack_blocks(grads) if stacked else grads for grads in gradients])


def oracle(settings: ml_collections.ConfigDict, steps: int = 3) -> dict[str, np.ndarray]:
    """AdamW in float64, from its definition; layer rates and freezing as the module says."""

    def still(path: str) -> bool:
        return any(path.startswith(f"{prefix}/") or path == prefix for prefix in settings.freeze)

    def layer(path: str) -> int:
        name = path.split("/")[1] if path.startswith("encoder/") else ""
        return {"embedding": 0, "position": 0}.get(name, int(name[6:]) + 1 if name.startswith("block_") else DEPTH + 1)

    p = {path: value.astype(np.float64) for path, value in flat(params()).items()}
    m, v = ({path: np.zeros_like(value) for path, value in p.items()} for _ in range(2))
    for step in range(steps):
        g = {path: value.astype(np.float64) for path, value in flat(params(seed=step + 1)).items() if not still(path)}
        norm = np.sqrt(sum((value**2).sum() for value in g.values()))
        rate = settings.learning_rate * (step / 2 if step < 2 else 0.5 * (1 + np.cos(np.pi * (step - 2) / 8)))
        for path, grad in g.items():
            grad = grad / max(norm, settings.clip) * settings.clip
            m[path] = 0.9 * m[path] + 0.1 * grad
            v[path] = 0.98 * v[path] + 0.02 * grad**2
            ahead = m[path] / (1 - 0.9 ** (step + 1)) / (np.sqrt(v[path] / (1 - 0.98 ** (step + 1))) + 1e-8)
            decay = settings.weight_decay * p[path] if p[path].ndim > 1 else 0
            p[path] = p[path] - rate * settings.layer_decay ** (DEPTH + 1 - layer(path)) * (ahead + decay)
    return p


CASES = {
    "plain": {},
    "by layer": {"layer_decay": 0.7},
    "frozen": {"freeze": ("encoder/embedding", "encoder/block_1", "queries")},
    "both": {"layer_decay": 0.7, "freeze": ("encoder/embedding", "encoder/position")},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_against_adamw_in_float64(changes):
    got, expected = flat(updates(config(**changes), params())), oracle(config(**changes))
    for path, value in expected.items():
        np.testing.assert_allclose(got[path], value, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", ["plain", "by layer", "both"])
def test_scanned_blocks_get_the_same_updates(name):
    settings = config(**CASES[name])
    unrolled = vit.stack_blocks(updates(settings, params()))
    scanned = updates(settings, vit.stack_blocks(params()), stacked=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), unrolled, scanned)
    assert not np.array_equal(flat(scanned)["encoder/blocks/mlp/up/bias"], 0)


def test_decay_alone_moves_matrices_alone():
    """Without gradients nothing but decay is left, which shows the mask; in scanned blocks too."""
    for tree in (params(), vit.stack_blocks(params())):
        tx = opt.optimizer(config(), 10)

        @jax.jit
        def second(tree: dict, tx: optax.GradientTransformation = tx) -> dict:
            zeros = jax.tree.map(jnp.zeros_like, tree)
            return tx.update(zeros, tx.update(zeros, tx.init(tree), tree)[1], tree)[0]  # the first has rate 0

        decayed = {path for path, value in flat(second(tree)).items() if np.any(value)}
        vectors = ("bias", "scale")
        assert decayed == {path for path in flat(tree) if not path.endswith(vectors)}


def test_frozen_parameters_keep_their_bits_and_have_no_moments():
    settings = config(freeze=("encoder/.*bias", "presence"))
    before, after = flat(params()), flat(updates(settings, params()))
    held = {path for path in before if np.array_equal(before[path], after[path])}
    assert held == {path for path in before if path.startswith("presence/") or path.endswith("bias")}
    shapes = jax.eval_shape(opt.optimizer(settings, 10).init, params())
    sizes = [x.shape for x in jax.tree.leaves(shapes) if x.shape]
    assert len(sizes) == 2 * (len(before) - len(held))


def test_a_pattern_takes_whole_parts_of_a_path():
    paths = [f"encoder/block_{i}/bias" for i in (1, 11)] + ["encoder/norm/bias", "encoder_norm/bias"]
    assert opt.frozen(paths, ["encoder/block_1"]) == {"encoder/block_1/bias"}
    assert opt.frozen(paths, ["encoder"]) == set(paths[:3])
    assert opt.frozen(paths, ["encoder/block_.*", "encoder_norm/bias"]) == {*paths[:2], paths[3]}
    assert opt.frozen(paths, []) == set()


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["encoder/blok_1", "(", "zzzz"], r"'encoder/blok_1' matches no parameter; close names: .*encoder/block_1"),
        (["encoder/blok_1", "(", "zzzz"], r"'\(' is no regular expression.*'zzzz' matches no parameter"),
        ([".*"], "leaves no parameter to train"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(patterns, message):
    with pytest.raises(ValueError, match=message):
        opt.optimizer(config(freeze=tuple(patterns)), 10).init(params())


@pytest.mark.parametrize("value", [0.0, -0.5, 1.5])
def test_layer_decay_is_a_factor(value):
    with pytest.raises(ValueError, match=r"layer_decay is .* expected a factor in \(0, 1\]"):
        opt.optimizer(config(layer_decay=value), 10)


def test_layers_of_the_rgn():
    tree = {"words": {"embedding": jnp.ones((2, 2))}, "block_0": {"mlp": {"up": {"bias": jnp.ones(2)}}}}
    tree |= {"rate": {"bias": jnp.ones(1)}, "words_norm": {"scale": jnp.ones(2)}}
    scaled, _ = opt.scale_by_layer(0.5).update(tree, optax.EmptyState(), tree)
    got = {path: float(value.max()) for path, value in flat(scaled).items()}
    assert got == {"words/embedding": 0.25, "block_0/mlp/up/bias": 0.5, "rate/bias": 1.0, "words_norm/scale": 1.0}
