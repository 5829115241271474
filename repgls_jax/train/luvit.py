"""Training LU-ViT under a label policy, and its predictions."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from repgls_jax import findings, losses, policies, rates
from repgls_jax.data import augment, pipeline
from repgls_jax.data import shards as shards_lib
from repgls_jax.data.meter import Meter
from repgls_jax.models import luvit
from repgls_jax.results import metrics
from repgls_jax.train import labels, loop, sharding
from repgls_jax.train import parts as parts_lib
from repgls_jax.train.journal import Journal
from repgls_jax.train.state import Batch, Params


def make_loss(
    model: luvit.LUViT, config: policies.PolicyConfig, steps: int, uncertainty_weight: float
) -> Callable[..., Any]:
    """The pure loss: GLS under the policy, and the report's rate for the second head.

    The second head learns the expert rate of the wording, whatever the policy, so that arms differ in GLS alone.

    Args:
      model: LU-ViT.
      config: the policy and its settings.
      steps: length of the run, of which warm-up and ramp are shares.
      uncertainty_weight: of the second head's Huber loss.
    """
    policy = policies.POLICIES[config.name]
    warmup, ramp = round(config.warmup * steps), round(config.ramp * steps)

    def loss(params: Params, batch: Batch, key: Array, step: Array) -> tuple[Array, dict[str, Array]]:
        drop, draw = jax.random.split(key)
        out: Any = model.apply({"params": params}, batch["image"], train=True, rngs={"dropout": drop})
        targets = policy.targets(batch, draw, config)
        r = losses.ramp_negative(targets.r, step, warmup, ramp)
        presence = losses.masked_mean(losses.gls_binary(out["logits"], targets.y, r, config.margin_cap), targets.mask)
        p = batch["p"]
        wording = rates.hedge_rate(p, jnp)
        mentioned = batch["observed"] & (batch["state"] != findings.NOT_MENTIONED)
        error = optax.losses.huber_loss(out["rate"], jnp.where(mentioned, wording, 0.0), delta=0.25)
        uncertainty = losses.masked_mean(error, mentioned)
        return presence + uncertainty_weight * uncertainty, {"presence": presence, "uncertainty": uncertainty}

    return loss


def make_forward(model: luvit.LUViT) -> Callable[[Params, Array], tuple[Array, Array]]:
    """Jitted inference: (parameters, images [b, h, w, 1]) -> probabilities [b, c], rates [b, c], float32."""

    @jax.jit
    def forward(params: Params, images: Array) -> tuple[Array, Array]:
        out: Any = model.apply({"params": params}, images)
        return jax.nn.sigmoid(out["logits"]), out["rate"]

    return forward


def predict(
    forward: Callable[[Params, Array], tuple[Array, Array]],
    params: Params,
    batches: Iterable[dict[str, np.ndarray]],
    mesh: Mesh,
) -> dict[str, np.ndarray]:
    """Predictions for every valid example, in order.

    Args:
      forward: from :func:`make_forward`.
      params: its parameters.
      batches: dicts with ``image`` [b, h, w, 1] uint8 or uint16 and ``valid`` [b], False on padding.
      mesh: to compute on.

    Returns:
      ``probability`` [n, c] float32 in (0, 1) and ``rate`` [n, c] float32 in (-1, 1).
    """

    kept: list[tuple[np.ndarray, np.ndarray]] = []
    for batch in batches:
        valid = np.asarray(batch["valid"], bool)
        images = sharding.put_batch({"image": batch["image"]}, mesh)["image"]
        probability, rate = (np.asarray(a) for a in forward(params, images))
        kept.append((probability[valid], rate[valid]))
    probability, rate = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    return {"probability": probability, "rate": rate}


def run(
    config: ml_collections.ConfigDict,
    parts: Sequence[parts_lib.Part],
    weights: Sequence[float],
    folder: pathlib.Path,
    journal: Journal,
) -> dict[str, Any]:
    """Trains LU-ViT under the config's policy; checkpoints and journal go to ``folder``.

    Args:
      config: of configs/luvit.py.
      parts: data sets to train on, one or more; the first gives the vocabulary and the validation split.
      weights: how often images of each part are drawn, or none for by their number. An epoch is as many images as the
        parts have together.
      folder: of the run.
      journal: told of progress.

    Returns:
      Summary: images, steps, and the last validation.

    Raises:
      ValueError: the policy asks for what the data does not have.
    """
    policy = policies.PolicyConfig.of(config.policy)
    shards, vocabulary = parts[0].shards, parts[0].vocabulary
    joined = parts_lib.training(parts, policy, config.seed)
    images = len(joined["state"])
    steps = max(1, round(config.train.epochs * images / config.train.batch_size))
    train = ml_collections.ConfigDict({**config.train, "seed": config.seed, "steps": steps})
    model = luvit.build(config.model.name, len(vocabulary), config.model.dropout)
    stored = shards_lib.Images(shards, "train")
    side = stored.shape[0]
    forward = make_forward(model)
    target, mask = labels.noisy_reference(parts_lib.columns(parts[0], "valid", policy, config.seed))

    def validate(params: Params, mesh: Mesh) -> dict[str, float]:
        size = sharding.round_up(config.evaluate.batch_size, mesh.size)
        batches = pipeline.eval_batches(shards, "valid", {}, batch_size=size)
        probability = predict(forward, params, batches, mesh)["probability"]
        return {"mean_auroc": float(metrics.mean_auroc(probability, target, mask))}

    meter = Meter()
    task = loop.Task(
        name="luvit",
        meter=meter,
        init=lambda key: model.init(key, jnp.zeros((1, side, side, 1), stored.dtype))["params"],
        loss=make_loss(model, policy, train.steps, config.model.uncertainty_weight),
        batches=lambda start: pipeline.train_batches(
            [part.shards for part in parts],
            "train",
            joined,
            batch_size=train.batch_size,
            seed=config.seed,
            weights=weights,
            start_step=start,
            host_index=jax.process_index(),
            host_count=jax.process_count(),
            augment=augment.Augment() if train.augment else None,
            meter=meter,
        ),
        validate=validate,
        best="mean_auroc",
        meta={
            "model": config.model.name,
            "vocabulary": vocabulary.name,
            "findings": list(vocabulary.findings),
            "input": luvit.input_contract(stored.dtype, side),
            "policy": dataclasses.asdict(policy),
        },
    )
    state, mesh = loop.train(task, train, folder, journal)
    return {"train_images": images, "steps": int(state.step), **validate(state.params, mesh)}
