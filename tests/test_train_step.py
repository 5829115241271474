"""The step against float64, its micro-batches, its average, and every preset against one device."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repgls_jax import losses, policies
from repgls_jax.models import luvit as luvit_model
from repgls_jax.models import rgn as rgn_model
from repgls_jax.models import tokens, vit
from repgls_jax.train import luvit, rgn, sharding
from repgls_jax.train.state import TrainState, create
from repgls_jax.train.step import make_train_step

B, STEPS = 16, 3
# Smooth where gradients are tiny: sums in another order must not become steps in another direction.
TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, eps=1e-3))
QUICK = {"xla_llvm_disable_expensive_passes": True, "xla_backend_optimization_level": 0}


def table(seed: int, n: int = 12) -> dict[str, np.ndarray]:
    """Rows whose masks differ much between every third: micro-batches keep 0, few and all of them."""
    rng = np.random.default_rng(seed)
    share = np.array([0.0, 0.3, 1.0])[np.arange(n) % 3]
    return {
        "x": rng.normal(size=(n, 4)).astype(np.float32),
        "y": rng.normal(size=(n, 2)).astype(np.float32),
        "seen": rng.random((n, 2)) < share[:, None],
        "weight": (rng.random(n) * (rng.random(n) < 0.5)).astype(np.float32),
    }


def linear(params, batch, key, step):
    """Two terms with a mask and weights of their own."""
    del key, step
    error = (batch["x"] @ params["a"]["w"] + params["b"] - batch["y"]) ** 2
    return {
        "fit": losses.Term(jnp.where(batch["seen"], error, jnp.nan), batch["seen"]),
        "first": losses.Term(jnp.abs(batch["x"] @ params["a"]["w"][:, 0]), batch["weight"], 0.3),
    }


def start() -> dict:
    rng = np.random.default_rng(9)
    return {"a": {"w": jnp.float32(rng.normal(size=(4, 2)))}, "b": jnp.float32(rng.normal(size=(1, 2)))}


def by_hand(w: np.ndarray, b: np.ndarray, batch: dict[str, np.ndarray]) -> tuple[float, np.ndarray, np.ndarray]:
    """Loss and gradients of :func:`linear` in float64."""
    x, y, seen, weight = (batch[name].astype(np.float64) for name in ("x", "y", "seen", "weight"))
    error, first = (x @ w + b - y) * seen, x @ w[:, 0]
    n, m = max(seen.sum(), 1), max(weight.sum(), 1)
    grad = 2 * x.T @ error / n
    grad[:, 0] += 0.3 * (x.T @ (np.sign(first) * weight)) / m
    return (error**2).sum() / n + 0.3 * (np.abs(first) * weight).sum() / m, grad, 2 * error.sum(0, keepdims=True) / n


@pytest.mark.parametrize("accumulate", [1, 3, 4])
def test_step_and_micro_batches_against_float64(accumulate):
    decay = 0.15
    step = jax.jit(make_train_step(linear, optax.sgd(0.1), accumulate, ema=decay))
    state = create(start(), optax.sgd(0.1), 0, ema=decay)
    w, b = (np.asarray(x, np.float64) for x in (state.params["a"]["w"], state.params["b"]))
    average = w.copy()
    for i in range(4):
        batch = table(i)
        state, scalars = step(state, batch)
        value, grad_w, grad_b = by_hand(w, b, batch)
        w, b = w - 0.1 * grad_w, b - 0.1 * grad_b
        rate = min(decay, (1 + i) / (10 + i))
        average = rate * average + (1 - rate) * w
        assert float(scalars["loss"]) == pytest.approx(value, abs=1e-6)
        norm = np.sqrt((grad_w**2).sum() + (grad_b**2).sum())
        assert float(scalars["grad_norm"]) == pytest.approx(norm, abs=1e-6)
        np.testing.assert_allclose(state.params["a"]["w"], w, atol=1e-6)
        np.testing.assert_allclose(state.weights["a"]["w"], average, atol=1e-6)
    assert set(scalars) == {"loss", "grad_norm", "fit", "first"} and int(state.step) == 4


def test_without_an_average_the_weights_are_the_parameters():
    state = create(start(), optax.sgd(0.1), 0)
    assert state.ema is None and state.weights is state.params
    state, _ = jax.jit(make_train_step(linear, optax.sgd(0.1)))(state, table(0))
    assert state.ema is None


def test_frozen_parameters_have_no_gradient():
    whole, _ = jax.jit(make_train_step(linear, optax.sgd(0.1), 2))(create(start(), optax.sgd(0.1), 0), table(0))
    step = jax.jit(make_train_step(linear, optax.sgd(0.1), 2, freeze=("a",)))
    state, scalars = step(create(start(), optax.sgd(0.1), 0), table(0))
    np.testing.assert_array_equal(state.params["a"]["w"], start()["a"]["w"])
    np.testing.assert_allclose(state.params["b"], whole.params["b"], atol=1e-7)
    _, _, grad_b = by_hand(*(np.asarray(x, np.float64) for x in (start()["a"]["w"], start()["b"])), table(0))
    assert float(scalars["grad_norm"]) == pytest.approx(np.linalg.norm(grad_b), abs=1e-6)


def test_uneven_micro_batches_are_refused():
    step = make_train_step(linear, optax.sgd(0.1), 5)
    with pytest.raises(ValueError, match=r"'x': 12.* do not divide into accumulate=5 micro-batches"):
        jax.eval_shape(step, create(start(), optax.sgd(0.1), 0), table(0))


def test_randomness_differs_between_steps_and_micro_batches_and_returns():
    def noise(params, batch, key, step):
        return {"noise": losses.Term(params["b"].sum() * 0 + jax.random.normal(key, (len(batch["x"]),)), batch["keep"])}

    def value(step: int, keep: slice, accumulate: int) -> float:
        batch = {"x": np.zeros((12, 1), np.float32), "keep": np.zeros(12, bool)}
        batch["keep"][keep] = True
        state = create(start(), optax.sgd(0.1), 3).replace(step=jnp.int32(step))
        return float(jax.jit(make_train_step(noise, optax.sgd(0.1), accumulate))(state, batch)[1]["noise"])

    assert value(0, slice(None), 1) == value(0, slice(None), 1) != value(1, slice(None), 1)
    assert value(0, slice(0, None, 2), 2) != value(0, slice(1, None, 2), 2)


def films(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    states = rng.choice([-2, -1, 0, 1], (B, 5)).astype(np.int8)
    p = np.select([states == 1, states == 0, states == -1], [1.0, 0.0, 0.7], np.nan).astype(np.float32)
    return {
        "image": rng.integers(0, 256, (B, 16, 16, 1), dtype=np.uint8),
        "state": states,
        "p": p,
        # What is observed differs between the two micro-batches, and between devices.
        "observed": rng.random((B, 5)) < np.where(np.arange(B) % 2, 0.1, 0.9)[:, None],
        "rate": rng.uniform(-0.5, 0.9, (B, 5)).astype(np.float32),
    }


def reports(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    shape = (B, 3)
    return {
        "words": rng.integers(1, tokens.BUCKETS, (B, 7, tokens.SUBWORDS)).astype(np.uint16),
        "span": np.tile(np.int32([0, 6]), (*shape, 1)),
        "mention": rng.integers(0, 6, shape).astype(np.int32),
        "side": rng.integers(0, 2, shape).astype(np.int8),
        "state": rng.integers(-2, 2, shape).astype(np.int8),
        "cue": rng.integers(0, rgn_model.CUE_BUCKETS, shape).astype(np.int32),
        "section": rng.integers(0, 4, shape).astype(np.int32),
        "expert": rng.uniform(-0.9, 0.9, shape).astype(np.float32),
        "p": rng.uniform(0, 1, shape).astype(np.float32),
        "weight": rng.choice([0.0, 0.1, 1.0], shape).astype(np.float32),
    }


class Net:
    """A network with its loss, the same at the start whatever the preset."""

    def __init__(self, name: str):
        self.name, self.batch = name, {"luvit": films, "rgn": reports}[name]
        sample = jax.tree.map(lambda x: x[:1], self.batch(0))
        model = self.model(sharding.make_mesh("dp", jax.devices()[:1]))
        data = sample["image"] if name == "luvit" else sample
        shapes = jax.eval_shape(model.init, jax.random.key(0), data)["params"]
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda s: rng.normal(0, 0.1, s.shape).astype(np.float32), shapes)
        self.state = jax.device_get(create(params, TX, 0, ema=0.5))

    def model(self, mesh: jax.sharding.Mesh):
        if self.name == "rgn":
            still = dict.fromkeys(("evidence_dropout", "dropout", "word_dropout"), 0.0)
            return rgn_model.build(3, width=32, heads=2, depth=0, evidence=True, **still)
        architecture = vit.Architecture(64, 1, 4, 128, patch=8)
        return luvit_model.build("", 5, architecture=architecture, constrain=sharding.constrain(mesh))

    def loss(self, mesh: jax.sharding.Mesh):
        if self.name == "rgn":
            return rgn.make_loss(self.model(mesh), 0.1, 1.0)
        return luvit.make_loss(self.model(mesh), policies.PolicyConfig(name="expert"), 10, 0.1)

    def run(self, mesh: jax.sharding.Mesh, preset: str, accumulate: int) -> tuple[TrainState, list[float], str]:
        """The state and the losses after some steps, and the compiled step."""
        placed = sharding.shard_state(self.state, mesh, preset)
        state = jax.device_put(self.state, placed)
        step = make_train_step(self.loss(mesh), TX, accumulate, ema=0.5)
        batches = [sharding.put_batch(self.batch(i), mesh) for i in range(STEPS)]
        lowered = jax.jit(step, out_shardings=(placed, None)).lower(state, batches[0])
        compiled = lowered.compile(compiler_options=QUICK)
        values = []
        for batch in batches:
            state, scalars = compiled(state, batch)
            values.append(float(scalars["loss"]))
        return state, values, compiled.as_text()


@pytest.fixture(scope="module", params=["luvit", "rgn"])
def one(request):
    """A network, and what one device makes of it with whole batches."""
    net = Net(request.param)
    return net, *net.run(sharding.make_mesh("dp", jax.devices()[:1]), "dp", 1)


# model_parallel of 4 does not divide the RGN's two heads, which stay whole then.
LAYOUTS = [("dp", 0, 0), ("fsdp", 0, 0), ("tp", 0, 0), ("fsdp_tp", 4, 0), ("hybrid", 0, 2)]


@pytest.mark.parametrize(("preset", "model_parallel", "slices"), LAYOUTS, ids=[name for name, *_ in LAYOUTS])
def test_eight_devices_train_as_one(one, preset, model_parallel, slices):
    """Parameters, average and losses are those of one device; and nothing else travels than the preset allows.

    LU-ViT is run in two micro-batches, which one device is not. Its compiled step shows that they stay where they are:
    under dp an exchange of examples would be more than a sum.
    """
    net, state, values, whole = one
    assert {name for name, *_ in LAYOUTS} == set(sharding.PRESETS)
    mesh = sharding.make_mesh(preset, model_parallel=model_parallel, slices=slices)
    ours, losses_, program = net.run(mesh, preset, 2 if net.name == "luvit" else 1)
    np.testing.assert_allclose(losses_, values, rtol=0, atol=1e-5)
    assert len(set(values)) == STEPS
    for own, other in ((ours.params, state.params), (ours.ema, state.ema)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), own, other)
    split = [x for x in jax.tree.leaves(ours.params) if not x.sharding.is_fully_replicated]
    assert bool(split) == (preset != "dp")
    if net.name == "luvit":  # the RGN compares neighbours in the batch
        kinds = re.findall(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-\w+)(?:-start)?\(", program)
        assert "all-reduce" in kinds and set(kinds) <= sharding.PRESETS[preset].collectives
        assert ("all-gather" in kinds) == ("all-gather" in sharding.PRESETS[preset].collectives)
        products = [text.count(" dot(") for text in (whole, program)]
        assert 10 < products[1] < 1.1 * products[0]  # counting what the masks keep costs no forward pass
