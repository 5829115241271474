"""What a training run carries from step to step, and the optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
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
    """

    step: Array
    seed: Array
    params: Params
    opt_state: optax.OptState

    def key(self) -> Array:
        """The random key of this step."""
        return jax.random.fold_in(jax.random.key(self.seed), self.step)


def create(params: Params, tx: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.int32(0), jnp.uint32(seed), params, tx.init(params))


def optimizer(config: ml_collections.ConfigDict, steps: int) -> optax.GradientTransformation:
    """AdamW with linear warm-up, cosine decay to zero and clipping by global norm; decays matrices only.

    Args:
      config: learning_rate, weight_decay, warmup (share of the run, in [0, 1)), clip (global norm).
      steps: length of the run.
    """
    warmup = max(1, round(config.warmup * steps))
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, max(steps, warmup + 1))

    def matrices(params: Params) -> Params:
        return jax.tree.map(lambda p: p.ndim > 1, params)

    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(schedule, b2=0.98, weight_decay=config.weight_decay, mask=matrices),
    )
