"""One training run of LU-ViT's read-out on tokens in memory, as one compiled function.

The model, the loss and the step are those of :mod:`repgls_jax.train`; what is added is the loop over epochs, validation
after each on labels of the noisy kind, and the choice of the best one. Learning rate, the method's own setting and the
seed are arguments of the compiled function, so that a method is compiled once for all its runs of one size.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import Array

from repgls_jax.models import luvit
from repgls_jax.results import metrics
from repgls_jax.train.optimizer import optimizer
from repgls_jax.train.state import Params, TrainState, create
from repgls_jax.train.step import LossFn, make_train_step


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What all runs share.

    Attributes:
      epochs: of training, each followed by a validation; the best one is kept.
      batch: studies a step; a last incomplete batch of an epoch is left out.
      weight_decay, warmup, clip: of the optimizer, see :func:`repgls_jax.train.optimizer.optimizer`.
    """

    epochs: int
    batch: int
    weight_decay: float = 0.05
    warmup: float = 0.1
    clip: float = 1.0

    def steps(self, n: int) -> int:
        """Steps of a run on ``n`` studies; raises ValueError where they do not fill one batch."""
        if n < self.batch:
            raise ValueError(f"{n} training studies do not fill a batch of {self.batch}; take more or smaller ones")
        return self.epochs * (n // self.batch)


class Data(NamedTuple):
    """A hospital as a run sees it; n training, v validation, t test studies.

    Attributes:
      tokens: float [n, l, d].
      labels: name -> [n, ...], what the method reads of the training reports.
      valid_tokens: float [v, l, d].
      valid_labels: [v, c] of 0 and 1, as noisy as the training labels.
      valid_mask: bool [v, c].
      test_tokens: float [t, l, d].
    """

    tokens: Array
    labels: Mapping[str, Array]
    valid_tokens: Array
    valid_labels: Array
    valid_mask: Array
    test_tokens: Array


class Outcome(NamedTuple):
    """What a run leaves, at its best epoch.

    Attributes:
      logits: float32 [t, c] of the test studies.
      rate: float32 [t, c] in (-1, 1), the second head's.
      valid_logits: float32 [v, c].
      curve: float64 [epochs], mean AUROC against the noisy validation labels.
      loss: float64 [epochs], mean training loss of each epoch.
    """

    logits: np.ndarray
    rate: np.ndarray
    valid_logits: np.ndarray
    curve: np.ndarray
    loss: np.ndarray


class Trainer:
    """The runs of one method on one size of data: compiled once, whatever the seed, the data and the settings."""

    def __init__(
        self,
        model: luvit.LUViT,
        schedule: Schedule,
        n: int,
        loss_of: Callable[[Mapping[str, Array], int], LossFn],
    ):
        """Compiles nothing yet.

        Args:
          model: whose read-out is trained.
          schedule: of the runs.
          n: training studies.
          loss_of: (settings, steps of the run) -> loss. The settings may be traced.
        """
        self._model, self._schedule, self._n = model, schedule, n
        steps = schedule.steps(n)

        def transform(settings: Mapping[str, Array]) -> optax.GradientTransformation:
            # AdamW's update is linear in its learning rate, so that a traced one may come after it.
            return optax.chain(optimizer(_optimizer(schedule), steps), optax.scale(settings["learning_rate"]))

        def epoch(state: TrainState, data: Data, settings: Mapping[str, Array], order: Array) -> Any:
            step = make_train_step(loss_of(settings, steps), transform(settings))

            def one(state: TrainState, rows: Array) -> Any:
                batch = {name: values[rows] for name, values in data.labels.items()}
                state, scalars = step(state, {**batch, "image": data.tokens[rows], "index": rows})
                return state, scalars["loss"]

            state, values = jax.lax.scan(one, state, order)
            return state, values.mean()

        def start(params: Params, settings: Mapping[str, Array], seed: Array) -> TrainState:
            return create(params, transform(settings), seed)

        self._epoch, self._start = jax.jit(epoch, donate_argnums=0), jax.jit(start)

    def __call__(self, data: Data, settings: Mapping[str, float], seed: int) -> Outcome:
        """One run.

        Args:
          data: of ``n`` training studies.
          settings: ``learning_rate``, the peak of the schedule, and the method's own.
          seed: of parameters, dropout and the order of the studies.
        """
        schedule = self._schedule
        values = {name: jnp.float32(value) for name, value in settings.items()}
        root = jax.random.key(seed)
        state = self._start(_init(self._model, root, data.tokens[:1]), values, jnp.uint32(seed))
        per_epoch = schedule.steps(self._n) // schedule.epochs
        best, score, curve, losses = state.params, -1.0, [], []
        for number in range(schedule.epochs):
            order = jax.random.permutation(jax.random.fold_in(root, number + 1), self._n)
            order = order[: per_epoch * schedule.batch].reshape(per_epoch, schedule.batch)
            state, loss = self._epoch(state, data, values, order)
            _, now = _validate(self._model, state.params, data.valid_tokens, data.valid_labels, data.valid_mask)
            curve.append(float(now))
            losses.append(float(loss))
            if curve[-1] > score:  # False for NaN, which never becomes the best
                score, best = curve[-1], jax.tree.map(jnp.copy, state.params)
        logits, rate = _predict(self._model, best, data.test_tokens)
        valid, _ = _predict(self._model, best, data.valid_tokens)
        return Outcome(*(np.asarray(x) for x in (logits, rate, valid)), np.array(curve), np.array(losses))


@functools.partial(jax.jit, static_argnums=0)
def _init(model: luvit.LUViT, key: Array, tokens: Array) -> Params:
    return model.init(key, tokens)["params"]


@functools.partial(jax.jit, static_argnums=0)
def _validate(model: luvit.LUViT, params: Params, tokens: Array, labels: Array, mask: Array) -> tuple[Array, Array]:
    logits = model.apply({"params": params}, tokens)["logits"]
    return logits, metrics.mean_auroc(logits, labels, mask)


@functools.partial(jax.jit, static_argnums=0)
def _predict(model: luvit.LUViT, params: Params, tokens: Array) -> tuple[Array, Array]:
    out: Any = model.apply({"params": params}, tokens)
    return out["logits"], out["rate"]


def _optimizer(schedule: Schedule) -> ml_collections.ConfigDict:
    """The optimizer's settings, with a learning rate of 1."""
    return ml_collections.ConfigDict(
        {
            "learning_rate": 1.0,
            "weight_decay": schedule.weight_decay,
            "warmup": schedule.warmup,
            "clip": schedule.clip,
            "layer_decay": 1.0,
            "freeze": (),
        }
    )
