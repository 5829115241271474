"""Every method, by one table: its loss against float64, its neutral setting, and what a missing label lets through."""

import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repgls_jax import losses, methods, policies, rates
from repgls_jax.findings import NEGATIVE, NOT_MENTIONED, POSITIVE, UNCERTAIN
from repgls_jax.memory import Memory
from repgls_jax.methods import METHODS, Seen, record

N, C = 24, 5
PROGRESS = 0.4


def columns(seed: int = 0, plain: bool = False) -> dict[str, np.ndarray]:
    """Labels of all states, some not observed; without hedges and rates if they are to be ``plain``."""
    rng = np.random.default_rng(seed)
    states = [POSITIVE, NEGATIVE] if plain else [POSITIVE, NEGATIVE, UNCERTAIN, NOT_MENTIONED]
    state = rng.choice(states, (N, C)).astype(np.int8)
    state[:2] = [[POSITIVE], [NEGATIVE]]
    hedge = rng.uniform(0.1, 0.9, (N, C))
    p = np.select([state == POSITIVE, state == NEGATIVE, state == UNCERTAIN], [1.0, 0.0, hedge], np.nan)
    made = {"state": state, "p": p.astype(np.float32), "observed": rng.random((N, C)) < 0.8}
    made["rate"] = np.nan_to_num(rates.hedge_rate(np.nan_to_num(made["p"]))).astype(np.float32)
    made["belief"] = np.nan_to_num(made["p"], nan=0.05)
    made["truth"] = (made["belief"] > 0.4).astype(np.int8)
    return made


def settings(name: str, **changes: float) -> tuple[policies.PolicyConfig, dict[str, float]]:
    config = policies.PolicyConfig(name)
    return config, methods.values(config) | changes


def remembered(name: str, hyper: dict, known: dict, seed: int = 1) -> Memory:
    """A memory of the method's shapes with something in it: probabilities, and shared numbers of the size they have."""
    memory = methods.start(policies.PolicyConfig(name), hyper, known)
    if memory is None:
        return Memory({}, {})
    rng = np.random.default_rng(seed)
    rows = {k: jnp.float32(rng.uniform(0.05, 0.95, v.shape)) for k, v in memory.rows.items()}
    shared = {k: v if k == "prior" else jnp.float32(rng.uniform(0.1, 0.4, v.shape)) for k, v in memory.shared.items()}
    return Memory(rows, shared)


def seen_of(name: str, known: dict, hyper: dict | None = None) -> Seen:
    config, defaults = settings(name)
    hyper = defaults if hyper is None else hyper
    targets = methods.targets(config, hyper, known)
    memory = remembered(name, hyper, known)
    labels = {k: jnp.asarray(v) for k, v in known.items()}
    config = methods.applied(config, hyper)
    return Seen(labels, targets, hyper, config, jnp.float32(PROGRESS), memory.rows, memory.shared)


def values(name: str, z: jax.Array, seen: Seen) -> jax.Array:
    """The method's losses [b, c]; of two networks that of the first, the other one being half as sure."""
    method = METHODS[name]
    if method.exchange:
        return method.exchange(z, 0.5 * z + 0.1, seen)[0]
    return method.loss(z, seen, *([0.3 * z - 1.0] if method.third else []))


def weights(name: str, seen: Seen) -> np.ndarray:
    method = METHODS[name]
    return np.asarray(seen.targets.mask * (method.weigh(seen) if method.weigh else 1.0), np.float64)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -z))


def logit(p: np.ndarray) -> np.ndarray:
    return np.log(p) - np.log(1 - p)


class Oracle:
    """What a loss is computed from, in float64."""

    def __init__(self, z: np.ndarray, seen: Seen):
        self.z, self.seen, self.h = z.astype(np.float64), seen, {k: float(v) for k, v in seen.hyper.items()}
        self.y, self.r = (np.asarray(x, np.float64) for x in seen.targets[:2])
        self.mask = np.asarray(seen.targets.mask)
        self.p, self.state = sigmoid(self.z), np.asarray(seen.labels["state"])
        self.of_label = np.where(self.y == 1, self.p, 1 - self.p)
        self.rows = {k: np.asarray(v, np.float64) for k, v in seen.rows.items()}
        self.shared = {k: np.asarray(v, np.float64) for k, v in seen.shared.items()}

    def ce(self, t: np.ndarray | None = None) -> np.ndarray:
        t = self.y if t is None else t
        return t * np.logaddexp(0, -self.z) + (1 - t) * np.logaddexp(0, self.z)

    def gls(self) -> np.ndarray:
        loss = self.ce((1 - self.r) * self.y + self.r / 2)
        m = (2 * self.y - 1) * self.z
        return loss + np.where((self.r < 0) & (m > 4), self.r / 2 * (4 - m), 0)

    def certainty(self) -> np.ndarray:
        p = np.asarray(self.seen.labels["p"], np.float64)
        p = np.where(np.isnan(p), self.h["silence"], p)
        return np.clip(p, max(self.h["clip"], 1e-6), 1 - max(self.h["clip"], 1e-6))

    def likelihood(self, p: np.ndarray | None = None) -> np.ndarray:
        """-log of sigmoid(z) LR + sigmoid(-z), over the larger of LR and 1."""
        said = logit(self.certainty() if p is None else p)
        ratio = np.exp(self.h["lam"] * (said - self.shared["prior"]))
        return -np.log((self.p * ratio + (1 - self.p)) / np.maximum(ratio, 1))

    def bridge(self, a: np.ndarray) -> np.ndarray:
        """The integral over z from 0 of sigmoid(z) - q, by quadrature, and the value at 0."""
        prior, said = self.shared["prior"], logit(self.certainty())
        at, weight = np.polynomial.legendre.leggauss(200)
        u = (at[:, None, None] + 1) / 2 * self.z
        area = ((sigmoid(u) - sigmoid(a * (u - prior) + said)) * weight[:, None, None]).sum(0) * self.z / 2
        return area + np.log(2)

    def flips(self) -> tuple[np.ndarray, np.ndarray]:
        up, down = np.clip(self.h["scale"] * self.shared["flips"], 0, 0.45)
        return up + self.h["up"], down + self.h["down"]

    def forward(self) -> np.ndarray:
        up, down = self.flips()
        one = (1 - down) * self.p + up * (1 - self.p)
        return -np.log(np.where(self.y == 1, one, 1 - one))

    def elr(self) -> np.ndarray:
        t = np.clip(self.h["beta"] * self.rows["target"] + (1 - self.h["beta"]) * self.p, 1e-4, 1 - 1e-4)
        return self.ce() + self.h["weight"] * np.log(1 - (self.p * t + (1 - self.p) * (1 - t)))

    def coteaching(self) -> np.ndarray:
        """The first network's loss on what the second one finds easy, one column and label at a time."""
        z = 0.5 * self.z + 0.1
        other = np.where(self.y == 1, np.logaddexp(0, -z), np.logaddexp(0, z))
        forget = self.h["forget"] * min(PROGRESS / self.h["ramp"], 1)
        kept = np.zeros(self.y.shape)
        for k in range(self.y.shape[1]):
            for label in (0, 1):
                among = [i for i in range(len(z)) if self.mask[i, k] and self.y[i, k] == label]
                among.sort(key=lambda i: other[i, k])
                kept[among[: int(np.ceil((1 - forget) * len(among) - 1e-9))], k] = 1
        return self.ce() * kept * self.mask.sum(0) / np.maximum(kept.sum(0), 1)

    def three(self) -> np.ndarray:
        logits = np.stack([self.z, 0 * self.z, 0.3 * self.z - 1])
        log_p = logits - np.log(np.exp(logits).sum(0))
        chosen = np.where(self.state == UNCERTAIN, 2, np.where(self.y == 1, 0, 1))
        nll = -np.take_along_axis(log_p, chosen[None], 0)[0]
        return self.h["share"] * nll + (1 - self.h["share"]) * np.where(chosen == 2, 0, self.ce())


def mae(o: Oracle, weight: np.ndarray | float = 1.0) -> np.ndarray:
    return (1 - o.h["share"]) * o.ce() + o.h["share"] * weight * (1 - o.of_label)


def entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(p) + (1 - p) * np.log(1 - p))


# method -> its loss in float64, [n, c]. Where there is none, it is generalized label smoothing of its targets.
ORACLES = {
    "u_multiclass": Oracle.three,
    "u_selftrained": lambda o: np.where(o.state == UNCERTAIN, o.ce(o.rows["label"]), o.ce()),
    "mae": mae,
    "imae": lambda o: mae(o, np.exp(o.h["temperature"] * (o.p * (1 - o.p) - 0.25))),
    "gce": lambda o: (1 - o.of_label ** o.h["q"]) / o.h["q"],
    "sce": lambda o: o.h["ce"] * o.ce() + o.h["reverse"] * 4 * (1 - o.of_label),
    "bootstrap_soft": lambda o: o.h["beta"] * o.ce() + (1 - o.h["beta"]) * entropy(o.p),
    "bootstrap_hard": lambda o: o.h["beta"] * o.ce() + (1 - o.h["beta"]) * -np.log(np.maximum(o.p, 1 - o.p)),
    "forward": Oracle.forward,
    "importance": Oracle.ce,
    "weighted": Oracle.ce,
    "elr": Oracle.elr,
    "coteaching": Oracle.coteaching,
    "confident": Oracle.ce,
    "curriculum": Oracle.ce,
    "report_likelihood": Oracle.likelihood,
    "relearned": lambda o: o.likelihood(o.h["share"] * o.rows["p"] + (1 - o.h["share"]) * o.certainty()),
    "bridge": lambda o: o.bridge(np.float64(o.h["independence"])),
    "fitted": lambda o: o.bridge(o.h["most"] * o.shared["independence"]),
}


def by_flips(o: Oracle) -> np.ndarray:
    up, down = o.flips()
    p = np.clip(np.where(o.y == 1, o.rows["posterior"], 1 - o.rows["posterior"]), 0.01, 1)
    return np.clip((p - np.where(o.y == 1, up, down)) / ((1 - up - down) * p), 0, 5)


# method -> weights of its entries in float64; 1 where there is none.
WEIGHTS = {
    "u_selftrained": lambda o: np.where(o.state == UNCERTAIN, o.h["weight"] * o.shared["told"], 1.0),
    "importance": by_flips,
    "weighted": lambda o: (1 - np.asarray(o.seen.labels["rate"], np.float64)) ** o.h["power"],
    "confident": lambda o: 1 - o.h["share"] * o.rows["suspect"],
    "curriculum": lambda o: (np.float32(PROGRESS) >= o.h["until"] * np.asarray(o.seen.labels["rate"])) * 1.0,
}


@pytest.mark.parametrize("name", METHODS)
def test_loss_and_weights_against_float64(name):
    method = METHODS[name]
    assert (name in ORACLES) == (method.loss is not record.gls or method.exchange is not None)
    assert (name in WEIGHTS) == (method.weigh is not None)
    z = np.random.default_rng(2).normal(0, 3, (N, C)).astype(np.float32)
    seen = seen_of(name, columns())
    oracle = Oracle(z, seen)
    mask = np.asarray(seen.targets.mask)
    assert mask.mean() > 0.3 and {float(v) for v in np.unique(oracle.y[mask])} == {0.0, 1.0}
    got = np.asarray(values(name, jnp.asarray(z), seen))
    np.testing.assert_allclose(got[mask], ORACLES.get(name, Oracle.gls)(oracle)[mask], rtol=2e-5, atol=2e-5)
    expected = mask * WEIGHTS[name](oracle) if name in WEIGHTS else mask * 1.0
    np.testing.assert_allclose(weights(name, seen), expected, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_neutral_setting_is_binary_cross_entropy(name):
    """On plain wording and rates of 0, in value and gradient, whatever the memory holds."""
    known = columns(plain=True)
    hyper = settings(name)[1] | METHODS[name].neutral
    assert set(METHODS[name].neutral) <= set(hyper)
    seen = seen_of(name, known, hyper)
    for scale in (1.0, 8.0):
        z = jnp.float32(np.random.default_rng(3).normal(0, scale, (N, C)))
        w = weights(name, seen)
        np.testing.assert_array_equal(w, np.asarray(seen.targets.mask))
        got, grad = jax.value_and_grad(lambda z, w: (values(name, z, seen) * w).sum())(z, w)
        y, z64 = np.asarray(seen.targets.y, np.float64), np.asarray(z, np.float64)
        expected = (w * (np.logaddexp(0, z64) - y * z64)).sum()
        assert float(got) == pytest.approx(expected, rel=1e-5, abs=1e-4)
        np.testing.assert_allclose(grad, w * (sigmoid(z64) - y), atol=2e-5)


@pytest.mark.parametrize("name", METHODS)
def test_missing_labels_let_nothing_through_and_great_logits_stay_finite(name):
    seen = seen_of(name, columns())
    mask = weights(name, seen)
    assert (mask == 0).any() or METHODS[name].needs
    for logits in (0.3, 80.0, -80.0):
        z = jnp.full((N, C), logits)
        value, grad = jax.value_and_grad(lambda z: losses.masked_mean(values(name, z, seen), mask))(z)
        assert np.isfinite(value) and np.all(np.isfinite(grad))
        np.testing.assert_array_equal(np.asarray(grad)[mask == 0], 0.0)
        np.testing.assert_array_equal(np.isfinite(values(name, z, seen)), True)


@pytest.mark.parametrize("name", METHODS)
def test_record_is_complete(name):
    method = METHODS[name]
    assert method.words and re.search(r"arXiv \d{4}\.\d{4,5}|this project", method.source)
    assert all(isinstance(getattr(policies.PolicyConfig(name), h, 0.0), float | int) for h in method.hyper)
    for parameter in method.hyper.values():
        assert parameter.note and parameter.grid[0] == parameter.default
        assert all(parameter.holds(value) for value in parameter.grid)
    assert (method.update is None) or method.memory is not None
    assert (method.hook is None) or method.memory is not None
    assert method.rates in ("", "expert", "rgn", "belief")


@pytest.mark.parametrize("name", METHODS)
def test_hyperparameters_and_labels_may_be_traced(name):
    known = {k: jnp.asarray(v) for k, v in columns().items()}
    z = jnp.float32(np.random.default_rng(4).normal(0, 2, (N, C)))

    def total(hyper, known, z):
        config = policies.PolicyConfig(name)
        memory = methods.start(config, hyper, known)
        if METHODS[name].hook:
            view = methods.view(config, hyper, known, z)
            memory = METHODS[name].hook.apply(memory, view, view, hyper)
        rows, shared = ({}, {}) if memory is None else (memory.rows, memory.shared)
        targets, applied = methods.targets(config, hyper, known), methods.applied(config, hyper)
        seen = Seen(known, targets, hyper, applied, jnp.float32(PROGRESS), rows, shared)
        return losses.masked_mean(values(name, z, seen), targets.mask), memory

    hyper = settings(name)[1]
    plain, memory = total(hyper, known, z)
    traced, again = jax.jit(total)({k: jnp.float32(v) for k, v in hyper.items()}, known, z)
    np.testing.assert_allclose(traced, plain, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), again, memory)
    for leaf in jax.tree.leaves(memory):
        assert leaf.dtype == jnp.float32 and np.all(np.isfinite(leaf))


def test_settings_name_all_that_is_wrong():
    with pytest.raises(
        ValueError, match=r"hyper q 2\.0: expected a number in \[0.*hyper 'p': unknown to 'gce'; expected one of q"
    ):
        methods.settings({**dataclasses.asdict(policies.PolicyConfig("gce")), "hyper": {"q": 2.0, "p": 1.0}})
    with pytest.raises(ValueError, match="'hard'; it has none of its own"):
        methods.settings({**dataclasses.asdict(policies.PolicyConfig("hard")), "hyper": {"q": 0.5}})
    made = methods.settings({**dataclasses.asdict(policies.PolicyConfig("gce")), "hyper": {"q": 0.5}})
    assert methods.values(made) == {"q": 0.5}
    assert methods.values(policies.PolicyConfig("constant", constant=0.3)) == {"constant": 0.3}


def test_every_method_and_hyperparameter_is_in_the_documents():
    text = (pathlib.Path(__file__).parents[1] / "docs" / "methods.md").read_text()
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    assert list(rows) == list(METHODS)
    for name, method in METHODS.items():
        wanted = [method.words, method.source, *(f"`{h}` {p.default:g} (" for h, p in method.hyper.items())]
        assert not [part for part in wanted if part not in rows[name]]
