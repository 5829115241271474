"""Methods that choose what to learn from, and when: co-teaching, weights and order by certainty; and three classes."""

import jax
import jax.numpy as jnp
from jax import Array

from repgls_jax import findings
from repgls_jax.methods.pointwise import cross_entropy
from repgls_jax.methods.record import Seen


def coteach(first: Array, second: Array, seen: Seen) -> tuple[Array, Array]:
    """Co-teaching (Han et al., NeurIPS 2018, arXiv 1804.06872).

    Each network learns from what has a small loss under the other one. The share that is left out rises linearly to
    "forget" over "ramp" of the run. DECISION: entries are compared within the batch among those of a finding that share
    a label, since a rare finding's positives have the greatest losses, right or wrong; at least one of them is kept.
    Losses are scaled so that their mean is that of what is kept.
    """
    ramp = jnp.maximum(jnp.asarray(seen.hyper["ramp"], jnp.float32), 1e-6)
    forget = seen.hyper["forget"] * jnp.clip(seen.progress / ramp, 0.0, 1.0)
    one, two = cross_entropy(first, seen), cross_entropy(second, seen)
    return one * _small(two, seen, forget), two * _small(one, seen, forget)


def _small(loss: Array, seen: Seen, forget: Array) -> Array:
    """[b, c] float32, without gradient: 0 for great losses, and what makes up for them for the others."""
    loss, kept = jax.lax.stop_gradient(loss), jnp.zeros(loss.shape, jnp.float32)
    for label in (0, 1):
        among = seen.targets.mask & (seen.targets.y == label)
        order = jnp.argsort(jnp.where(among, loss, jnp.inf), axis=0)
        count = among.sum(0)
        keep = jnp.ceil((1.0 - forget) * count - 1e-4)
        kept = kept + among * (jnp.argsort(order, axis=0) < keep)
    total = jnp.maximum(kept.sum(0), 1.0)
    return kept * (seen.targets.mask.sum(0) / total)


def certain_first(seen: Seen) -> Array:
    """A curriculum by rate: an entry of rate r comes in after the share "until" times r of the run.

    This project's formulation of the uncertainty curriculum of Ju et al. (IEEE TMI 2022, arXiv 2103.00528): theirs
    measures uncertainty with networks, ours reads it from the report.
    """
    return (seen.progress >= seen.hyper["until"] * seen.labels["rate"]).astype(jnp.float32)


def certainty(seen: Seen) -> Array:
    """Re-weighting by the wording: ``(1 - r) ** power``, r the expert rate, 0 where that is negative."""
    return (1.0 - jnp.maximum(seen.labels["rate"], 0.0)) ** seen.hyper["power"]


def three_classes(z: Array, seen: Seen, third: Array) -> Array:
    """U-MultiClass (Irvin et al., AAAI 2019, arXiv 1901.07031): softmax cross entropy over present, absent, uncertain.

    The logits are (z, 0, third): the probability of presence among present and absent is sigmoid(z), which is what
    CheXpert evaluates. "share" blends it with cross entropy that leaves out uncertain entries; 1 is CheXpert's.
    """
    uncertain = seen.labels["state"] == findings.UNCERTAIN
    whole = jnp.logaddexp(jnp.logaddexp(z, 0.0), third)
    nll = whole - jnp.where(uncertain, third, seen.targets.y * z)
    share = seen.hyper["share"]
    return share * nll + (1.0 - share) * jnp.where(uncertain, 0.0, cross_entropy(z, seen))
