"""The simulated reader: from what a film shows to a belief.

A reader sees of finding k not its contrast c but v = c + noise. The belief is the posterior

  logit P(present | v) = logit(prevalence_k) + log p(v | present) / p(v | absent) + bias(reader, k)

with both densities known to the reader (Bayes' rule; the two mixtures are those of :func:`population.contrasts`). A
reader without bias is therefore calibrated. Findings are judged one by one: their co-occurrence is not used.
"""

import dataclasses
import functools
import statistics

import numpy as np

from repgls_jax.phantom import config as config_lib
from repgls_jax.phantom import population

_QUANTILES = 400
_LOGIT_LIMIT = 8.0


@dataclasses.dataclass(frozen=True)
class Reader:
    """One reader: ``bias`` float [13] on the logit, ``hedging`` >= 0 and ``brevity`` in [0, 1] of the writing."""

    bias: np.ndarray
    hedging: float
    brevity: float


@functools.lru_cache(maxsize=1024)
def reader_of(config: config_lib.PhantomConfig, number: int) -> Reader:
    """Reader ``number`` of ``config``."""
    random = population.stream(config.seed, config_lib.READER, number)
    overall = random.standard_normal()
    own = random.standard_normal(len(population.NAMES))
    style = random.standard_normal()
    return Reader(
        config.reader_bias * (overall + 0.5 * own), config.hedging * float(np.exp(0.25 * style)), random.random()
    )


@functools.lru_cache(maxsize=16)
def _evidence_table(config: config_lib.PhantomConfig) -> tuple[np.ndarray, np.ndarray]:
    """Views [m] and their log likelihood ratios [m]."""
    normal = statistics.NormalDist()
    levels = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    size = np.array([normal.inv_cdf(u) for u in levels])
    always, never = np.full(_QUANTILES, np.inf), np.full(_QUANTILES, -np.inf)
    present = population.contrasts(config, np.ones(_QUANTILES, bool), size, never)
    mimic = population.contrasts(config, np.zeros(_QUANTILES, bool), size, always)
    sigma = config.reader_noise
    views = np.linspace(-5 * sigma, config_lib.CAP + 5 * sigma, 600)

    def density(contrast: np.ndarray) -> np.ndarray:
        return np.exp(-0.5 * ((views[:, None] - contrast) / sigma) ** 2).mean(axis=1) + 1e-300

    share = config_lib.MIMIC_SHARE
    absent = share * density(mimic) + (1 - share) * density(np.zeros(1))
    ratio = np.log(density(present)) - np.log(absent)
    return views, np.clip(ratio, -30.0, 30.0)


def beliefs(
    config: config_lib.PhantomConfig, state: population.State, reader: Reader, key: tuple[int, int]
) -> np.ndarray:
    """P(present) of the thirteen findings as ``reader`` holds it.

    Args:
      config: gives the noise and the source of evidence.
      state: of the study.
      reader: who reads.
      key: (patient, visit), which names the noise.

    Returns:
      float64 [13] in (0, 1).
    """
    random = population.stream(config.seed, config_lib.VIEWING, *key)
    noise, size, mimic = random.standard_normal((3, len(population.NAMES)))
    contrast = state.contrast
    if config.evidence == "independent":
        contrast = population.contrasts(config, state.truth, size, mimic)
    views, ratios = _evidence_table(config)
    prior = population.prevalence(config)
    logit = np.log(prior / (1 - prior)) + np.interp(contrast + config.reader_noise * noise, views, ratios) + reader.bias
    return 1.0 / (1.0 + np.exp(-np.clip(logit, -_LOGIT_LIMIT, _LOGIT_LIMIT)))


def expressed(belief: np.ndarray, hedging: float) -> np.ndarray:
    """The certainty that is put in words, sigmoid(logit(belief) / hedging); a hard 0 or 1 where ``hedging`` is 0."""
    if hedging < 1e-3:
        return (belief >= 0.5).astype(np.float64)
    logit = np.log(belief / (1.0 - belief)) / hedging
    return 1.0 / (1.0 + np.exp(-np.clip(logit, -30.0, 30.0)))
