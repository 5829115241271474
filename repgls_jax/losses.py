"""Generalized label smoothing (GLS), binary and K-class, with a guard for negative rates.

Source of the equations: Wei et al., "To Smooth or Not? When Label Smoothing Meets Noisy Labels", ICML 2022
(arXiv 2106.04149). The margin cap and the warm-up of negative rates are this project's decisions.

Every loss is unreduced: masking and the mean live once, in the train step.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

NO_CAP = float("inf")


def gls_targets(y: Array, r: Array) -> Array:
    """Soft target of the binary form, ``t = (1 - r) y + r / 2``.

    Args:
      y: [...] labels in {0, 1}, any dtype.
      r: [...] float32 rates in (-1, 1).

    Returns:
      [...] float32; inside (0, 1) for r > 0, outside [0, 1] for r < 0.
    """
    return (1.0 - r) * y.astype(jnp.float32) + 0.5 * r


def gls_binary(z: Array, y: Array, r: Array, margin_cap: float = NO_CAP) -> Array:
    """Binary GLS on logits, ``softplus(-m) + (r / 2) m`` with the margin ``m = (2y - 1) z``.

    Equals binary cross entropy on the target :func:`gls_targets`. For r > 0 the minimum is at
    ``m = ln((2 - r) / r)``. For r < 0 the loss falls without bound as m grows; ``margin_cap`` lets the linear term
    see ``min(m, margin_cap)`` there, so past the cap only cross entropy's own, vanishing pull remains. Below the cap,
    and for every r >= 0, the loss is exact.

    Args:
      z: [...] float32 logits.
      y: [...] labels in {0, 1}, any dtype.
      r: [...] float32 rates in (-1, 1).
      margin_cap: logit units, positive; infinity switches the guard off.

    Returns:
      [...] float32 loss, unreduced, in nats.
    """
    m = (2.0 * y.astype(jnp.float32) - 1.0) * z
    pulled = jnp.where(r < 0, jnp.minimum(m, margin_cap), m)
    return jax.nn.softplus(-m) + 0.5 * r * pulled


def gls_multiclass(logits: Array, labels: Array, r: Array) -> Array:
    """K-class GLS, ``(1 - r) NLL + r mean_k(-log p_k)``.

    Args:
      logits: [..., k] float32.
      labels: [...] integer class ids in [0, k).
      r: [...] float32 rates, below 1.

    Returns:
      [...] float32 loss, unreduced, in nats.
    """
    log_p = jax.nn.log_softmax(logits)
    nll = -jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
    return (1.0 - r) * nll - r * log_p.mean(-1)


def ramp_negative(r: Array, step: Array, warmup: int, ramp: int) -> Array:
    """Rates in force at ``step``: positive ones at once, negative ones held at 0 for ``warmup`` steps, then brought in
    linearly over ``ramp`` steps.

    Sharpening from random weights diverges in public reports; the GLS authors warm up with cross entropy first.

    Args:
      r: [...] float32 rates in (-1, 1).
      step: scalar integer step, from 0.
      warmup: steps at ``max(r, 0)``.
      ramp: steps from there to the full rate; 0 switches at once.

    Returns:
      [...] float32.
    """
    progress = (step.astype(jnp.float32) - warmup + 1.0) / max(ramp, 1)
    return jnp.maximum(r, 0.0) + jnp.clip(progress, 0.0, 1.0) * jnp.minimum(r, 0.0)


class Term(NamedTuple):
    """One term of a loss, unreduced; the train step takes its mean and adds ``weight`` times it.

    Attributes:
      values: [...] float32.
      mask: [...] bool, or float32 weights of at least 0; neither depends on the network.
      weight: scalar.
    """

    values: Array
    mask: Array
    weight: float | Array = 1.0


class Told(NamedTuple):
    """What a loss with a memory returns.

    Attributes:
      terms: name -> term.
      rows: new rows of the memory of these examples, name -> [b, ...], without gradients; {} to leave them.
    """

    terms: dict[str, Term]
    rows: dict[str, Array]


def joined(first: dict[str, Term], second: dict[str, Term]) -> dict[str, Term]:
    """Each example under two labels, as one set of terms; weights are the first's.

    Along a new last axis: the first one may be split over devices, and nothing has to move.
    """
    made = {}
    for name, one in first.items():
        other = second[name]
        values, mask = jnp.stack([one.values, other.values], axis=-1), jnp.stack([one.mask, other.mask], axis=-1)
        made[name] = Term(values, mask, one.weight)
    return made


def masked_sum(values: Array, mask: Array) -> tuple[Array, Array]:
    """Weighted sum of ``values`` where ``mask`` is set, and the sum of the weights.

    The sum does not depend on what stands under the mask, even NaN; nor does the gradient, as long as the loss there
    was computed from finite numbers, which the label policies see to.

    Args:
      values: [...] float32.
      mask: [...] bool, or float32 weights of at least 0.

    Returns:
      Scalars float32.
    """
    weights = mask.astype(jnp.float32)
    return jnp.where(weights > 0, values * weights, 0.0).sum(), weights.sum()


def masked_mean(values: Array, mask: Array) -> Array:
    """Mean of ``values`` where ``mask`` is set; 0 where nothing is. See :func:`masked_sum`."""
    total, count = masked_sum(values, mask)
    return total / jnp.maximum(count, 1.0)
