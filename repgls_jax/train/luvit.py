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

from repgls_jax import distributed, findings, losses, policies, rates
from repgls_jax.data import augment, pipeline
from repgls_jax.data import shards as shards_lib
from repgls_jax.data.meter import Meter
from repgls_jax.models import luvit, pretrained
from repgls_jax.results import metrics
from repgls_jax.train import labels, loop, sharding
from repgls_jax.train import parts as parts_lib
from repgls_jax.train.journal import Journal
from repgls_jax.train.state import Batch, Params
from repgls_jax.train.step import LossFn

Forward = Callable[[Params, Array], tuple[Array, Array]]


def make_model(
    settings: ml_collections.ConfigDict, count: int, mesh: Mesh, backbone: pretrained.Backbone | None = None
) -> luvit.LUViT:
    """LU-ViT as the config's ``model`` says, computing on ``mesh``.

    Args:
      settings: the config's ``model``.
      count: of findings.
      mesh: of the run.
      backbone: whose architecture the encoder has, instead of that of the name.

    Raises:
      ValueError: a setting is unknown or out of range.
    """
    return luvit.build(
        settings.name,
        count,
        dropout=settings.dropout,
        drop_path=settings.drop_path,
        dtype=settings.dtype,
        remat=settings.remat,
        scan=settings.scan,
        attention=settings.attention,
        constrain=sharding.constrain(mesh),
        architecture=None if backbone is None else backbone.architecture,
    )


def make_loss(
    model: luvit.LUViT, config: policies.PolicyConfig, steps: int, uncertainty_weight: float, mixup: float = 0.0
) -> LossFn:
    """The pure loss: GLS under the policy, and the report's rate for the second head.

    The second head learns the expert rate of the wording, whatever the policy, so that arms differ in GLS alone.

    Args:
      model: LU-ViT.
      config: the policy and its settings.
      steps: length of the run, of which warm-up and ramp are shares.
      uncertainty_weight: of the second head's Huber loss.
      mixup: parameter of the Beta distribution from which the shares of mixed films are drawn (Zhang et al., ICLR 2018,
        arXiv 1710.09412); 0 mixes none.
    """
    policy = policies.POLICIES[config.name]
    warmup, ramp = round(config.warmup * steps), round(config.ramp * steps)

    def loss(params: Params, batch: Batch, key: Array, step: Array) -> dict[str, losses.Term]:
        drop, draw, mix = jax.random.split(key, 3)
        images = batch["image"]
        own = jnp.ones((images.shape[0], 1), jnp.float32)
        if mixup:
            images = luvit.normalize(images)
            own = jax.random.beta(mix, mixup, mixup, own.shape)
            images = own[..., None, None] * images + (1.0 - own[..., None, None]) * _neighbours(images)
        out: Any = model.apply({"params": params}, images, train=True, rngs={"dropout": drop})
        targets = policy.targets(batch, draw, config)
        r = losses.ramp_negative(targets.r, step, warmup, ramp)
        p = batch["p"]
        wording = jnp.where(jnp.isnan(p), 0.0, rates.hedge_rate(p, jnp))
        mentioned = batch["observed"] & (batch["state"] != findings.NOT_MENTIONED)

        def terms(labels: tuple[Array, ...], share: Array) -> dict[str, losses.Term]:
            y, r, mask, wording, mentioned = labels
            presence = losses.gls_binary(out["logits"], y, r, config.margin_cap)
            error = optax.losses.huber_loss(out["rate"], wording, delta=0.25)
            return {
                "presence": losses.Term(presence, mask * share),
                "uncertainty": losses.Term(error, mentioned * share, uncertainty_weight),
            }

        labels = (targets.y, r, targets.mask, wording, mentioned)
        made = terms(labels, own)
        return losses.joined(made, terms(jax.tree.map(_neighbours, labels), 1.0 - own)) if mixup else made

    return loss


def _neighbours(values: Array) -> Array:
    """[b, ...] with every pair of neighbours exchanged: b is even, and no device needs what another one holds."""
    return values.reshape(-1, 2, *values.shape[1:])[:, ::-1].reshape(values.shape)


def make_forward(model: luvit.LUViT) -> Forward:
    """Jitted inference: (parameters, images [b, h, w, 1]) -> probabilities [b, c], rates [b, c], float32."""

    @jax.jit
    def forward(params: Params, images: Array) -> tuple[Array, Array]:
        out: Any = model.apply({"params": params}, images)
        return jax.nn.sigmoid(out["logits"]), out["rate"]

    return forward


def predict(
    forward: Forward,
    params: Params,
    batches: Iterable[dict[str, np.ndarray]],
    mesh: Mesh,
) -> dict[str, np.ndarray]:
    """Predictions for every example, in order. Called by every process of a job, each of which gets all of them.

    Args:
      forward: from :func:`make_forward`.
      params: its parameters.
      batches: this process's part of each, from :func:`repgls_jax.data.pipeline.eval_batches`: dicts with ``image``
        [b, h, w, 1] uint8 or uint16 and ``index`` [b] int, the number of the example, -1 on padding.
      mesh: to compute on.

    Returns:
      ``probability`` [n, c] float32 in (0, 1) and ``rate`` [n, c] float32 in (-1, 1).
    """
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for batch in batches:
        placed = sharding.put_batch({"image": batch["image"], "index": batch["index"]}, mesh)
        if not kept:
            distributed.compile_together(forward, params, placed["image"])
        index, probability, rate = distributed.gather((placed["index"], *forward(params, placed["image"])))
        valid = index >= 0
        kept.append((index[valid], probability[valid], rate[valid]))
    index, probability, rate = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    order = np.argsort(index)  # a mesh may deal a batch out in another order than the examples'
    return {"probability": probability[order], "rate": rate[order]}


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
      ValueError: the policy asks for what the data does not have, or a pre-trained model cannot be used.
    """
    policy = policies.PolicyConfig.of(config.policy)
    shards, vocabulary = parts[0].shards, parts[0].vocabulary
    joined = parts_lib.training(parts, policy, config.seed)
    images = len(joined["state"])
    steps = max(1, round(config.train.epochs * images / config.train.batch_size))
    train = ml_collections.ConfigDict({**config.train, "seed": config.seed, "steps": steps})
    mesh = sharding.make_mesh(train.mesh, model_parallel=train.model_parallel)
    backbone = pretrained.load(config.model.pretrained) if config.model.pretrained else None
    model = make_model(config.model, len(vocabulary), mesh, backbone)
    stored = shards_lib.Images(shards, "train")
    side = stored.shape[0]
    validate = _validation(config, parts[0], policy, make_forward(model))
    host, hosts = sharding.host_part(mesh)
    meter = Meter()
    task = loop.Task(
        name="luvit",
        meter=meter,
        init=lambda key: model.init(key, jnp.zeros((1, side, side, 1), stored.dtype))["params"],
        weights=None if backbone is None else lambda: {"encoder": pretrained.fit(backbone, side, model.scan)},
        loss=make_loss(model, policy, train.steps, config.model.uncertainty_weight, train.mixup),
        batches=lambda start: pipeline.train_batches(
            [part.shards for part in parts],
            "train",
            joined,
            batch_size=train.batch_size,
            seed=config.seed,
            weights=weights,
            start_step=start,
            host_index=host,
            host_count=hosts,
            augment=augment.Augment() if train.augment else None,
            meter=meter,
        ),
        validate=validate,
        best="mean_auroc",
        meta={
            "model": luvit.describe(model),
            "pretrained": None if backbone is None else backbone.source,
            "vocabulary": vocabulary.name,
            "findings": list(vocabulary.findings),
            "input": luvit.input_contract(stored.dtype, side),
            "policy": dataclasses.asdict(policy),
        },
        identify=lambda numbers: np.array(parts_lib.image_ids(parts))[numbers].tolist(),
    )
    state, mesh = loop.train(task, train, folder, journal, mesh)
    return {"train_images": images, "steps": int(state.step), **validate(state.weights, mesh)}


def _validation(
    config: ml_collections.ConfigDict, part: parts_lib.Part, policy: policies.PolicyConfig, forward: Forward
) -> Callable[[Params, Mesh], dict[str, float]]:
    """What the loop measures at every checkpoint: against labels such as training sees, not against the truth."""
    target, mask = labels.noisy_reference(parts_lib.columns(part, "valid", policy, config.seed))

    def validate(params: Params, mesh: Mesh) -> dict[str, float]:
        size = sharding.round_up(config.evaluate.batch_size, sharding.batch_parts(mesh))
        host, hosts = sharding.host_part(mesh)
        batches = pipeline.eval_batches(part.shards, "valid", {}, batch_size=size, host_index=host, host_count=hosts)
        probability = predict(forward, params, batches, mesh)["probability"]
        return {"mean_auroc": float(metrics.mean_auroc(probability, target, mask))}

    return validate
