"""Report likelihood: the report as evidence on a truth that nobody sees, and a loss that finds its place beside the
expert rates.

A reader whose wording means p adds log LR = logit p - logit(prevalence) to what the film says, so that

  loss = -log P(report | z) = softplus(z) - softplus(z + lambda log LR) + max(lambda log LR, 0)

up to a constant; its gradient is sigmoid(z) - sigmoid(z + lambda log LR), generalized label smoothing with a rate
that adapts to the film. This project's own; the latent truth is that of Dawid and Skene (1979) and Raykar et al.
(JMLR 2010). It assumes that the reader's evidence is independent of the film given the truth.
Where the belief is derived from the
film, the target is p itself, which is what the expert rates give. Between them lies (:func:`bridge`)

  target q = sigmoid(a (z - logit prevalence) + logit p),  a in [0, 1] the reader's independence:

a = 1 is report likelihood at lambda 1, a = 0 the expert rates; a weight of the film's evidence for two readings with
normal evidence of equal variance, dependent given the truth.

DECISION: a finding that the report does not mention is evidence like any other, with p = "silence". Prevalences are the
training set's means of p. Wordings are clipped to [clip, 1 - clip]: no wording outweighs every film.
"""

import jax
import jax.numpy as jnp
from jax import Array

from repgls_jax import findings
from repgls_jax.memory import Memory
from repgls_jax.methods.record import Columns, Hyper, Seen
from repgls_jax.policies import Labels, Targets

_SMALL = 0.01  # of the independence; below it the loss is that of 0, where its formula would divide by it
_EDGE = 1e-6


def certainty(labels: Labels, hyper: Hyper) -> Array:
    """What each entry's wording means, silence too: p [b, c] in [clip, 1 - clip]."""
    unsaid = jnp.isnan(labels["p"]) | (labels["state"] == findings.NOT_MENTIONED)
    p = jnp.where(unsaid, hyper["silence"], labels["p"])
    clip = jnp.maximum(jnp.asarray(hyper["clip"], jnp.float32), _EDGE)
    return jnp.clip(p, clip, 1.0 - clip)


def logit(p: Array) -> Array:
    """log p - log(1 - p)."""
    return jnp.log(p) - jnp.log1p(-p)


def prevalences(columns: Columns, targets: Targets, hyper: Hyper) -> Memory:
    """logit of the mean certainty of each finding, [c], where labels are seen; 1/2 of a finding that has none."""
    return Memory({}, {"prior": mean_logit(certainty(columns, hyper), targets.mask)})


def mean_logit(p: Array, mask: Array) -> Array:
    """[c] float32: logit of the mean of ``p`` [n, c] where ``mask`` is set; 0 where it is nowhere."""
    mean = jnp.where(mask, p, 0.0).sum(0) / jnp.maximum(mask.sum(0), 1)
    return logit(jnp.where(mask.any(0), jnp.clip(mean, 1e-4, 1.0 - 1e-4), 0.5)).astype(jnp.float32)


def independent(columns: Columns, targets: Targets, hyper: Hyper) -> Memory:
    """Prevalences, and readers who are independent of the film until that is estimated."""
    shared = prevalences(columns, targets, hyper).shared
    return Memory({}, shared | {"independence": jnp.ones_like(shared["prior"])})


def report_likelihood(z: Array, seen: Seen) -> Array:
    """The loss of the module's docstring, at least 0: lambda is the hyperparameter "lam"."""
    return surprise(z, certainty(seen.labels, seen.hyper), seen)


def surprise(z: Array, p: Array, seen: Seen) -> Array:
    """The same for wordings that mean ``p`` [b, c]."""
    ratio = seen.hyper["lam"] * (logit(p) - seen.shared["prior"][None])
    return jax.nn.softplus(z) - jnp.logaddexp(-jnp.maximum(ratio, 0.0), z + jnp.minimum(ratio, 0.0))


def bridge(z: Array, p: Array, prior: Array, a: Array) -> Array:
    """``softplus(z) - (softplus(l + a (z - prior)) - softplus(l - a prior)) / a`` with l = logit p.

    Its gradient is ``sigmoid(z) - q`` with the q of the module's docstring. In the limit a = 0, which is taken below
    0.01, it is binary cross entropy on p, and at a = 1 report likelihood up to a constant.
    """
    said, some = logit(p), jnp.where(a < _SMALL, 1.0, a)
    pulled = (jax.nn.softplus(said + some * (z - prior)) - jax.nn.softplus(said - some * prior)) / some
    return jax.nn.softplus(z) - jnp.where(a < _SMALL, p * z, pulled)


def given(z: Array, seen: Seen) -> Array:
    """:func:`bridge` at the hyperparameter "independence", the same for all findings."""
    a = jnp.asarray(seen.hyper["independence"], jnp.float32)
    return bridge(z, certainty(seen.labels, seen.hyper), seen.shared["prior"][None], a)


def fitted(z: Array, seen: Seen) -> Array:
    """:func:`bridge` at the independence that the data shows, see :mod:`repgls_jax.methods.dependence`."""
    a = seen.hyper["most"] * seen.shared["independence"][None]
    return bridge(z, certainty(seen.labels, seen.hyper), seen.shared["prior"][None], a)
