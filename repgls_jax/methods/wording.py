"""What wordings mean, told by the films: report likelihood whose certainties are estimated anew, by reader or site.

If a reader's evidence is independent of the film given the truth, the films of a wording w that means P(present | w)
= p have the mean probability

  mean sigmoid(z) = m0 + (m1 - m0) p,   m1 = E[s^2] / E[s],   m0 = E[s (1 - s)] / E[1 - s],   s = sigmoid(z),

m1 and m0 being the means over films that show the finding and that do not, of a network that is calibrated. So p can be
estimated where nobody knows the truth: by least squares, over all findings, of each level of certainty that each reader
writes; and of silence, for each finding. The films are those of the validation split, whose labels the network has not
learnt. Few entries say little: an estimate is a mean with "shrink" times the least information that an entry can give
worth of the lexicon's own p. This project's own (DECISION: levels of certainty instead of cues; at most 64 readers or
sites, by the optional column "group", numbers beyond sharing).
"""

import jax
import jax.numpy as jnp
from jax import Array

from repgls_jax.memory import Memory
from repgls_jax.methods.dependence import LEVELS, levels
from repgls_jax.methods.likelihood import certainty, mean_logit, prevalences, surprise
from repgls_jax.methods.record import Columns, Hyper, Seen, View
from repgls_jax.policies import Targets

GROUPS = 64


def nominal(columns: Columns, targets: Targets, hyper: Hyper) -> Memory:
    """The lexicon's certainties, and the prevalences that follow."""
    shared = prevalences(columns, targets, hyper).shared
    return Memory({"p": certainty(columns, hyper).astype(jnp.float32)}, shared)


def _group(view: View) -> Array:
    n = view.logits.shape[0]
    return jnp.asarray(view.labels.get("group", jnp.zeros(n, jnp.int32))) % GROUPS


def tables(view: View, hyper: Hyper) -> tuple[Array, Array]:
    """Estimates from films that the network did not learn: of levels, [groups, levels], and of silence, [c]."""
    s, mask = jax.nn.sigmoid(view.logits), view.targets.mask
    seen = jnp.where(mask, s, 0.0)
    one, total = seen.sum(0), jnp.maximum(mask.sum(0), 1)
    m1 = (seen**2).sum(0) / jnp.maximum(one, 1e-6)
    m0 = (one - (seen**2).sum(0)) / jnp.maximum(total - one, 1e-6)
    spread = jnp.maximum(m1 - m0, 0.0)
    told, weight = (s - m0) * spread, jnp.broadcast_to(spread**2, s.shape)
    level, mentioned = levels(view)
    cell = _group(view)[:, None] * len(LEVELS) + level

    def summed(values: Array) -> Array:
        flat = jnp.where(mentioned, values, 0.0).reshape(-1)
        cells = jax.ops.segment_sum(flat, cell.reshape(-1), GROUPS * len(LEVELS))
        return cells.reshape(GROUPS, len(LEVELS))

    known, sums = summed(weight), summed(told)
    shrink = hyper["shrink"] * jnp.maximum(spread.mean() ** 2, 1e-6)
    # Readers are drawn to what all of them mean, and that to the lexicon.
    common = (sums.sum(0) + shrink * LEVELS) / (known.sum(0) + shrink)
    silent = mask & ~mentioned
    unsaid = jnp.where(silent, told, 0.0).sum(0) + shrink * hyper["silence"]
    return (sums + shrink * common) / (known + shrink), unsaid / (jnp.where(silent, weight, 0.0).sum(0) + shrink)


def relearn(memory: Memory, train: View, valid: View, hyper: Hyper) -> Memory:
    """The memory with what the wordings of the training split mean by the films of the validation split."""
    of_level, of_silence = tables(valid, hyper)
    level, mentioned = levels(train)
    p = jnp.where(mentioned, of_level[_group(train)[:, None], level], of_silence)
    clip = jnp.maximum(jnp.asarray(hyper["clip"], jnp.float32), 1e-6)
    p = jnp.clip(p, clip, 1.0 - clip).astype(jnp.float32)
    blended = certainty(train.labels, hyper) * (1.0 - hyper["share"]) + hyper["share"] * p
    return Memory({"p": p}, {"prior": mean_logit(blended, train.targets.mask)})


def relearned(z: Array, seen: Seen) -> Array:
    """Report likelihood of certainties that are "share" re-estimated and for the rest the lexicon's."""
    share = seen.hyper["share"]
    return surprise(z, (1.0 - share) * certainty(seen.labels, seen.hyper) + share * seen.rows["p"], seen)
