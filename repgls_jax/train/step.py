"""The pure train step. It knows nothing of files, clocks or devices.

Masks, means and the weighting of terms live here, once: a loss returns its terms unreduced.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from jax import Array

from repgls_jax import losses
from repgls_jax.train.optimizer import frozen
from repgls_jax.train.state import Batch, Params, TrainState

# (params, batch, key, step) -> name -> term. Masks and weights must not depend on the parameters.
LossFn = Callable[[Params, Batch, Array, Array], dict[str, losses.Term]]
StepFn = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]
_Part = tuple[Batch, Array]  # some examples, and the key of their randomness


def make_train_step(
    loss: LossFn,
    tx: optax.GradientTransformation,
    accumulate: int = 1,
    ema: float = 0.0,
    freeze: Sequence[str] = (),
) -> StepFn:
    """One optimizer step, to be jitted by the caller with its shardings.

    The loss is the weighted sum of the terms' means over the whole batch, whatever ``accumulate`` is: what a mask keeps
    is counted over all micro-batches before the first gradient. Only randomness differs, and what a term compares
    between examples, which it does within a micro-batch.

    Args:
      loss: terms of some examples.
      tx: the optimizer.
      accumulate: micro-batches whose gradients are summed before the update; divides the batch.
      ema: decay of the average of the parameters, in [0, 1); 0 keeps none. The state must have been created likewise.
      freeze: the optimizer's own, see :func:`repgls_jax.train.optimizer.frozen`; spares the gradients.

    Returns:
      Function (state, batch) -> (state, scalars): the mean of each term, "loss", and "grad_norm" before clipping.
    """

    gradient = jax.value_and_grad(_objective(loss), has_aux=True)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        flat = flax.traverse_util.flatten_dict(state.params, sep="/")
        still = frozen(flat, freeze)
        held = {path: value for path, value in flat.items() if path in still}
        moved = {path: value for path, value in flat.items() if path not in still}
        part = (batch, state.key())
        if accumulate == 1:
            (value, means), grads = gradient(moved, held, part, state.step, None)
        else:
            (value, means), grads = _accumulated(loss, moved, held, _split(part, accumulate), state.step)
        scalars = {**means, "loss": value, "grad_norm": optax.tree.norm(grads)}
        grads = grads | {path: jnp.zeros_like(value) for path, value in held.items()}
        updates, opt_state = tx.update(flax.traverse_util.unflatten_dict(grads, sep="/"), state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.ema if ema == 0 else averaged(state.ema, params, state.step, ema)
        return state.replace(step=state.step + jnp.int32(1), params=params, opt_state=opt_state, ema=average), scalars

    return train_step


def _objective(loss: LossFn) -> Callable[..., tuple[Array, dict[str, Array]]]:
    """(parameters that move, those held, part, step, counts) -> the part's share in the loss and in the terms' means.

    ``counts`` are what the masks keep of all parts; None for those of the part itself.
    """

    def objective(moved: Params, held: Params, part: _Part, step: Array, counts: Any) -> tuple[Array, dict[str, Array]]:
        terms = loss(flax.traverse_util.unflatten_dict(moved | held, sep="/"), *part, step)
        means = {}
        for name, term in terms.items():
            total, count = losses.masked_sum(term.values, term.mask)
            means[name] = total / jnp.maximum(count if counts is None else counts[name], 1.0)
        return sum((term.weight * means[name] for name, term in terms.items()), start=jnp.float32(0)), means

    return objective


def _accumulated(loss: LossFn, moved: Params, held: Params, parts: _Part, step: Array) -> Any:
    """((loss, means), gradients) of all ``parts``, which are stacked along a first axis, one part at a time."""
    gradient = jax.value_and_grad(_objective(loss), has_aux=True)

    def count(part: _Part) -> dict[str, Array]:
        # The network's output is not used here, so the compiler drops the network.
        terms = loss(flax.traverse_util.unflatten_dict(moved | held, sep="/"), *part, step)
        return {name: losses.masked_sum(term.values, term.mask)[1] for name, term in terms.items()}

    counts = jax.tree.map(lambda c: c.sum(), jax.lax.map(count, parts))

    def add(total: Any, part: _Part) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(moved, held, part, step, counts)), None

    shapes = jax.eval_shape(gradient, moved, held, jax.tree.map(lambda x: x[0], parts), step, counts)
    return jax.lax.scan(add, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), parts)[0]


def averaged(average: Params, params: Params, step: Array, decay: float) -> Params:
    """``average + (1 - d) (params - average)`` with ``d = min(decay, (1 + step) / (10 + step))``.

    The decay rises from 0.1, so that the random start is forgotten early and short runs have an average too.
    """
    done = step.astype(jnp.float32)
    rate = 1.0 - jnp.minimum(decay, (1.0 + done) / (10.0 + done))
    return jax.tree.map(lambda a, p: a + rate * (p - a), average, params)


def _split(part: _Part, count: int) -> Any:
    """Micro-batches along a new first axis, each of every ``count``-th example: where devices hold runs of neighbours,
    every device keeps an equal share of every micro-batch, and nothing moves."""
    batch, key = part
    sizes: Mapping[str, int] = {name: len(values) for name, values in batch.items()}
    uneven = {name: size for name, size in sizes.items() if size % count}
    if uneven:
        raise ValueError(f"batches of {uneven} do not divide into accumulate={count} micro-batches; choose a multiple")
    deal = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)
    return deal, jax.random.split(key, count)
