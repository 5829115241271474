"""Sizes, shapes, what the networks may and may not see, and names that do not exist."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repgls_jax import losses
from repgls_jax.models import luvit, rgn, tokens, vit

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
    return model, model.init(jax.random.key(0), images)["params"], images


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


def reading(n: int = 2, c: int = 3, length: int = 20) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = rng.integers(1, tokens.BUCKETS, (n, length, tokens.SUBWORDS)).astype(np.uint16)
    span = np.zeros((n, c, 2), np.int32)
    span[:, 0], span[:, 1] = (0, 8), (8, 14)  # the third finding is not mentioned
    zeros = np.zeros((n, c), np.int32)
    return {"words": ids, "span": span, "mention": zeros, "state": zeros - 2, "cue": zeros, "section": zeros}


def test_rgn_reads_only_the_sentence_about_a_finding():
    # Without blocks over the words and with a neighbourhood of two, a word far outside the sentence cannot matter.
    net = rgn.build(3, depth=0, width=16, heads=2, dropout=0.0)
    batch = reading()
    params = net.init(jax.random.key(0), batch)["params"]
    grad = jax.grad(lambda e: net.apply({"params": params | {"words": {"embedding": e}}}, batch)[0, 0])(
        params["words"]["embedding"]
    )
    used = set(np.nonzero(np.any(np.asarray(grad), axis=1))[0])
    inside, outside = set(batch["words"][0, :10].ravel()), set(batch["words"][0, 10:].ravel())
    assert used <= inside and used & inside and not used & (outside - inside)
    rates = net.apply({"params": params}, batch)
    assert rates.shape == (2, 3) and np.all(np.abs(rates) < 1)


def test_rgn_withholds_evidence_in_training_only():
    net = rgn.build(3, width=16, heads=2, evidence=True, evidence_dropout=1.0, dropout=0.0)
    batch = reading()
    params = net.init(jax.random.key(0), batch)["params"]
    told = batch | {"state": batch["state"] + 3}

    def rates(b, train):
        return net.apply({"params": params}, b, train=train, rngs={"dropout": jax.random.key(1)})

    np.testing.assert_array_equal(rates(batch, True), rates(told, True))
    assert np.any(np.asarray(rates(batch, False)) != np.asarray(rates(told, False)))


def test_guidance_against_numpy():
    rng = np.random.default_rng(0)
    predicted, expert = rng.uniform(-1, 1, (2, 6, 3))
    weight = rng.integers(0, 2, (6, 3)).astype(float)
    got = rgn.guidance(jnp.float32(predicted), jnp.float32(expert), jnp.float32(weight), 0.1, 2.0, jnp.int32(2))
    error = np.abs(predicted - expert)
    huber = np.where(error < 0.1, error**2 / 0.2, error - 0.05)
    fit = (huber * weight).sum() / weight.sum()
    terms = []
    for i in range(6):
        j = (i - 2) % 6
        for k in range(3):
            if weight[i, k] and weight[j, k] and expert[i, k] > expert[j, k]:
                half = (expert[i, k] - expert[j, k]) / 2
                terms.append(max(0.0, half - (predicted[i, k] - predicted[j, k])))
    mean = {name: float(losses.masked_mean(term.values, term.mask)) for name, term in got.items()}
    assert mean == {"huber": pytest.approx(fit, rel=1e-5), "ordering": pytest.approx(np.mean(terms), rel=1e-5)}
    assert {name: term.weight for name, term in got.items()} == {"huber": 1.0, "ordering": 2.0}


def test_perfect_rates_cost_nothing():
    expert = jnp.float32(np.random.default_rng(0).uniform(-1, 1, (6, 3)))
    got = rgn.guidance(expert, expert, jnp.ones((6, 3)), 0.1, 1.0, jnp.int32(1))
    assert all(float(losses.masked_sum(term.values, term.mask)[0]) == 0.0 for term in got.values())


def test_words_share_pieces_and_hold_no_text():
    a, b, other = (set(tokens.subwords(w)) for w in ("suspicion", "suspicious", "borderline"))
    assert len(a & b) >= 5 and len(a & other) <= 2
    assert all(0 < piece < tokens.BUCKETS for piece in a | b | other)
    assert tokens.words("No definite effusion.") == [("no", 0), ("definite", 3), ("effusion", 12), (".", 20)]
    assert len(tokens.subwords("pneumomediastinum")) == tokens.SUBWORDS
