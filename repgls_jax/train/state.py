"""What a training run carries from step to step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from repgls_jax.memory import Memory

Params = Any
Batch = dict[str, Array]


class Peer(struct.PyTreeNode):
    """A second network, trained beside the first by a method that needs two.

    Attributes:
      params: as the first network's.
      opt_state: of the optimizer.
    """

    params: Params
    opt_state: optax.OptState


class TrainState(struct.PyTreeNode):
    """The whole state of a run; restoring it resumes the run exactly.

    Attributes:
      step: scalar int32, steps done; also the position in the data.
      seed: scalar uint32, the one root of all randomness; a step folds its own number in.
      params: nested dict of arrays.
      opt_state: of the optimizer.
      ema: running average of the parameters, shaped like them; None in a run without.
      memory: what the method remembers of the training examples; None for one that remembers nothing.
      peer: the second network; None for a method with one.
    """

    step: Array
    seed: Array
    params: Params
    opt_state: optax.OptState
    ema: Params | None = None
    memory: Memory | None = None
    peer: Peer | None = None

    @property
    def networks(self) -> tuple[Params, ...]:
        """The parameters of every network."""
        return (self.params,) if self.peer is None else (self.params, self.peer.params)

    @property
    def weights(self) -> Params:
        """The parameters to evaluate and to hand on, of the first network: the average where there is one."""
        return self.params if self.ema is None else self.ema

    def key(self) -> Array:
        """The random key of this step."""
        return jax.random.fold_in(jax.random.key(self.seed), self.step)


def create(
    params: Params,
    tx: optax.GradientTransformation,
    seed: int,
    ema: float = 0.0,
    memory: Memory | None = None,
    peer: Params | None = None,
) -> TrainState:
    """The state before the first step.

    Args:
      params: of the network.
      tx: the optimizer.
      seed: of the run.
      ema: above 0 adds the average, which starts at the parameters.
      memory: of a method that has one.
      peer: parameters of the second network of a method that has two.
    """
    average = jax.tree.map(jnp.copy, params) if ema > 0 else None
    second = None if peer is None else Peer(peer, tx.init(peer))
    return TrainState(jnp.int32(0), jnp.uint32(seed), params, tx.init(params), average, memory, second)
