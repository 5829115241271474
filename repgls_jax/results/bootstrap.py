"""Patient-level bootstrap of every metric.

A replicate draws as many patients as there are, with replacement; all images of a patient move together,
since they are not independent. A draw is carried as a count per patient, which weights the images: the images
are sorted once per finding for all replicates. Replicate i depends on (seed, i) alone, not on how many run at
a time.

A replicate in which a finding has one class has no AUROC for it: it is left out of that finding's interval,
and of the mean's, so that the mean is always over the same findings. How many remain is reported.
"""

from collections.abc import Iterator
from concurrent import futures
from typing import NamedTuple

import numpy as np

from repgls_jax.results import metrics, weighted

LEVEL = 0.95
# Fewer replicates than this leave less than one beyond each end of the interval.
FEWEST = 40
# Patients x replicates held at a time: 16 MB, about what stays in a cache beside the sums.
_AT_A_TIME = 4_000_000
_NAMES = tuple(metrics.METRICS)


class Interval(NamedTuple):
    """Percentile interval, float64 arrays of one shape. NaN where fewer than FEWEST replicates remain.

    Attributes:
      low, high: ends of the central 95 %.
      replicates: int64, replicates that remain.
    """

    low: np.ndarray
    high: np.ndarray
    replicates: np.ndarray


def draw(seed: int, replicate: int, patients: int) -> np.ndarray:
    """How often each patient is drawn in one replicate: int64 [patients], with the sum ``patients``."""
    random = np.random.Generator(np.random.Philox(key=[seed, replicate]))
    return np.bincount(random.integers(0, patients, patients), minlength=patients)


def draws(seed: int, patients: int, count: int) -> Iterator[np.ndarray]:
    """Replicates 0 to ``count`` - 1, some at a time: float32 [patients, r]."""
    size = max(1, min(64, _AT_A_TIME // max(patients, 1)))
    for start in range(0, count, size):
        block = np.empty((min(size, count - start), patients), np.float32)
        for i in range(len(block)):
            block[i] = draw(seed, start + i, patients)
        yield np.ascontiguousarray(block.T)


def replicates(
    seed: int,
    scores: np.ndarray,
    labels: np.ndarray,
    mask: np.ndarray,
    patient: np.ndarray,
    *,
    patients: int,
    count: int,
    names: tuple[str, ...] = _NAMES,
) -> dict[str, np.ndarray]:
    """Metrics of each replicate and finding.

    Args:
      seed: of the draws, not negative.
      scores, labels, mask: [n, c], as in metrics.measure.
      patient: int [n], the patient of each image, in [0, patients).
      patients: number of patients.
      count: number of replicates.
      names: keys of metrics.METRICS.

    Returns:
      name -> float64 [count, c].
    """
    findings = _sorted(scores, labels, mask, patient, patients)
    made: dict[str, list[np.ndarray]] = {name: [np.empty((0, len(findings)))] for name in names}
    # Sparse products and array arithmetic let go of the interpreter: threads share the findings out.
    with futures.ThreadPoolExecutor() as pool:
        for block in draws(seed, patients, count):
            found = list(pool.map(lambda one, block=block: one.measure(block, names), findings))
            for name in names:
                made[name].append(np.stack([values[name] for values in found], axis=1))
    return {name: np.concatenate(parts) for name, parts in made.items()}


def exact(
    scores: np.ndarray,
    labels: np.ndarray,
    mask: np.ndarray,
    names: tuple[str, ...] = _NAMES,
    weights: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """The metrics themselves, every image once or with whole ``weights`` [n]: name -> float64 [c]; NaN if not defined.

    What metrics.measure computes in float32 inside a program, for any number of images to scikit-learn's digits.
    """
    n = len(scores)
    once = np.ones((n, 1), np.float32) if weights is None else np.asarray(weights, np.float32)[:, None]
    found = [one.measure(once, names) for one in _sorted(scores, labels, mask, np.arange(n), n)]
    return {name: np.array([values[name][0] for values in found]) for name in names}


def _sorted(
    scores: np.ndarray, labels: np.ndarray, mask: np.ndarray, patient: np.ndarray, patients: int
) -> list[weighted.Finding]:
    columns = range(scores.shape[1])
    return [weighted.Finding(scores[:, j], labels[:, j], mask[:, j], patient, patients) for j in columns]


def mean(values: np.ndarray, defined: np.ndarray) -> np.ndarray:
    """Mean of each replicate [count, c] over the ``defined`` findings, bool [c]; NaN where one is missing."""
    return values[:, defined].mean(axis=1) if defined.any() else np.full(len(values), np.nan)


def interval(values: np.ndarray) -> Interval:
    """Percentile interval over the first axis, of the replicates that are finite."""
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    kept = finite.sum(axis=0)
    enough = kept >= FEWEST
    tail = (1 - LEVEL) / 2
    filled = np.where(finite | ~enough, values, np.nan)
    filled = np.where(enough, filled, 0.0)  # nanquantile warns of columns without a number
    low, high = np.nanquantile(filled, [tail, 1 - tail], axis=0)
    return Interval(np.where(enough, low, np.nan), np.where(enough, high, np.nan), kept)
