"""Guided refinement: rates corrected by a small set of studies with verified labels. Pure.

The classifier takes one step of gradient descent on reports' labels under the rates; how well it then does on verified
labels is differentiated, through that step, with respect to the rates (learning to reweight, Ren et al., ICML 2018,
arXiv 1803.09050; that rates are what is learned, and how they are bound, is this project's decision):

    L_verified(theta - alpha grad_theta L_GLS(theta; r')) -> min over delta,    r' = tanh(atanh(r) + delta)

delta is shared by all entries of a group, such as a category of cues, with a correction for each finding: hundreds of
verified studies cannot tell rates of single studies apart. It is bound, so that r' stays inside (-1, 1) and a rate
changes confidence, never the label.

    def apply(params, tokens):                              # any classifier: logits [b, c]
        return tokens @ params["w"] + params["b"]

    cues = ["probable", "possible", "unlikely"]             # group g of an entry; -1 where its rate stays
    train = Train(tokens, y, r, mask, group)                # each [n, ...]: what reports say
    verified = Verified(tokens_v, truth_v, mask_v)          # each [m, ...]: what experts say of other studies
    refined = refine(apply, params, train, verified, len(cues), RefineConfig(), jax.random.key(0))
    r_new = shifted(train.r, train.group, refined.refinement, RefineConfig().bound)
    # Train a new classifier under r_new; refined.delta [g, c] says what changed for which cue and finding.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from repgls_jax import losses

Params = Any
Inputs = Any  # a tree of arrays whose first axis is the examples'
Apply = Callable[[Params, Inputs], Array]  # logits [b, c]
Refinement = dict[str, Array]  # "shared" [g] and "own" [g, c]

# Rates nearer to -1 or 1 than this are moved as if they stood here: atanh(1) is infinite.
EDGE = 0.995


class Train(NamedTuple):
    """Examples with reports' labels.

    Attributes:
      inputs: tree of [n, ...] arrays, what ``apply`` takes.
      y: [n, c] labels in {0, 1}.
      r: [n, c] float rates in (-1, 1).
      mask: [n, c] bool, entries that the loss sees.
      group: [n, c] integer groups in [0, g); -1 where the rate stays as it is (blanks, say).
    """

    inputs: Inputs
    y: Array
    r: Array
    mask: Array
    group: Array


class Verified(NamedTuple):
    """Examples with verified labels: ``inputs`` as in :class:`Train`, ``y`` and ``mask`` [m, c]."""

    inputs: Inputs
    y: Array
    mask: Array


@dataclasses.dataclass(frozen=True)
class RefineConfig:
    """Settings of :func:`refine`.

    Attributes:
      steps: of the refinement; the classifier takes as many.
      batch_size: examples of a step with reports' labels.
      verified_size: verified examples of a step; 0 takes all of them.
      lookahead: alpha, size of the step that is differentiated through.
      learning_rate: of the classifier (Adam).
      rate_learning_rate: of the refinement (Adam), in units of atanh(r).
      decay: pull of the refinement towards 0, the given rates.
      own_decay: pull of the findings' corrections towards what is shared.
      bound: largest |delta|; at most 3.
    """

    steps: int = 500
    batch_size: int = 64
    verified_size: int = 0
    lookahead: float = 0.1
    learning_rate: float = 1e-3
    rate_learning_rate: float = 0.01
    decay: float = 1e-3
    own_decay: float = 1e-2
    bound: float = 2.0

    def __post_init__(self) -> None:
        wrong = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) < 0]
        wrong += [name for name in ("batch_size", "lookahead", "bound") if getattr(self, name) == 0]
        if wrong or self.bound > 3:
            values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
            raise ValueError(
                f"refinement settings {values}: expected none below 0, batch_size, lookahead and bound above 0, "
                "and a bound of at most 3 (beyond it float32 rounds rates to 1)"
            )


class Refined(NamedTuple):
    """What :func:`refine` found.

    Attributes:
      refinement: the mean over the second half of the steps.
      delta: [g, c] what it adds to atanh(r).
      params: the classifier's, after the last step.
      verified_loss: [steps] float32, loss on verified labels after each look-ahead.
      seen: [g, c] float32, entries of each group and finding among the training examples.
    """

    refinement: Refinement
    delta: Array
    params: Params
    verified_loss: Array
    seen: Array


def groups_of(cue: np.ndarray, mentioned: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Groups of entries by the category of their cue.

    Bare mentions are a group, and so are the findings that a report does not mention: as every group has a correction
    for each finding, refinement learns a rate for "not mentioned" finding by finding.

    Args:
      cue: [n, c] ids of cues, "category:words"; "" for a bare mention.
      mentioned: [n, c] bool.

    Returns:
      ([n, c] int32 groups, names of the groups).
    """
    category = np.array([name.partition(":")[0] or "bare" for name in cue.ravel().tolist()], object)
    category = np.where(mentioned.ravel(), category, "not mentioned").astype(str)
    names, group = np.unique(category, return_inverse=True)
    return group.reshape(cue.shape).astype(np.int32), tuple(names.tolist())


def nothing(groups: int, findings: int) -> Refinement:
    """The refinement that leaves every rate as it is, for g groups and c findings."""
    return {"shared": jnp.zeros(groups), "own": jnp.zeros((groups, findings))}


def delta(refinement: Refinement, bound: float) -> Array:
    """[g, c] in (-bound, bound): ``bound tanh((shared + own) / bound)``, the identity near 0."""
    raw = refinement["shared"][:, None] + refinement["own"]
    return bound * jnp.tanh(raw / bound)


def shifted(r: Array, group: Array, refinement: Refinement, bound: float) -> Array:
    """Refined rates ``tanh(atanh(r) + delta[group, finding])``.

    Args:
      r: [..., c] float rates in (-1, 1).
      group: [..., c] integers; below 0 the rate is returned untouched.
      refinement: see :func:`nothing`.
      bound: see :class:`RefineConfig`.

    Returns:
      [..., c] in (-1, 1), increasing in r within a group and finding.
    """
    moves = delta(refinement, bound)[jnp.maximum(group, 0), jnp.arange(r.shape[-1])]
    return jnp.where(group < 0, r, jnp.tanh(jnp.arctanh(jnp.clip(r, -EDGE, EDGE)) + moves))


def gls(apply: Apply, params: Params, batch: Train, r: Array) -> Array:
    """Mean GLS loss of a classifier under the rates ``r`` [b, c]: a scalar."""
    return losses.masked_mean(losses.gls_binary(apply(params, batch.inputs), batch.y, r), batch.mask)


def cross_entropy(apply: Apply, params: Params, batch: Verified) -> Array:
    """Mean cross entropy of a classifier on verified labels: a scalar."""
    z = apply(params, batch.inputs)
    return losses.masked_mean(losses.gls_binary(z, batch.y, jnp.zeros_like(z)), batch.mask)


def look_ahead(
    refinement: Refinement,
    apply: Apply,
    params: Params,
    batch: Train,
    verified: Verified,
    step_size: float,
    bound: float,
) -> Array:
    """Loss on verified labels after one step of gradient descent under the refined rates: a scalar.

    Its gradient with respect to ``refinement`` is what :func:`refine` follows. To first order in ``step_size`` it says
    whether the gradients of the refined labels point where those of the verified labels do.
    """

    def objective(p: Params) -> Array:
        return gls(apply, p, batch, shifted(batch.r, batch.group, refinement, bound))

    moved = jax.tree.map(lambda p, g: p - step_size * g, params, jax.grad(objective)(params))
    return cross_entropy(apply, moved, verified)


def refine(
    apply: Apply,
    params: Params,
    train: Train,
    verified: Verified,
    groups: int,
    config: RefineConfig,
    key: Array,
) -> Refined:
    """Refines the rates of every group while the classifier goes on training under them.

    What is found is what serves the classifier, not how often a cue is right: labels that are wrong at random make it
    less sure than the truth is, and surer labels of any cue make up for that. Read delta as one cue beside another.

    Start from a classifier that has been trained under the given rates: one that has learned little asks for surer
    labels everywhere, whatever the cue. Verified studies should not be among the training examples: of those that it
    has memorised, the classifier has nothing left to learn.

    Args:
      apply: the classifier, (parameters, inputs) -> logits [b, c]; differentiable, without randomness.
      params: its parameters.
      train: all n examples with reports' labels, in memory.
      verified: all m examples with verified labels.
      groups: g.
      config: settings.
      key: of the batches.

    Raises:
      ValueError: shapes differ, or there are no groups.
    """
    n, c = train.y.shape
    shapes = {name: getattr(train, name).shape for name in ("y", "r", "mask", "group")}
    if len(set(shapes.values())) > 1 or verified.y.shape[1:] != (c,) or verified.mask.shape != verified.y.shape:
        raise ValueError(
            f"training arrays {shapes}, verified {verified.y.shape} and {verified.mask.shape}; expected [n, c], [m, c]"
        )
    if groups < 1:
        raise ValueError(f"{groups} groups; expected at least 1")
    classifier, rates = optax.adam(config.learning_rate), optax.adam(config.rate_learning_rate)
    m = len(verified.y)
    checked = config.verified_size or m

    def objective(refinement: Refinement, params: Params, batch: Train, check: Verified) -> tuple[Array, Array]:
        loss = look_ahead(refinement, apply, params, batch, check, config.lookahead, config.bound)
        pull = 0.5 * config.decay * (refinement["shared"] ** 2).sum()
        pull += 0.5 * (config.decay + config.own_decay) * (refinement["own"] ** 2).sum()
        # Divided by the step, the gradient does not depend on its size to first order, and nor does the pull's share.
        return loss / config.lookahead + pull, loss

    def step(carry: Any, key: Array) -> tuple[Any, Array]:
        refinement, rates_state, params, state, mean, i = carry
        some, few = jax.random.split(key)
        rows = jax.random.randint(some, (min(config.batch_size, n),), 0, n)
        batch: Train = jax.tree.map(lambda x: x[rows], train)
        check = verified
        if checked < m:
            chosen = jax.random.choice(few, m, (checked,), replace=False)
            check = jax.tree.map(lambda x: x[chosen], verified)
        (_, loss), grads = jax.value_and_grad(objective, has_aux=True)(refinement, params, batch, check)
        updates, rates_state = rates.update(grads, rates_state)
        refinement = optax.apply_updates(refinement, updates)
        r = shifted(batch.r, batch.group, refinement, config.bound)
        moves, state = classifier.update(jax.grad(lambda p: gls(apply, p, batch, r))(params), state)
        half = config.steps // 2
        weight = jnp.where(i < half, 0.0, 1.0 / (config.steps - half))
        mean = jax.tree.map(lambda a, x: a + weight * x, mean, refinement)
        return (refinement, rates_state, optax.apply_updates(params, moves), state, mean, i + 1), loss

    @jax.jit
    def run(params: Params, keys: Array) -> tuple[Any, Array]:
        start = nothing(groups, c)
        carry = (start, rates.init(start), params, classifier.init(params), start, 0)
        return jax.lax.scan(step, carry, keys)

    (_, _, params, _, mean, _), trace = run(params, jax.random.split(key, config.steps))
    hot = jax.nn.one_hot(train.group, groups) * train.mask[..., None]  # -1 is no group: all zeros
    return Refined(mean, delta(mean, config.bound), params, trace, hot.sum(0).T)
