"""How a run begins: fresh, perhaps with weights brought along, or where its newest sound checkpoint stands."""

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from repgls_jax.memory import Memory
from repgls_jax.train.checkpoint import Checkpoints
from repgls_jax.train.state import TrainState

Weights = dict[str, Any]


def state(
    checkpoints: Checkpoints,
    make: Callable[[], TrainState],
    shapes: TrainState,
    shardings: Any,
    weights: Callable[[], Weights] | None,
    memory: Memory | None = None,
) -> tuple[TrainState, int]:
    """The state to go on from, and its step: of the newest sound checkpoint, or fresh where there is none.

    Raises:
      DamagedError: there are checkpoints, and none is sound.
      ValueError: the checkpoint, or the weights, are of another network.
    """
    start = checkpoints.choose()
    if start is None:
        return fresh(make, shapes, shardings, weights() if weights else None, memory), 0
    abstract = jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, shardings)
    return checkpoints.restore(abstract, start), start


def fresh(
    make: Callable[[], TrainState],
    shapes: TrainState,
    shardings: Any,
    weights: Weights | None,
    memory: Memory | None = None,
) -> TrainState:
    """The state before the first step, on its devices; arrays of ``weights`` replace those initialised.

    Args:
      make: pure, the state as it is initialised.
      shapes: of the state.
      shardings: of the state.
      weights: nested dict of host arrays, a part of the parameters' tree; None for none. Every network gets them.
      memory: host arrays, the method's memory; None for none.

    Raises:
      ValueError: weights that the network has no place for, or of other shapes; names all of them.
    """
    flat = flax.traverse_util.flatten_dict(weights or {})
    places = flax.traverse_util.flatten_dict(shapes.params)
    wrong = [
        f"{'/'.join(path)} " + ("is unknown" if path not in places else f"{places[path].shape} gets {np.shape(value)}")
        for path, value in flat.items()
        if path not in places or places[path].shape != np.shape(value)
    ]
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ValueError(
            f"weights do not fit the network: {'; '.join(wrong[:8])}{more}. Choose the model and image size that they "
            "were made for"
        )
    made = jax.jit(make, out_shardings=shardings)()
    if memory is not None:
        made = made.replace(memory=placed(memory, shardings.memory))
    if not flat:
        return made
    if made.peer is not None:
        made = made.replace(peer=made.peer.replace(params=_with(made.peer.params, flat, shardings.peer.params)))
    made = made.replace(params=_with(made.params, flat, shardings.params))
    if made.ema is not None:  # an average that starts elsewhere would remember the random start
        made = made.replace(ema=_with(made.ema, flat, shardings.ema))
    return made


def _with(params: Any, flat: dict[tuple[str, ...], Any], shardings: Any) -> Any:
    """``params`` with the arrays of ``flat`` in their places, each process giving its devices their parts."""
    made, where = flax.traverse_util.flatten_dict(params), flax.traverse_util.flatten_dict(shardings)
    for path, value in flat.items():
        made[path] = _put(np.asarray(value, made[path].dtype), where[path])
    return flax.traverse_util.unflatten_dict(made)


def blank(memory: Memory | None) -> Memory | None:
    """Zeros of the memory's shapes; None without."""
    return None if memory is None else jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), memory)


def placed(memory: Memory, shardings: Any) -> Memory:
    """A memory of host arrays, which every process has whole, on its devices."""
    return jax.tree.map(lambda x, where: _put(np.asarray(x), where), memory, shardings)


def _put(host: np.ndarray, where: jax.sharding.Sharding) -> jax.Array:
    def part(index: Any) -> np.ndarray:
        return np.array(host[index])  # a copy: the state is overwritten in place

    return jax.make_array_from_callback(host.shape, where, part)
