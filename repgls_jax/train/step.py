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
from repgls_jax.memory import Memory
from repgls_jax.train.optimizer import frozen
from repgls_jax.train.state import Batch, Params, Peer, TrainState

# (params, batch, key, step) -> name -> term. Masks and weights must not depend on the parameters.
# Of a state with a peer, params are those of both networks, a tuple; of one with a memory, there is a fifth argument,
# the memory with the rows of these examples alone, and the loss may return losses.Told, with new rows.
LossFn = Callable[..., Any]
StepFn = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]
_Part = tuple[Batch, Array, dict[str, Array]]  # some examples, the key of their randomness, their rows of the memory
_Shared = dict[str, Array] | None  # the memory's other arrays; None without a memory
_Nets = tuple[dict[str, Array], ...]  # parameters of every network, by path


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

    A method's memory is read and written by the batch's column "index". Two networks have optimizers of their own, and
    one loss, see :data:`LossFn`; only the first one has an average.

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
        nets = tuple(flax.traverse_util.flatten_dict(params, sep="/") for params in state.networks)
        still = frozen(nets[0], freeze)
        held = tuple({path: value for path, value in net.items() if path in still} for net in nets)
        moved = tuple({path: value for path, value in net.items() if path not in still} for net in nets)
        memory = state.memory
        shared = None if memory is None else memory.shared
        part = (batch, state.key(), {} if memory is None else memory.take(batch["index"]).rows)
        if accumulate == 1:
            (value, (means, rows)), grads = gradient(moved, held, part, shared, state.step, None)
        else:
            deal = _split(part, accumulate)
            (value, (means, rows)), grads = _accumulated(loss, moved, held, deal, shared, state.step)
        scalars = {**means, "loss": value, "grad_norm": optax.tree.norm(grads)}
        opt_states = (state.opt_state,) if state.peer is None else (state.opt_state, state.peer.opt_state)
        made = []
        for grad, still_net, params, opt_state in zip(grads, held, state.networks, opt_states, strict=True):
            whole = grad | {path: jnp.zeros_like(value) for path, value in still_net.items()}
            updates, opt_state = tx.update(flax.traverse_util.unflatten_dict(whole, sep="/"), opt_state, params)
            made.append((optax.apply_updates(params, updates), opt_state))
        (params, opt_state), *peers = made
        average = state.ema if ema == 0 else averaged(state.ema, params, state.step, ema)
        state = state.replace(step=state.step + jnp.int32(1), params=params, opt_state=opt_state, ema=average)
        if memory is not None:
            state = state.replace(memory=memory.put(batch["index"], rows))
        return (state.replace(peer=Peer(*peers[0])) if peers else state), scalars

    return train_step


def _objective(loss: LossFn) -> Callable[..., tuple[Array, tuple[dict[str, Array], dict[str, Array]]]]:
    """(parameters that move, those held, part, shared memory, step, counts) -> the part's share in the loss, and in the
    terms' means, with new rows of the memory.

    ``counts`` are what the masks keep of all parts; None for those of the part itself.
    """

    def objective(
        moved: _Nets, held: _Nets, part: _Part, shared: _Shared, step: Array, counts: Any
    ) -> tuple[Array, tuple[dict[str, Array], dict[str, Array]]]:
        terms, rows = _told(loss, moved, held, part, shared, step)
        means = {}
        for name, term in terms.items():
            total, count = losses.masked_sum(term.values, term.mask)
            means[name] = total / jnp.maximum(count if counts is None else counts[name], 1.0)
        return sum((term.weight * means[name] for name, term in terms.items()), start=jnp.float32(0)), (means, rows)

    return objective


def _told(loss: LossFn, moved: _Nets, held: _Nets, part: _Part, shared: _Shared, step: Array) -> losses.Told:
    """The loss of a part, called as its state asks for."""
    nets = tuple(flax.traverse_util.unflatten_dict(m | h, sep="/") for m, h in zip(moved, held, strict=True))
    batch, key, rows = part
    memory = () if shared is None else (Memory(rows, shared),)
    told = loss(nets if len(nets) > 1 else nets[0], batch, key, step, *memory)
    return told if isinstance(told, losses.Told) else losses.Told(told, {})


def _accumulated(loss: LossFn, moved: _Nets, held: _Nets, parts: _Part, shared: _Shared, step: Array) -> Any:
    """What the gradient of all ``parts`` returns; they are stacked along a first axis, and go one at a time."""
    gradient = jax.value_and_grad(_objective(loss), has_aux=True)

    def count(part: _Part) -> dict[str, Array]:
        # The network's output is not used here, so the compiler drops the network.
        terms = _told(loss, moved, held, part, shared, step).terms
        return {name: losses.masked_sum(term.values, term.mask)[1] for name, term in terms.items()}

    counts = jax.tree.map(lambda c: c.sum(), jax.lax.map(count, parts))

    def add(total: Any, part: _Part) -> tuple[Any, dict[str, Array]]:
        (value, (means, rows)), grads = gradient(moved, held, part, shared, step, counts)
        return jax.tree.map(jnp.add, total, ((value, means), grads)), rows

    first = jax.tree.map(lambda x: x[0], parts)
    (value, (means, _)), grads = jax.eval_shape(gradient, moved, held, first, shared, step, counts)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), ((value, means), grads))
    ((value, means), grads), rows = jax.lax.scan(add, zeros, parts)
    # Rows as they were before _split dealt them out.
    return (value, (means, jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), rows))), grads


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
    batch, key, rows = part
    sizes: Mapping[str, int] = {name: len(values) for name, values in batch.items()}
    uneven = {name: size for name, size in sizes.items() if size % count}
    if uneven:
        raise ValueError(f"batches of {uneven} do not divide into accumulate={count} micro-batches; choose a multiple")
    deal, own = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), (batch, rows))
    return deal, jax.random.split(key, count), own
