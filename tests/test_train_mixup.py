"""Mixup against a float64 oracle, and that mixing films moves none between devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repgls_jax import losses, policies, rates
from repgls_jax.findings import CHEXPERT, NEGATIVE, NOT_MENTIONED, POSITIVE, UNCERTAIN
from repgls_jax.models import luvit as luvit_model
from repgls_jax.models import vit
from repgls_jax.train import luvit, sharding
from repgls_jax.train.state import create
from repgls_jax.train.step import make_train_step

B, C, ALPHA = 16, len(CHEXPERT), 0.4
KEY, STEP = jax.random.key(3), jnp.int32(5)


class Linear:
    """A network of one matrix, with both heads."""

    def apply(self, variables, images, train, rngs):
        z = images.reshape(len(images), -1) @ variables["params"]["w"]
        return {"logits": z, "rate": jnp.tanh(0.1 * z)}


def batch(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    state = rng.choice([POSITIVE, NEGATIVE, UNCERTAIN, NOT_MENTIONED], (B, C)).astype(np.int8)
    p = {POSITIVE: 1.0, NEGATIVE: 0.0, UNCERTAIN: 0.7, NOT_MENTIONED: np.nan}
    p = np.vectorize(p.get, otypes=[np.float32])(state)
    return {
        "image": rng.integers(0, 256, (B, 8, 8, 1)).astype(np.uint8),
        "state": state,
        "p": p,
        "observed": rng.random((B, C)) < 0.8,
        "rate": np.where(np.isnan(p), 0.0, rates.hedge_rate(p)).astype(np.float32),
    }


def total(terms: dict[str, losses.Term]) -> float:
    return float(sum(term.weight * losses.masked_mean(term.values, term.mask) for term in terms.values()))


def test_the_loss_is_that_of_mixed_films_under_both_labels():
    made, w = batch(), np.random.default_rng(1).normal(0, 0.3, (64, C))
    loss = luvit.make_loss(Linear(), policies.PolicyConfig(name="expert"), 10, 0.1, ALPHA)
    got = total(loss({"w": jnp.asarray(w, jnp.float32)}, jax.tree.map(jnp.asarray, made), KEY, STEP))

    share = np.asarray(jax.random.beta(jax.random.split(KEY, 3)[2], ALPHA, ALPHA, (B, 1)), np.float64)
    assert share.min() < 0.2 and share.max() > 0.8
    other = np.arange(B) ^ 1
    x = made["image"].reshape(B, -1) / 127.5 - 1
    z = (share * x + (1 - share) * x[other]) @ w
    p = np.nan_to_num(made["p"].astype(np.float64))
    t = np.where(made["state"] == NOT_MENTIONED, 0, np.where(p >= 0.5, 1 - made["rate"] / 2, made["rate"] / 2))
    bce = np.logaddexp(0, z)
    error = np.abs(np.tanh(0.1 * z) - made["rate"])
    mentioned = made["observed"] & (made["state"] != NOT_MENTIONED)
    over, under, uncertain, count = 0.0, 0.0, 0.0, 0.0
    for rows, weight in ((np.arange(B), share), (other, 1 - share)):
        over += (made["observed"][rows] * weight * (bce - t[rows] * z)).sum()
        under += (made["observed"][rows] * weight).sum()
        gap = np.abs(np.tanh(0.1 * z) - made["rate"][rows])
        huber = np.where(gap < 0.25, gap**2 / 2, 0.25 * (gap - 0.125))
        uncertain += (mentioned[rows] * weight * huber).sum()
        count += (mentioned[rows] * weight).sum()
    assert error.max() > 0.25
    assert got == pytest.approx(over / under + 0.1 * uncertain / count, rel=1e-5)


def test_without_it_the_loss_is_the_plain_one():
    made, params = batch(), {"w": jnp.ones((64, C)) * 0.01}
    plain = luvit.make_loss(Linear(), policies.PolicyConfig(name="expert"), 10, 0.1)
    normal = {**made, "image": luvit_model.normalize(jnp.asarray(made["image"]))}
    terms = plain(params, jax.tree.map(jnp.asarray, normal), KEY, STEP)
    value = losses.masked_mean(terms["presence"].values, terms["presence"].mask)
    z = (made["image"].reshape(B, -1) / 127.5 - 1) @ np.full((64, C), 0.01)
    p = np.nan_to_num(made["p"].astype(np.float64))
    t = np.where(p >= 0.5, 1 - made["rate"] / 2, made["rate"] / 2)
    assert float(value) == pytest.approx((np.logaddexp(0, z) - t * z)[made["observed"]].mean(), rel=1e-5)


@pytest.mark.slow
def test_no_film_leaves_its_device():
    mesh = sharding.make_mesh("dp")
    assert mesh.size == 8
    model = luvit_model.build("", C, architecture=vit.Architecture(16, 1, 2, 32, patch=8))
    tx = optax.sgd(0.1)
    made = sharding.put_batch(batch(), mesh)
    state = create(jax.jit(model.init)(jax.random.key(0), made["image"][:1])["params"], tx, 0)
    placed = sharding.shard_state(state, mesh, "dp")
    loss = luvit.make_loss(model, policies.PolicyConfig(name="expert"), 10, 0.1, ALPHA)
    step = jax.jit(make_train_step(loss, tx), out_shardings=(placed, None))
    text = step.lower(jax.device_put(state, placed), made).compile().as_text()
    kinds = re.findall(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-\w+)(?:-start)?\(", text)
    assert set(kinds) == {"all-reduce"}
