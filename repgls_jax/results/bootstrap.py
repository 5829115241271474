"""Patient-level bootstrap of every metric.

A replicate draws as many patients as there are, with replacement; all images of a patient move together,
since they are not independent. A draw is carried as a count per patient, which weights the images: the images
are sorted once per finding for all replicates. Replicate i depends on (key, i) alone, not on how many run at
a time.

A replicate in which a finding has one class has no AUROC for it: it is left out of that finding's interval,
and of the mean's, so that the mean is always over the same findings. How many remain is reported.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from repgls_jax.results import metrics

LEVEL = 0.95
# Fewer replicates than this leave less than one beyond each end of the interval.
FEWEST = 40
# Images x replicates held at a time: about 8 MB an array, and some ten of them.
_AT_A_TIME = 2_000_000


class Interval(NamedTuple):
    """Percentile interval, float64 arrays of one shape. NaN where fewer than FEWEST replicates remain.

    Attributes:
      low, high: ends of the central 95 %.
      replicates: int64, replicates that remain.
    """

    low: np.ndarray
    high: np.ndarray
    replicates: np.ndarray


def draw(key: jax.Array, patients: int) -> jax.Array:
    """How often each patient is drawn in one replicate: float32 [patients], with the sum ``patients``."""
    chosen = jax.random.randint(key, (patients,), 0, patients)
    return jnp.zeros((patients,), jnp.float32).at[chosen].add(1.0)


@functools.partial(jax.jit, static_argnames=("patients", "count", "names"))
def replicates(
    key: jax.Array,
    scores: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    patient: jax.Array,
    *,
    patients: int,
    count: int,
    names: tuple[str, ...] = tuple(metrics.METRICS),
) -> dict[str, jax.Array]:
    """Metrics of each replicate and finding.

    Args:
      key: random key.
      scores, labels, mask: [n, c], as in metrics.measure.
      patient: int32 [n], the patient of each image, in [0, patients).
      patients: number of patients.
      count: number of replicates.
      names: keys of metrics.METRICS.

    Returns:
      name -> float32 [count, c].
    """
    chunk = max(1, min(64, count, _AT_A_TIME // max(scores.shape[0], 1)))
    ranked = jax.vmap(metrics.rank, in_axes=1)(scores, labels, mask)

    def block(index: jax.Array) -> dict[str, jax.Array]:
        drawn = jax.vmap(lambda i: draw(jax.random.fold_in(key, i), patients), out_axes=1)(index)
        weights = drawn[patient]

        def finding(one: metrics.Ranked) -> dict[str, jax.Array]:
            t = metrics.tally(one, weights)
            return {name: metrics.METRICS[name](t) for name in names}

        return lax.map(finding, ranked)

    index = jnp.arange(-(-count // chunk) * chunk).reshape(-1, chunk)
    blocks = lax.map(block, index)  # name -> [blocks, c, chunk]
    return {k: v.transpose(0, 2, 1).reshape(-1, scores.shape[1])[:count] for k, v in blocks.items()}


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
