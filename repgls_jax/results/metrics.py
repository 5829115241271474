"""Masked, weighted metrics of multi-label predictions, in JAX.

Every metric is a function of one finding's :class:`Tally`: its images in falling order of score, with r
columns of weights. One column of ones is the plain metric; r columns of patient counts are r bootstrap
replicates, and share the one sort. Equal scores are one threshold, so that no result depends on the order of
the images.

  AUROC  Mann-Whitney: P(score of a positive > score of a negative) + P(equal) / 2
  AUPRC  average precision, sum over thresholds of (R_k - R_{k-1}) P_k, as in scikit-learn
  Brier  mean of (p - y)^2
  ECE    sum over bins of (share of the bin) |mean p - mean y| (Guo et al., 2017, arXiv 1706.04599), in 15
         bins of equal mass: most findings are rare, so that nearly all predictions would fall into one bin of
         equal width and its error would hide the others' (Nixon et al., 2019, arXiv 1904.01685). Equal scores
         share a bin: an image is in the bin floor(15 * share of the weight ranked before its score).

What a metric does not define is NaN: AUROC and AUPRC of a finding with one class, Brier and ECE of one
without a labelled image, and everything where a counted score is not finite.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

BINS = 15
_BLOCK = 512


class Ranked(NamedTuple):
    """One finding's n images in falling order of score.

    Attributes:
      order: int32 [n], the image at each rank.
      first, last: int32 [n], the first and last rank with the same score.
      score: float32 [n] by rank; 0 where the mask is off, NaN everywhere if a counted score is not finite.
      label: float32 [n] by rank, 0 or 1.
      mask: float32 [n] by rank, 1 where the image counts.
    """

    order: jax.Array
    first: jax.Array
    last: jax.Array
    score: jax.Array
    label: jax.Array
    mask: jax.Array


class Tally(NamedTuple):
    """One finding under r sets of weights; sums run from the highest score down, over groups of equal scores.

    Attributes:
      score, label: float32 [n, 1].
      weight: float32 [n, r], zero where the mask is off.
      total, positive: float32 [r], weight of all and of the positive images.
      before, upto: float32 [n, r], weight ranked above each image's score, and above or at it.
      positive_before, positive_upto: float32 [n, r], the same for the positive images.
    """

    score: jax.Array
    label: jax.Array
    weight: jax.Array
    total: jax.Array
    positive: jax.Array
    before: jax.Array
    upto: jax.Array
    positive_before: jax.Array
    positive_upto: jax.Array


def rank(scores: jax.Array, labels: jax.Array, mask: jax.Array) -> Ranked:
    """Sorts one finding.

    Args:
      scores: float32 [n], probabilities (AUROC and AUPRC also take logits).
      labels: [n] of 0 and 1; anything where the mask is off.
      mask: bool [n], True where the label counts.
    """
    n = scores.shape[0]
    valid = jnp.all(jnp.where(mask, jnp.isfinite(scores), True))
    scores = jnp.where(mask, scores, 0).astype(jnp.float32)
    order = jnp.argsort(scores, descending=True)
    ordered = scores[order]
    differs = ordered[1:] != ordered[:-1]
    edge = jnp.ones((min(n, 1),), bool)
    index = jnp.arange(n)
    first = lax.cummax(jnp.where(jnp.concatenate([edge, differs]), index, 0))
    last = lax.cummin(jnp.where(jnp.concatenate([differs, edge]), index, n), reverse=True)
    label = jnp.where(mask, labels, 0).astype(jnp.float32)[order]
    return Ranked(order, first, last, jnp.where(valid, ordered, jnp.nan), label, mask[order].astype(jnp.float32))


def _running(x: jax.Array) -> jax.Array:
    """Sums over the first k rows, for k in 0..n: [n, r] -> [n + 1, r]."""
    return jnp.concatenate([jnp.zeros_like(x[:1], shape=(1, x.shape[1])), jnp.cumsum(x, axis=0)])


def _sum(x: jax.Array) -> jax.Array:
    """Sums of the columns of [n, r]: of blocks first, for a compiler may add float32s one after the other, and a
    hundred thousand of them lose the fifth digit that way.
    """
    n, r = x.shape
    parts = jnp.pad(x, ((0, -n % _BLOCK), (0, 0))).reshape(-(-n // _BLOCK), _BLOCK, r)
    return jnp.sum(lax.optimization_barrier(jnp.sum(parts, axis=1)), axis=0)  # else both would be one sum again


def tally(ranked: Ranked, weights: jax.Array) -> Tally:
    """Sums a ranked finding under ``weights``, float32 [n, r], not negative, in the order of the images."""
    score, label = ranked.score[:, None], ranked.label[:, None]
    weight = weights[ranked.order] * ranked.mask[:, None]
    everything, positive = _running(weight), _running(weight * label)
    return Tally(
        score=score,
        label=label,
        weight=weight,
        total=everything[-1],
        positive=positive[-1],
        before=everything[ranked.first],
        upto=everything[ranked.last + 1],
        positive_before=positive[ranked.first],
        positive_upto=positive[ranked.last + 1],
    )


def _where_defined(defined: jax.Array, value: jax.Array, t: Tally) -> jax.Array:
    return jnp.where(defined & jnp.all(jnp.isfinite(t.score)), value, jnp.nan)


def auroc(t: Tally) -> jax.Array:
    """[r] areas under the ROC curve; NaN with fewer than two classes."""
    negative = t.total - t.positive
    above = 0.5 * (t.positive_before + t.positive_upto)  # a tie counts half
    area = _sum(t.weight * (1 - t.label) * above) / (t.positive * negative)
    return _where_defined((t.positive > 0) & (negative > 0), area, t)


def auprc(t: Tally) -> jax.Array:
    """[r] average precisions; NaN with fewer than two classes."""
    precision = t.positive_upto / jnp.where(t.upto > 0, t.upto, 1)
    area = _sum(t.weight * t.label * precision) / t.positive
    return _where_defined((t.positive > 0) & (t.positive < t.total), area, t)


def brier(t: Tally) -> jax.Array:
    """[r] Brier scores; NaN without a labelled image."""
    return _where_defined(t.total > 0, _sum(t.weight * (t.score - t.label) ** 2) / t.total, t)


def ece(t: Tally) -> jax.Array:
    """[r] expected calibration errors in :data:`BINS` bins of equal mass; NaN without a labelled image."""
    gaps = _running(t.weight * (t.score - t.label))
    edges = jnp.arange(BINS + 1, dtype=jnp.float32)[:, None] * t.total[None]
    # Bins are runs of ranks. Scaling the weights, not dividing them, keeps the edges exact for whole weights.
    search = jax.vmap(jnp.searchsorted, in_axes=1, out_axes=1)
    starts = search(BINS * t.before, edges)
    sums = jnp.diff(jnp.take_along_axis(gaps, starts.at[-1].set(t.before.shape[0]), axis=0), axis=0)
    return _where_defined(t.total > 0, jnp.sum(jnp.abs(sums), axis=0) / t.total, t)


METRICS: dict[str, Callable[[Tally], jax.Array]] = {
    "auroc": auroc,
    "auprc": auprc,
    "brier": brier,
    "ece": ece,
}


@functools.partial(jax.jit, static_argnames="names")
def measure(
    scores: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    weights: jax.Array | None = None,
    names: tuple[str, ...] = tuple(METRICS),
) -> dict[str, jax.Array]:
    """Metrics of each finding.

    Args:
      scores: float32 [n, c], probabilities; logits do for AUROC and AUPRC, and keep apart what a float32
        sigmoid rounds to the same 1.
      labels: [n, c] of 0 and 1; anything where the mask is off.
      mask: bool [n, c], True where the label counts.
      weights: float32 [n], not negative; None counts every image once.
      names: keys of :data:`METRICS`.

    Returns:
      name -> float32 [c]; NaN where a metric is not defined.
    """
    ones = jnp.ones((scores.shape[0],), jnp.float32) if weights is None else weights.astype(jnp.float32)

    def finding(scores: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        t = tally(rank(scores, labels, mask), ones[:, None])
        return {name: METRICS[name](t)[0] for name in names}

    return jax.vmap(finding, in_axes=1)(scores, labels, mask)


def macro(values: jax.typing.ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Mean of the finite values of [..., c] along c, and how many there are; NaN if there are none."""
    values = jnp.asarray(values)
    finite = jnp.isfinite(values)
    count = jnp.sum(finite, axis=-1)
    return jnp.sum(jnp.where(finite, values, 0), axis=-1) / count.astype(values.dtype), count


@jax.jit
def mean_auroc(scores: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    """Macro AUROC over findings with both classes, float32 []; NaN if none has. Arguments as in measure."""
    return macro(measure(scores, labels, mask, names=("auroc",))["auroc"])[0]
