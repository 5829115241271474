"""What methods do between steps: against oracles, and on readers whose evidence is known."""

import jax.numpy as jnp
import numpy as np
import pytest

from repgls_jax import methods
from repgls_jax.findings import NEGATIVE, NOT_MENTIONED, POSITIVE, UNCERTAIN
from repgls_jax.methods import METHODS, View, dependence, flips
from repgls_jax.policies import PolicyConfig, Targets


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def logit(p: np.ndarray) -> np.ndarray:
    return np.log(p) - np.log(1 - p)


def view(z: np.ndarray, y: np.ndarray, mask: np.ndarray) -> View:
    """A split with plain labels ``y``."""
    state = np.where(y, POSITIVE, NEGATIVE).astype(np.int8)
    labels = {"state": state, "p": y.astype(np.float32), "observed": mask}
    return View(jnp.float32(z), labels, Targets(jnp.float32(y), jnp.zeros(y.shape), jnp.asarray(mask)))


def noisy(n: int, up: float, down: float, seed: int = 0) -> tuple[View, np.ndarray, np.ndarray]:
    """Labels flipped at known rates, logits of their exact posterior, and which labels were flipped."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-1, 5, (n, 3))
    truth = rng.random(z.shape) < sigmoid(z)
    flipped = rng.random(z.shape) < np.where(truth, down, up)
    posterior = (1 - down) * sigmoid(z) + up * (1 - sigmoid(z))
    return view(logit(posterior), truth ^ flipped, rng.random(z.shape) < 0.7), flipped, truth


@pytest.mark.parametrize(("up", "down"), [(0.0, 0.0), (0.1, 0.3), (0.3, 0.05)])
def test_flips_are_found_from_anchors(up, down):
    seen, _, _ = noisy(4000, up, down)
    found = np.asarray(flips.estimated(seen))
    np.testing.assert_allclose(found, np.stack([[up] * 3, [down] * 3]), atol=0.03)
    p, y, mask = sigmoid(np.asarray(seen.logits)), np.asarray(seen.targets.y), np.asarray(seen.targets.mask)
    for k in range(3):
        of = {label: p[mask[:, k] & (y[:, k] == label), k] for label in (0, 1)}
        assert found[0, k] == pytest.approx(np.quantile(of[0], 0.03), abs=1e-5)
        assert found[1, k] == pytest.approx(1 - np.quantile(of[1], 0.97), abs=1e-5)


def test_a_finding_without_a_label_has_no_flips():
    seen = view(np.full((5, 2), 0.5), np.zeros((5, 2), bool), np.array([[True, False]] * 5))
    np.testing.assert_allclose(flips.estimated(seen), [[sigmoid(0.5) if sigmoid(0.5) < 0.45 else 0.45, 0], [0, 0]])


def test_confident_learning_suspects_flipped_labels():
    seen, flipped, _ = noisy(4000, 0.1, 0.2)
    hook, start = METHODS["confident"].hook, methods.start(PolicyConfig("confident"), {"share": 1.0}, seen.labels)
    suspect = np.asarray(hook.apply(start, seen, seen, {"share": 1.0}).rows["suspect"]) > 0
    p, y, mask = sigmoid(np.asarray(seen.logits)), np.asarray(seen.targets.y), np.asarray(seen.targets.mask)
    expected = np.zeros_like(suspect)
    for k in range(3):
        bar = [np.mean((1 - p if label == 0 else p)[mask[:, k] & (y[:, k] == label), k]) for label in (0, 1)]
        for i in np.nonzero(mask[:, k])[0]:
            score = {label: q for label, q in enumerate((1 - p[i, k], p[i, k])) if q >= bar[label]}
            expected[i, k] = bool(score) and max(score, key=score.get) != y[i, k]
    np.testing.assert_array_equal(suspect, expected)
    assert not suspect[~mask].any()
    assert flipped[suspect].mean() > 4 * flipped[mask].mean() and suspect[mask & flipped].mean() > 0.4


def test_self_training_labels_what_is_uncertain_once_it_is_told():
    method, config = METHODS["u_selftrained"], PolicyConfig("u_selftrained")
    state = np.array([[UNCERTAIN, POSITIVE, NOT_MENTIONED]], np.int8)
    labels = {"state": state, "p": np.array([[0.5, 1, np.nan]], np.float32), "observed": np.ones((1, 3), bool)}
    hyper, z = methods.values(config), jnp.asarray([[2.0, -1.0, 0.0]])
    memory = methods.start(config, hyper, labels)
    for told in (False, True):
        seen = methods.Seen(
            {k: jnp.asarray(v) for k, v in labels.items()}, methods.targets(config, hyper, labels), hyper, config,
            jnp.float32(0), memory.rows, memory.shared,
        )  # fmt: skip
        np.testing.assert_array_equal(method.weigh(seen), [[told, 1, 1]])
        made = methods.view(config, hyper, labels, z)
        memory = method.hook.apply(memory, made, made, hyper)
    np.testing.assert_allclose(memory.rows["label"], sigmoid(np.asarray(z)), rtol=1e-6)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.hook])
def test_moments_are_within_the_run(name):
    hook = METHODS[name].hook
    assert all(0 < moment < 1 for moment in hook.moments)
    assert hook.steps(1) == () and set(hook.steps(2)) <= {1}
    assert all(0 < step < 1000 for step in hook.steps(1000)) and len(hook.steps(1000)) == len(hook.moments)


def readings(kind: str, n: int, seed: int) -> tuple[View, View]:
    """Two splits read by readers whose evidence is independent of the film given the truth, derived from it, or both.

    The logits are those of the film, off in scale and place as a network's may be. One entry in three is not mentioned.
    """
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(2):
        z = rng.normal(-1.5, 2, (n, 6))
        truth = rng.random(z.shape) < sigmoid(z)
        sure = 1.5
        own = sure * (truth * sure + rng.normal(size=z.shape)) - sure**2 / 2
        p = sigmoid({
            "independent": logit(np.mean(sigmoid(z))) + own,
            "derived": z + rng.normal(0, 1, z.shape),
            "both": z + own,
        }[kind])  # fmt: skip
        words = np.array([0.02, 0.15, 0.3, 0.5, 0.7, 0.85, 0.98])
        p = words[np.abs(p[..., None] - words).argmin(-1)]
        state = np.select([p > 0.95, p < 0.05], [POSITIVE, NEGATIVE], UNCERTAIN)
        silent = rng.random(z.shape) < 1 / 3
        labels = {
            "state": np.where(silent, NOT_MENTIONED, state).astype(np.int8),
            "p": np.where(silent, np.nan, p).astype(np.float32),
            "observed": np.ones(z.shape, bool),
        }
        config = PolicyConfig("fitted")
        made.append(methods.view(config, methods.values(config), labels, jnp.float32(0.7 * z + 0.3)))
    return made[0], made[1]


@pytest.mark.parametrize("n", [150, 1500])
def test_dependence_of_readers_on_the_film_is_told_from_noisy_labels(n):
    found = {}
    for kind in ("independent", "derived", "both"):
        train, valid = readings(kind, n, 5)
        hyper = methods.values(PolicyConfig("fitted"))
        start = methods.start(PolicyConfig("fitted"), hyper, train.labels)
        memory = METHODS["fitted"].hook.apply(start, train, valid, hyper)
        found[kind] = float(memory.shared["independence"][0])
        assert np.ptp(memory.shared["independence"]) == 0
    assert found["independent"] > 0.9 and found["derived"] < 0.1 and found["both"] < 0.1, found


def test_the_gain_is_that_of_likelihoods_in_float64():
    train, valid = readings("derived", 60, 1)
    frequency = np.asarray(dependence.frequencies(train), np.float64)
    np.testing.assert_allclose(frequency.sum(1), 1, atol=1e-5)
    levels, z = dependence.LEVELS.astype(np.float64), np.asarray(valid.logits, np.float64)
    p, used = np.asarray(valid.labels["p"], np.float64), ~np.isnan(valid.labels["p"])
    total = {}
    for tilt in dependence.TILTS:
        total[tilt] = 0.0
        for k in range(z.shape[1]):
            mean = (frequency[k] * levels).sum()
            best = -np.inf
            for scale in dependence.SCALES:
                for offset in dependence.OFFSETS:
                    value = 0.0
                    for i in np.nonzero(used[:, k])[0]:
                        own = scale * (z[i, k] - logit(mean)) + logit(mean) + offset
                        tilted = np.exp(tilt * (logit(levels) - logit(mean)) * (own - logit(mean)))
                        one, zero = frequency[k] * levels * tilted, frequency[k] * (1 - levels) * tilted
                        at = np.abs(levels - p[i, k]).argmin()
                        chance = sigmoid(own) * one[at] / one.sum() + (1 - sigmoid(own)) * zero[at] / zero.sum()
                        value += np.log(chance)
                    best = max(best, value)
            total[tilt] += best
    count = used.sum()
    expected = max((max(total.values()) - total[0.0] - 0.5 * np.log(count)) / count, 0)
    assert expected > 0.01
    assert float(dependence.gain(valid, dependence.frequencies(train))) == pytest.approx(expected, abs=1e-4)


def test_what_wordings_mean_is_told_by_the_films():
    """Readers who say .7 where they mean .3 and the other way round, and one who says nothing of what is present."""
    rng = np.random.default_rng(0)
    z = rng.normal(-1, 3, (6000, 4))
    truth = rng.random(z.shape) < sigmoid(z)
    group = rng.integers(0, 2, len(z))
    meant = np.array([0.3, 0.7])
    words = np.where(group[:, None] == 1, meant[::-1], meant)
    level = rng.random(z.shape) < np.where(truth, 0.7, 0.3) * 0.9  # nearly as often as would be calibrated at even odds
    said = np.where(level, words[:, 1:], words[:, :1])
    state = np.full(z.shape, UNCERTAIN)
    state[:, 3], said[:, 3] = NOT_MENTIONED, np.nan
    labels = {
        "state": state.astype(np.int8),
        "p": said.astype(np.float32),
        "observed": np.ones(z.shape, bool),
        "group": group.astype(np.int32),
    }
    config, hyper = PolicyConfig("relearned"), methods.values(PolicyConfig("relearned"))
    seen = methods.view(config, hyper, labels, jnp.float32(z))
    start = methods.start(config, hyper, labels)
    memory = METHODS["relearned"].hook.apply(start, seen, seen, hyper)
    p = np.asarray(memory.rows["p"])
    for g in (0, 1):
        for chosen in (False, True):
            rows = (group == g)[:, None] & (level == chosen)
            rows[:, 3] = False
            assert p[rows].mean() == pytest.approx(truth[rows].mean(), abs=0.04)
            assert np.ptp(p[rows]) < 1e-6
    assert p[:, 3].mean() == pytest.approx(truth[:, 3].mean(), abs=0.04)
    assert np.asarray(start.rows["p"])[:, 3].max() < 0.03
    plain = METHODS["relearned"].hook.apply(start, seen, seen, hyper | {"shrink": 1e9})
    np.testing.assert_allclose(plain.rows["p"][:, :3], said[:, :3], atol=1e-3)
