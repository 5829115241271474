"""Temperature scaling: one positive factor that makes a model's probabilities honest without changing its ranking.

  p = sigmoid(z / T), with T minimising the negative log-likelihood of validation labels (Guo et al., 2017,
  arXiv 1706.04599, section 4.2)

The negative log-likelihood is convex in a = 1 / T, and its curvature, sum z^2 p (1 - p), falls as a grows. Newton's
method on a therefore never overshoots from below; from above it may, once, which the bound on each step keeps
positive. So it finds the one minimum. T > 1 softens an over-confident model. AUROC and AUPRC stay as they are.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

STEPS = 40
# Of 1 / T. Labels that the logits separate have no finite minimum; labels they contradict have it at or below 0.
BOUNDS = (0.01, 100.0)


@functools.partial(jax.jit, static_argnames="per_finding")
def temperature(logits: jax.Array, labels: jax.Array, mask: jax.Array, *, per_finding: bool = False) -> jax.Array:
    """Fits temperatures on validation data.

    Args:
      logits: float32 [n, c].
      labels: [n, c] in [0, 1], hard or soft; anything where the mask is off.
      mask: bool [n, c], True where the label counts.
      per_finding: one temperature per finding, instead of one for all.

    Returns:
      float32 [c] temperatures, in [0.01, 100]; all equal unless ``per_finding``. 1 where no label counts.
    """
    w = mask.astype(jnp.float32)
    z, y = jnp.where(mask, logits, 0).astype(jnp.float32), jnp.where(mask, labels, 0).astype(jnp.float32)

    def total(x: jax.Array) -> jax.Array:
        x = jnp.sum(x, axis=0)
        return x if per_finding else jnp.full_like(x, jnp.sum(x))

    def newton(_: int, a: jax.Array) -> jax.Array:
        p = jax.nn.sigmoid(a[None] * z)
        slope, curvature = total(w * z * (p - y)), total(w * z**2 * p * (1 - p))
        step = jnp.where(curvature > 0, slope / jnp.where(curvature > 0, curvature, 1), 0)
        return jnp.clip(jnp.clip(a - step, a / 2, a * 2), *BOUNDS)

    return 1 / lax.fori_loop(0, STEPS, newton, jnp.ones((logits.shape[1],), jnp.float32))
