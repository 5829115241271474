"""What a training run carries from step to step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

Params = Any
Batch = dict[str, Array]


class TrainState(struct.PyTreeNode):
    """The whole state of a run; restoring it resumes the run exactly.

    Attributes:
      step: scalar int32, steps done; also the position in the data.
      seed: scalar uint32, the one root of all randomness; a step folds its own number in.
      params: nested dict of arrays.
      opt_state: of the optimizer.
      ema: running average of the parameters, shaped like them; None in a run without.
    """

    step: Array
    seed: Array
    params: Params
    opt_state: optax.OptState
    ema: Params | None = None

    @property
    def weights(self) -> Params:
        """The parameters to evaluate and to hand on: the average where there is one."""
        return self.params if self.ema is None else self.ema

    def key(self) -> Array:
        """The random key of this step."""
        return jax.random.fold_in(jax.random.key(self.seed), self.step)


def create(params: Params, tx: optax.GradientTransformation, seed: int, ema: float = 0.0) -> TrainState:
    """The state before the first step; ``ema`` above 0 adds the average, which starts at the parameters."""
    average = jax.tree.map(jnp.copy, params) if ema > 0 else None
    return TrainState(jnp.int32(0), jnp.uint32(seed), params, tx.init(params), average)
