"""The pure train step. It knows nothing of files, clocks or devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array

from repgls_jax.train.state import Batch, Params, TrainState

# (params, batch, key, step) -> (scalar loss, scalars to report)
LossFn = Callable[[Params, Batch, Array, Array], tuple[Array, dict[str, Array]]]
StepFn = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]


def make_train_step(loss: LossFn, tx: optax.GradientTransformation) -> StepFn:
    """One optimizer step, to be jitted by the caller with its shardings.

    Returns:
      Function (state, batch) -> (state, scalars): the loss's own scalars with "loss" and "grad_norm" added.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        def of_params(params: Params) -> tuple[Array, dict[str, Array]]:
            return loss(params, batch, state.key(), state.step)

        (value, scalars), grads = jax.value_and_grad(of_params, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        scalars = {**scalars, "loss": value, "grad_norm": optax.tree.norm(grads)}
        return state.replace(step=state.step + jnp.int32(1), params=params, opt_state=opt_state), scalars

    return train_step
