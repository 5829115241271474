"""Whether readers know more of the film than the truth: what tells report likelihood's case from the expert rates'.

If a reader's evidence is independent of the film given the truth, the film predicts the wording w only through the
truth:

  P(w | z) = s P(w | present) + (1 - s) P(w | absent),   s = sigmoid(z')

where the two distributions follow from how often w is written and from the p that it means, by Bayes' rule. If the
belief comes from the film, plain films get plain words and doubtful films hedges, and z says more about w than that. So
the distributions are tilted, P(w | y, z) ~ P(w | y) exp(b s_w (z' - prior)), s_w = logit p_w - prior, and what b > 0
gains over b = 0 in log likelihood per entry is measured on the validation split, whose labels the network has not
learnt: noisy labels only. Networks are not calibrated, and of the entries that are mentioned, which alone count, more
are present: so z' = scale (z - prior) + prior + offset, with the scale and offset that suit each b and finding best.

From the gain g, in nats, less log(N) / 2N for its one parameter: independence a = exp(-g / tolerance). This project's
own (DECISION: b and a are the same for all findings: validation splits are too small to tell more).
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from repgls_jax import findings
from repgls_jax.memory import Memory
from repgls_jax.methods.likelihood import logit
from repgls_jax.methods.record import Hyper, View

LEVELS = np.array([0.02, 0.06, 0.12, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.88, 0.94, 0.98], np.float32)
TILTS = np.array([0.0, 0.1, 0.2, 0.3, 0.5, 0.8], np.float32)  # the first one is independence
SCALES, OFFSETS = (0.35, 0.6, 1.0, 1.6), (-1.5, -0.75, 0.0, 0.75, 1.5)
_FLOOR = 1e-6  # of a frequency


def gain(view: View, frequencies: Array) -> Array:
    """Log likelihood that the best tilt gains over none, nats per mentioned entry, less its penalty; scalar >= 0.

    Args:
      view: predictions and labels that the network did not learn from.
      frequencies: [c, levels] how often each level is written of a finding; each row sums to 1.
    """
    level, used = levels(view)
    share = frequencies * LEVELS
    mean = jnp.clip(share.sum(1, keepdims=True), _FLOOR, 1.0 - _FLOOR)
    present, absent = jnp.log(share / mean), jnp.log(frequencies * (1.0 - LEVELS) / (1.0 - mean))
    prior = logit(mean[:, 0])
    strength = logit(jnp.asarray(LEVELS)) - prior[:, None]

    def likelihood(setting: Array) -> Array:
        """[c] log likelihood of the entries of each finding under (tilt, scale, offset)."""
        tilt, scale, offset = setting
        z = scale * (view.logits - prior) + prior + offset
        tilted = tilt * strength * (z - prior)[..., None]
        one = _at(present + tilted, level) + jax.nn.log_sigmoid(z)
        zero = _at(absent + tilted, level) + jax.nn.log_sigmoid(-z)
        return jnp.where(used, jnp.logaddexp(one, zero), 0.0).sum(0)

    grid = jnp.asarray(list(itertools.product(TILTS, SCALES, OFFSETS)), jnp.float32)
    found = jax.lax.map(likelihood, grid).reshape(len(TILTS), -1, level.shape[1])
    best = found.max(1).sum(1)  # scale and offset of each finding; then one tilt for all
    count = jnp.maximum(used.sum(), 1)
    return jnp.maximum((best.max() - best[0] - 0.5 * jnp.log(count)) / count, 0.0)


def levels(view: View) -> tuple[Array, Array]:
    """The nearest of :data:`LEVELS` of every entry, [n, c] int, and whether it is a mention that was seen."""
    p = view.labels["p"]
    used = view.targets.mask & ~jnp.isnan(p) & (view.labels["state"] != findings.NOT_MENTIONED)
    return jnp.abs(jnp.where(used, p, 0.5)[..., None] - LEVELS).argmin(-1), used


def frequencies(view: View) -> Array:
    """[c, levels]: how often each level is written where a finding is mentioned; about even where it never is."""
    level, used = levels(view)
    counts = (jax.nn.one_hot(level, len(LEVELS)) * used[..., None]).sum(0) + _FLOOR
    return counts / counts.sum(1, keepdims=True)


def _at(scores: Array, level: Array) -> Array:
    """log softmax of ``scores`` [n, c, levels] at ``level`` [n, c]."""
    return jnp.take_along_axis(jax.nn.log_softmax(scores), level[..., None], axis=-1)[..., 0]


def fit(memory: Memory, train: View, valid: View, hyper: Hyper) -> Memory:
    """The memory with the independence that the validation split shows."""
    a = jnp.exp(-gain(valid, frequencies(train)) / hyper["tolerance"])
    shared = memory.shared["independence"]
    return memory.replace(shared={**memory.shared, "independence": jnp.full_like(shared, a)})
