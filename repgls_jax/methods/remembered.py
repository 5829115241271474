"""Methods that remember something of every training example: early learning, self-training, cleaning.

What they write into the memory depends on predictions alone, so that a resumed run goes on bit by bit.
"""

import jax
import jax.numpy as jnp
from jax import Array

from repgls_jax import findings, losses
from repgls_jax.memory import Memory
from repgls_jax.methods.pointwise import cross_entropy
from repgls_jax.methods.record import Columns, Hyper, Seen, View
from repgls_jax.policies import Targets

_EDGE = 1e-4  # of a remembered probability: its logarithm stays finite


def even(columns: Columns, targets: Targets, hyper: Hyper) -> Memory:
    """A moving target of 1/2 for every entry: it pulls nowhere."""
    del columns, hyper
    return Memory({"target": jnp.full(targets.y.shape, 0.5, jnp.float32)}, {})


def _moved(z: Array, seen: Seen) -> Array:
    beta = seen.hyper["beta"]
    new = beta * seen.rows["target"] + (1.0 - beta) * jax.nn.sigmoid(jax.lax.stop_gradient(z))
    return jnp.clip(new, _EDGE, 1.0 - _EDGE)


def elr(z: Array, seen: Seen) -> Array:
    """Early-learning regularisation (Liu et al., NeurIPS 2020, arXiv 2007.00151): ``CE + w log(1 - <p, t>)``.

    t is the moving average of the example's own predictions, and <p, t> = p t + (1 - p)(1 - t) of two classes.
    DECISION: it starts at 1/2, where the term has no gradient, instead of at 0 for both classes.
    """
    t = _moved(z, seen)
    apart = jnp.logaddexp(jax.nn.log_sigmoid(z) + jnp.log1p(-t), jax.nn.log_sigmoid(-z) + jnp.log(t))
    return cross_entropy(z, seen) + seen.hyper["weight"] * apart


def elr_update(z: Array, seen: Seen) -> dict[str, Array]:
    """The moving targets that :func:`elr` used."""
    return {"target": _moved(z, seen)}


def unlabelled(columns: Columns, targets: Targets, hyper: Hyper) -> Memory:
    """No labels yet for what is uncertain, which is left out meanwhile."""
    del columns, hyper
    return Memory({"label": jnp.full(targets.y.shape, 0.5, jnp.float32)}, {"told": jnp.float32(0)})


def relabel(memory: Memory, train: View, valid: View, hyper: Hyper) -> Memory:
    """The network's predictions as labels of what is uncertain."""
    del memory, valid, hyper
    return Memory({"label": jax.nn.sigmoid(train.logits).astype(jnp.float32)}, {"told": jnp.float32(1)})


def _uncertain(seen: Seen) -> Array:
    return seen.labels["state"] == findings.UNCERTAIN


def self_trained(z: Array, seen: Seen) -> Array:
    """U-SelfTrained (Irvin et al., AAAI 2019, arXiv 1901.07031): uncertain entries get the probability that a network
    trained without them predicts.

    DECISION: one run of the usual length, which goes on from the network's weights with the new labels, where CheXpert
    trains a second network.
    """
    soft = jax.nn.softplus(z) - seen.rows["label"] * z
    return jnp.where(_uncertain(seen), soft, losses.gls_binary(z, seen.targets.y, seen.targets.r))


def self_trained_weight(seen: Seen) -> Array:
    """0 for uncertain entries without a label yet, then "weight"."""
    return jnp.where(_uncertain(seen), seen.hyper["weight"] * seen.shared["told"], 1.0)


def unsuspected(columns: Columns, targets: Targets, hyper: Hyper) -> Memory:
    """No label is suspected."""
    del columns, hyper
    return Memory({"suspect": jnp.zeros(targets.y.shape, jnp.float32)}, {})


def suspect(memory: Memory, train: View, valid: View, hyper: Hyper) -> Memory:
    """Confident learning (Northcutt et al., JAIR 2021, arXiv 1911.00068), for each finding as two classes.

    An entry is suspected if the network is confident of the other class: its probability there is at least the mean one
    among entries that carry that label, and it is the larger of those that pass. DECISION: the predictions are the
    network's own, early in the run, where the paper's come from cross-validation.
    """
    del memory, valid, hyper
    p, (y, _, mask) = jax.nn.sigmoid(train.logits), train.targets
    one, zero = mask & (y == 1), mask & (y == 0)
    sure_one = p >= jnp.where(one, p, 0.0).sum(0) / jnp.maximum(one.sum(0), 1)
    sure_zero = 1.0 - p >= jnp.where(zero, 1.0 - p, 0.0).sum(0) / jnp.maximum(zero.sum(0), 1)
    other_one = zero & one.any(0) & sure_one & (~sure_zero | (p > 0.5))
    other_zero = one & zero.any(0) & sure_zero & (~sure_one | (p < 0.5))
    return Memory({"suspect": (other_one | other_zero).astype(jnp.float32)}, {})


def trusted(seen: Seen) -> Array:
    """1, less the "share" of the weight that suspected entries lose."""
    return 1.0 - seen.hyper["share"] * seen.rows["suspect"]
