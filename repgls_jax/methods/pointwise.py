"""Losses of one label at a time, robust to flips: functions of the margin m = (2y - 1) z, with p_y = sigmoid(m).

Written for K softmax classes in the papers; here each finding is a problem of two classes. The labels are those of the
policy ``hard``, the likelier side of the wording, and its r does not count (DECISION: rates are another arm).
"""

import jax
import jax.numpy as jnp
from jax import Array

from repgls_jax.methods.record import Seen


def margin(z: Array, seen: Seen) -> Array:
    """(2y - 1) z, [b, c]."""
    return (2.0 * seen.targets.y - 1.0) * z


def cross_entropy(z: Array, seen: Seen) -> Array:
    """softplus(-m)."""
    return jax.nn.softplus(-margin(z, seen))


def mae(z: Array, seen: Seen) -> Array:
    """``(1 - s) softplus(-m) + s (1 - p_y)``, of share s.

    At s = 1 mean absolute error (Ghosh et al., AAAI 2017, arXiv 1712.09482), up to a factor of 2.
    """
    s, m = seen.hyper["share"], margin(z, seen)
    return (1.0 - s) * jax.nn.softplus(-m) + s * jax.nn.sigmoid(-m)


def imae(z: Array, seen: Seen) -> Array:
    """Improved MAE (Wang et al., arXiv 1903.12141): MAE whose entries weigh ``exp(T p_y (1 - p_y))``.

    The paper weighs the gradients of examples so that those near the border count more than under MAE. DECISION: the
    weight multiplies MAE itself, without a gradient of its own, and is divided by its largest value; T = 0 is MAE.
    """
    s, m = seen.hyper["share"], margin(z, seen)
    p = jax.lax.stop_gradient(jax.nn.sigmoid(m))
    weight = jnp.exp(seen.hyper["temperature"] * (p * (1.0 - p) - 0.25))
    return (1.0 - s) * jax.nn.softplus(-m) + s * weight * jax.nn.sigmoid(-m)


def gce(z: Array, seen: Seen) -> Array:
    """Generalized cross entropy ``(1 - p_y^q) / q`` (Zhang and Sabuncu, NeurIPS 2018, arXiv 1805.07836).

    Cross entropy as q goes to 0, MAE at q = 1.
    """
    q, nll = jnp.asarray(seen.hyper["q"], jnp.float32), cross_entropy(z, seen)
    some = jnp.where(q > 0, q, 1.0)
    return jnp.where(q > 0, -jnp.expm1(-some * nll) / some, nll)


def sce(z: Array, seen: Seen) -> Array:
    """Symmetric cross entropy ``a CE + b RCE`` (Wang et al., ICCV 2019, arXiv 1908.06112).

    The reverse term with log 0 set to -4, as in the paper, is ``4 (1 - p_y)``.
    """
    m = margin(z, seen)
    return seen.hyper["ce"] * jax.nn.softplus(-m) + seen.hyper["reverse"] * 4.0 * jax.nn.sigmoid(-m)


def bootstrap_soft(z: Array, seen: Seen) -> Array:
    """Soft bootstrapping: cross entropy on ``b y + (1 - b) p`` (Reed et al., ICLR 2015 workshop, arXiv 1412.6596).

    The gradient goes through p too, as in the paper: it is cross entropy with a pull towards low entropy.
    """
    b = seen.hyper["beta"]
    return b * cross_entropy(z, seen) + (1.0 - b) * (jax.nn.softplus(z) - jax.nn.sigmoid(z) * z)


def bootstrap_hard(z: Array, seen: Seen) -> Array:
    """Hard bootstrapping: cross entropy on ``b y + (1 - b) 1[p > 1/2]``, same paper."""
    b = seen.hyper["beta"]
    return b * cross_entropy(z, seen) + (1.0 - b) * jax.nn.softplus(-jnp.abs(z))
