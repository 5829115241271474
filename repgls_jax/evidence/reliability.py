"""How far certainties are from what they claim: Brier score and expected calibration error, with intervals.

  Brier = mean (p - y)^2                                  (Brier 1950)
  ECE   = sum_b n_b / n |mean p - mean y| over bins b      (Guo et al. 2017, arXiv 1706.04599, ten bins of equal width)

Intervals are percentiles of a bootstrap over studies, whose rows move together: each study is counted Poisson(1) times.
All sets of certainties are scored on the same draws, so a difference has an interval of its own. Draws are noisier than
the sample, so an ECE's interval lies somewhat high.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import stats

BINS = 10
_CHUNK = 50  # replicates held at a time


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value with its central 95 % interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Reliability:
    """One set of certainties against labels.

    Attributes:
      brier, ece: scores.
      n, mean, share: [k] of each bin that is not empty: labels, mean p, share present.
      low, high: [k] 95 % Jeffreys interval of the share, as if labels were independent.
    """

    brier: Interval
    ece: Interval
    n: np.ndarray
    mean: np.ndarray
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray


def jeffreys(present: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 95 % Jeffreys interval of shares ``present / n``: quantiles of Beta(k + 1/2, n - k + 1/2).

    The low end is 0 where nothing is present, the high end 1 where everything is (Brown, Cai and DasGupta 2001). With
    n = 0 it is [0, 1].
    """
    present, n = np.asarray(present, np.float64), np.asarray(n, np.float64)
    low, high = (stats.beta.ppf(q, present + 0.5, n - present + 0.5) for q in (0.025, 0.975))
    return np.where(present > 0, low, 0.0), np.where(present < n, high, 1.0)


def score(
    certainties: Sequence[np.ndarray], present: np.ndarray, study: np.ndarray, replicates: int = 1000, seed: int = 0
) -> tuple[list[Reliability], Interval, Interval]:
    """Scores sets of certainties of the same mentions.

    Args:
      certainties: arrays [m] in [0, 1], m >= 1.
      present: [m] labels in {0, 1}.
      study: [m] int, the study of each mention.
      replicates: draws.
      seed: of the draws.

    Returns:
      A reliability for each set; and the last set's Brier score and ECE less the first's.
    """
    present = np.asarray(present, np.float64)
    _, study = np.unique(study, return_inverse=True)
    studies = int(study.max()) + 1
    sums = np.stack([_sums(np.asarray(p, np.float64), present, study, studies) for p in certainties])
    brier, ece = _scores(sums.sum(axis=1))  # [sets]
    rng = np.random.default_rng(seed)
    drawn = []
    for start in range(0, replicates, _CHUNK):
        weights = rng.poisson(1.0, (min(_CHUNK, replicates - start), studies)).astype(np.float64)
        # A draw of no study at all, which only a handful of studies can give, is taken again as the sample.
        weights[weights.sum(axis=1) == 0] = 1
        drawn.append(np.stack(_scores(np.einsum("rs,psk->prk", weights, sums, optimize=True))))
    replicate = np.concatenate(drawn, axis=2)  # [2, sets, replicates]
    made = [
        _reliability(sums[i].sum(axis=0), _interval(brier[i], replicate[0, i]), _interval(ece[i], replicate[1, i]))
        for i in range(len(certainties))
    ]
    gaps = [_interval(float(v[-1] - v[0]), r[-1] - r[0]) for v, r in zip((brier, ece), replicate, strict=True)]
    return made, gaps[0], gaps[1]


def _sums(p: np.ndarray, y: np.ndarray, study: np.ndarray, studies: int) -> np.ndarray:
    """[studies, 3 BINS + 1]: per bin the count, the sum of p and of y; last the squared error."""
    at = np.minimum((p * BINS + 1e-6).astype(np.int64), BINS - 1)  # float32's .3 belongs to the bin that .3 opens
    made = np.zeros((studies, 3 * BINS + 1))
    for block, value in enumerate((np.ones_like(p), p, y)):
        np.add.at(made, (study, block * BINS + at), value)
    np.add.at(made[:, -1], study, (p - y) ** 2)
    return made


def _scores(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Brier score and ECE [...] of sums [..., 3 BINS + 1]."""
    n, p, y = (sums[..., i * BINS : (i + 1) * BINS] for i in range(3))
    total = n.sum(axis=-1)
    return sums[..., -1] / total, np.abs(p - y).sum(axis=-1) / total


def _interval(value: float, drawn: np.ndarray) -> Interval:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))


def _reliability(sums: np.ndarray, brier: Interval, ece: Interval) -> Reliability:
    n, p, y = (sums[i * BINS : (i + 1) * BINS] for i in range(3))
    some = n > 0
    low, high = jeffreys(y[some], n[some])
    return Reliability(brier, ece, n[some].astype(np.int64), p[some] / n[some], y[some] / n[some], low, high)
