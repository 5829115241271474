"""One training run of LU-ViT's read-out on tokens in memory, as one compiled function.

The model, the loss and the step are those of :mod:`repgls_jax.train`; what is added is the loop over epochs, validation
after each on labels of the noisy kind, and the choice of the best one. Learning rate, the method's own setting and the
seed are arguments of the compiled function, so that a method is compiled once for all its runs of one size.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import Array

from repgls_jax import methods
from repgls_jax.models import luvit, vit
from repgls_jax.policies import PolicyConfig
from repgls_jax.results import metrics
from repgls_jax.train import luvit as luvit_train
from repgls_jax.train.optimizer import optimizer
from repgls_jax.train.state import Params, TrainState, create
from repgls_jax.train.step import make_train_step

UNCERTAINTY_WEIGHT = 0.1  # of the second head, as in configs/luvit.py
Settings = Mapping[str, Array]


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
      valid_columns: name -> [v, ...], the same of the validation reports.
      valid_labels: [v, c] of 0 and 1, as noisy as the training labels.
      valid_mask: bool [v, c].
      test_tokens: float [t, l, d].
    """

    tokens: Array
    labels: Mapping[str, Array]
    valid_tokens: Array
    valid_columns: Mapping[str, Array]
    valid_labels: Array
    valid_mask: Array
    test_tokens: Array


class Outcome(NamedTuple):
    """What a run leaves, at its best epoch.

    Attributes:
      logits: float32 [t, c] of the test studies.
      rate: float32 [t, c] in (-1, 1), the second head's.
      valid_logits: float32 [v, c].
      curve: float64 [epochs], AUROC against the noisy validation labels, the mean over findings weighted by positives.
      loss: float64 [epochs], mean training loss of each epoch.
      params: of the first network, at the best epoch.
    """

    logits: np.ndarray
    rate: np.ndarray
    valid_logits: np.ndarray
    curve: np.ndarray
    loss: np.ndarray
    params: Params


class Trainer:
    """The runs of one method on one size of data: compiled once, whatever the seed, the data and the settings."""

    def __init__(self, architecture: vit.Architecture, findings: int, config: PolicyConfig, schedule: Schedule, n: int):
        """Compiles nothing yet.

        Args:
          architecture: of the read-out: its width, heads and MLP width.
          findings: c.
          config: the method and its fixed settings.
          schedule: of the runs.
          n: training studies.
        """
        method = methods.METHODS[config.name]
        self._config, self._method, self._schedule, self._n = config, method, schedule, n
        self._steps = steps = schedule.steps(n)
        self.model = luvit.LUViT(findings, architecture, third=method.third)

        def transform(settings: Settings) -> optax.GradientTransformation:
            # AdamW's update is linear in its learning rate, so that a traced one may come after it.
            return optax.chain(optimizer(_optimizer(schedule), steps), optax.scale(settings["learning_rate"]))

        def epoch(state: TrainState, data: Data, settings: Settings, order: Array) -> Any:
            loss = luvit_train.make_loss(self.model, config, steps, UNCERTAINTY_WEIGHT, hyper=_own(settings))
            step = make_train_step(loss, transform(settings))

            def one(state: TrainState, rows: Array) -> Any:
                batch = {name: values[rows] for name, values in data.labels.items()}
                state, scalars = step(state, {**batch, "image": data.tokens[rows], "index": rows})
                return state, scalars["loss"]

            state, values = jax.lax.scan(one, state, order)
            return state, values.mean()

        def start(params: Params, peer: Params, labels: Any, settings: Settings, seed: Any) -> TrainState:
            memory = methods.start(config, {**methods.values(config), **_own(settings)}, labels)
            return create(params, transform(settings), seed, memory=memory, peer=peer)

        self._epoch, self._start = jax.jit(epoch, donate_argnums=0), jax.jit(start)

    def __call__(self, data: Data, settings: Mapping[str, float], seed: int) -> Outcome:
        """One run.

        Args:
          data: of ``n`` training studies.
          settings: ``learning_rate``, the peak of the schedule, and the method's own.
          seed: of parameters, dropout and the order of the studies.
        """
        schedule, model = self._schedule, self.model
        values = {name: jnp.float32(value) for name, value in settings.items()}
        root = jax.random.key(seed)
        first = _init(model, root, data.tokens[:1])
        peer = _init(model, jax.random.fold_in(root, 0), data.tokens[:1]) if self._method.networks == 2 else None
        state = self._start(first, peer, data.labels, values, jnp.uint32(seed))
        per_epoch = self._steps // schedule.epochs
        best, score, curve, losses = first, -1.0, [], []
        for number in range(schedule.epochs):
            order = jax.random.permutation(jax.random.fold_in(root, number + 1), self._n)
            order = order[: per_epoch * schedule.batch].reshape(per_epoch, schedule.batch)
            state, loss = self._epoch(state, data, values, order)
            logits, now = _validate(model, state.params, data.valid_tokens, data.valid_labels, data.valid_mask)
            curve.append(float(now))
            losses.append(float(loss))
            if curve[-1] > score:  # False for NaN, which never becomes the best
                score, best = curve[-1], jax.tree.map(jnp.copy, state.params)
            state = self._revised(state, data, values, number, logits)
        logits, rate = _predict(model, best, data.test_tokens)
        valid, _ = _predict(model, best, data.valid_tokens)
        told, head, held_out = (np.asarray(x) for x in (logits, rate, valid))
        return Outcome(told, head, held_out, np.array(curve), np.array(losses), best)

    def _revised(self, state: TrainState, data: Data, settings: Settings, number: int, valid: Array) -> TrainState:
        """The state after the method's hook, where one of its moments was in this epoch: it waits for the end of it."""
        hook, per_epoch = self._method.hook, self._steps // self._schedule.epochs
        if hook is None or not any(number < step / per_epoch <= number + 1 for step in hook.steps(self._steps)):
            return state
        assert state.memory is not None  # what a hook works on
        hyper: methods.Hyper = {**methods.values(self._config), **_own(settings)}
        train, _ = _predict(self.model, state.params, data.tokens)
        seen = methods.view(self._config, hyper, data.labels, train)
        held_out = methods.view(self._config, hyper, data.valid_columns, valid)
        return state.replace(memory=hook.apply(state.memory, seen, held_out, hyper))


def _own(settings: Settings) -> dict[str, Array]:
    return {name: value for name, value in settings.items() if name != "learning_rate"}


@functools.partial(jax.jit, static_argnums=0)
def _init(model: luvit.LUViT, key: Array, tokens: Array) -> Params:
    return model.init(key, tokens)["params"]


@functools.partial(jax.jit, static_argnums=0)
def _validate(model: luvit.LUViT, params: Params, tokens: Array, labels: Array, mask: Array) -> tuple[Array, Array]:
    out: Any = model.apply({"params": params}, tokens)
    logits = out["logits"]
    area = metrics.measure(logits, labels, mask, names=("auroc",))["auroc"]
    # By the number of positives: the variance of an AUROC goes with its inverse, and in a plain mean over findings the
    # few noisy positives of the rarest choose the epoch.
    weight = jnp.where(jnp.isfinite(area), (labels * mask).sum(0), 0)
    return logits, jnp.sum(jnp.where(weight > 0, area, 0) * weight) / weight.sum()


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
