"""Prevalence, co-occurrence, and what the simulated readers believe."""

import dataclasses
import functools

import numpy as np
import pytest
from sklearn import metrics

from repgls_jax import phantom
from repgls_jax.phantom import population, reader

CONFIG = phantom.PhantomConfig(seed=1)
COUNT = 5000


@functools.cache
def _population(config: phantom.PhantomConfig, bias: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, contrast and belief, [n, 13] each, of one reader."""
    who = reader.Reader(np.full(13, bias), 1.0, 0.5)
    keys = [population.patient_of(i) for i in range(COUNT)]
    states = [population.state_of(config, *key) for key in keys]
    beliefs = [reader.beliefs(config, s, who, key) for s, key in zip(states, keys, strict=True)]
    return np.stack([s.truth for s in states]), np.stack([s.contrast for s in states]), np.stack(beliefs)


def test_prevalence_is_as_configured_and_long_tailed():
    truth = _population(CONFIG)[0]
    want = population.prevalence(CONFIG)
    # Follow-ups are correlated, so the effective number of studies is about COUNT / 2.
    assert np.all(np.abs(truth.mean(0) - want) < 5 * np.sqrt(want * (1 - want) / (COUNT / 2)))
    assert want.min() == pytest.approx(0.02) and want.max() == pytest.approx(0.30)
    none = ~truth[:, population.PATHOLOGIES].any(1)
    assert 0.25 < none.mean() < 0.45


def test_imbalance_and_scale_move_prevalence():
    flat = population.prevalence(dataclasses.replace(CONFIG, imbalance=0.0))
    assert np.ptp(flat) == 0
    half = population.prevalence(dataclasses.replace(CONFIG, prevalence_scale=0.5))
    assert half == pytest.approx(population.prevalence(CONFIG) / 2)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Edema", "Pleural Effusion"),
        ("Edema", "Cardiomegaly"),
        ("Pneumonia", "Consolidation"),
        ("Pneumonia", "Lung Opacity"),
        ("Pneumothorax", "Support Devices"),
    ],
)
def test_findings_that_go_together_co_occur(one: str, other: str):
    truth = _population(CONFIG)[0]
    a, b = (truth[:, population.NAMES.index(n)] for n in (one, other))
    assert (a & b).mean() > 1.25 * a.mean() * b.mean()


def test_disease_persists_between_visits():
    keys = [population.patient_of(i) for i in range(COUNT)]
    truth = _population(CONFIG)[0]
    later = np.array([i for i, (_, visit) in enumerate(keys) if visit])
    effusion = truth[:, population.NAMES.index("Pleural Effusion")]
    again = effusion[later][effusion[later - 1]].mean()
    assert again > 1.7 * effusion.mean()


def test_belief_of_an_unbiased_reader_is_calibrated():
    truth, _, belief = _population(CONFIG)
    for low, high in ((0.0, 0.05), (0.05, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 0.95), (0.95, 1.0)):
        bin_ = (belief >= low) & (belief < high)
        assert bin_.sum() > 200
        assert truth[bin_].mean() == pytest.approx(belief[bin_].mean(), abs=0.05)


def test_bias_shifts_belief_and_less_noise_reads_better():
    truth, _, belief = _population(CONFIG)
    assert _population(CONFIG, 1.0)[2].mean() > 1.2 * belief.mean()
    noisy = _population(dataclasses.replace(CONFIG, reader_noise=0.5))[2]
    assert (
        metrics.roc_auc_score(truth.ravel(), belief.ravel())
        > metrics.roc_auc_score(truth.ravel(), noisy.ravel()) + 0.03
    )


def _partial_correlation(config: phantom.PhantomConfig) -> np.ndarray:
    """Correlation of belief (logit) with the film's contrast among the ill, per finding."""
    truth, contrast, belief = _population(config)
    logit = np.log(belief / (1 - belief))
    return np.array([np.corrcoef(logit[t, k], contrast[t, k])[0, 1] for k, t in enumerate(truth.T)])


def test_evidence_follows_the_film_or_is_independent_of_it():
    of_image = _partial_correlation(CONFIG)
    independent = dataclasses.replace(CONFIG, evidence="independent")
    apart = _partial_correlation(independent)
    ill = _population(CONFIG)[0].sum(0)
    assert (of_image > 0.6).all()
    assert (np.abs(apart) < 4.5 / np.sqrt(ill)).all()
    # Yet it tells the truth as well as the film's own evidence does.
    truth, _, belief = _population(independent)
    same = metrics.roc_auc_score(truth.ravel(), _population(CONFIG)[2].ravel())
    assert metrics.roc_auc_score(truth.ravel(), belief.ravel()) == pytest.approx(same, abs=0.01)


def test_even_a_perfect_viewer_errs():
    truth, contrast, _ = _population(CONFIG)
    ideal = [metrics.roc_auc_score(truth[:, k], contrast[:, k]) for k in range(13)]
    assert 0.93 < np.mean(ideal) < 0.99
    hard = _population(dataclasses.replace(CONFIG, difficulty=3.0))
    assert np.mean([metrics.roc_auc_score(hard[0][:, k], hard[1][:, k]) for k in range(13)]) < np.mean(ideal) - 0.03


def test_readers_differ_and_hedging_softens():
    biases = np.stack([reader.reader_of(CONFIG, i).bias for i in range(CONFIG.readers)])
    assert biases.mean(1).std() > 0.1
    belief = np.array([0.01, 0.3, 0.5, 0.8, 0.99])
    assert set(reader.expressed(belief, 0.0)) == {0.0, 1.0}
    assert reader.expressed(belief, 1.0) == pytest.approx(belief)
    assert (np.abs(reader.expressed(belief, 2.0) - 0.5) <= np.abs(belief - 0.5)).all()
