"""Training LU-ViT under a method, and its predictions."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from repgls_jax import distributed, findings, losses, methods, rates
from repgls_jax.data import augment, pipeline
from repgls_jax.data import shards as shards_lib
from repgls_jax.data.meter import Meter
from repgls_jax.dryrun import flops
from repgls_jax.memory import Memory
from repgls_jax.models import luvit, pretrained
from repgls_jax.policies import PolicyConfig
from repgls_jax.results import metrics
from repgls_jax.train import labels, loop, sharding
from repgls_jax.train import parts as parts_lib
from repgls_jax.train.journal import Journal
from repgls_jax.train.state import Batch, Params, TrainState
from repgls_jax.train.step import LossFn

Forward = Callable[[Params, Array], tuple[Array, Array]]


def make_model(
    settings: ml_collections.ConfigDict,
    count: int,
    mesh: Mesh,
    backbone: pretrained.Backbone | None = None,
    third: bool = False,
) -> luvit.LUViT:
    """LU-ViT as the config's ``model`` says, computing on ``mesh``.

    Args:
      settings: the config's ``model``.
      count: of findings.
      mesh: of the run.
      backbone: whose architecture the encoder has, instead of that of the name.
      third: a head for "uncertain", where the method has one.

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
        third=third,
    )


def make_loss(
    model: luvit.LUViT,
    config: PolicyConfig,
    steps: int,
    uncertainty_weight: float,
    mixup: float = 0.0,
    hyper: methods.Hyper | None = None,
) -> LossFn:
    """The pure loss: that of the method, and the report's rate for the second head.

    The second head learns the expert rate of the wording, whatever the method, so that arms differ in one thing alone.

    Args:
      model: LU-ViT, or what answers as it does.
      config: the method and its settings.
      steps: length of the run, of which warm-up and ramp are shares.
      uncertainty_weight: of the second head's Huber loss.
      mixup: parameter of the Beta distribution from which the shares of mixed films are drawn (Zhang et al., ICLR 2018,
        arXiv 1710.09412); 0 mixes none.
      hyper: hyperparameters of the method that are not the config's; they may be traced.

    Raises:
      ValueError: films are to be mixed, but the method does so itself, or looks at single ones.
    """
    method = methods.METHODS[config.name]
    numbers = {**methods.values(config), **(hyper or {})}
    settings = methods.applied(config, numbers)
    warmup, ramp = round(config.warmup * steps), round(config.ramp * steps)
    alpha: float | Array = numbers["alpha"] if method.mixes else mixup
    mixing = method.mixes or mixup > 0
    if mixup and (method.mixes or method.update or method.exchange):
        raise ValueError(
            f"mixup is {mixup}, but {config.name!r} mixes films itself or looks at single ones; set it to 0"
        )

    def loss(params: Params, batch: Batch, key: Array, step: Array, memory: Memory | None = None) -> Any:
        drop, draw, mix = jax.random.split(key, 3)
        images = batch["image"]
        own = jnp.ones((images.shape[0], 1), jnp.float32)
        if mixing:
            images = images if jnp.issubdtype(images.dtype, jnp.floating) else luvit.normalize(images)
            own = _shares(mix, alpha, own.shape)
            wide = own.reshape(-1, *[1] * (images.ndim - 1))
            images = wide * images + (1.0 - wide) * _neighbours(images)
        nets = params if method.exchange else (params,)
        outs: Any = [
            model.apply(
                {"params": net}, images, train=True, rngs={"dropout": jax.random.fold_in(drop, k) if k else drop}
            )
            for k, net in enumerate(nets)
        ]
        targets = method.policy.targets(batch, draw, settings)
        targets = targets._replace(r=losses.ramp_negative(targets.r, step, warmup, ramp))
        progress = step.astype(jnp.float32) / steps
        shared = {} if memory is None else memory.shared

        def terms(each: Any, share: Array) -> dict[str, losses.Term]:
            labels, targets, rows = each
            seen = methods.Seen(labels, targets, numbers, settings, progress, rows, shared)
            mask = targets.mask * share
            made = _presence(method, outs, seen)
            weighed = mask if method.weigh is None else mask * method.weigh(seen)
            said = {name: losses.Term(values, weighed) for name, values in made.items()}
            error = optax.losses.huber_loss(outs[0]["rate"], _wording(labels["p"]), delta=0.25)
            mentioned = labels["observed"] & (labels["state"] != findings.NOT_MENTIONED)
            return said | {"uncertainty": losses.Term(error, mentioned * share, uncertainty_weight)}

        labels = {name: values for name, values in batch.items() if name not in ("image", "index")}
        each = (labels, targets, {} if memory is None else memory.rows)
        made = terms(each, own)
        if mixing:
            made = losses.joined(made, terms(jax.tree.map(_neighbours, each), 1.0 - own))
        if method.update is None:
            return made
        seen = methods.Seen(labels, targets, numbers, settings, progress, each[2], shared)
        return losses.Told(made, method.update(jax.lax.stop_gradient(outs[0]["logits"]), seen))

    return loss


def _presence(method: methods.Method, outs: Any, seen: methods.Seen) -> dict[str, Array]:
    """The method's losses [b, c] by the name of their term: "presence" of the first network, "peer" of the second."""
    if method.exchange:
        first, second = method.exchange(outs[0]["logits"], outs[1]["logits"], seen)
        return {"presence": first, "peer": second}
    further = (outs[0]["third"],) if method.third else ()
    return {"presence": method.loss(outs[0]["logits"], seen, *further)}


def _wording(p: Array) -> Array:
    """The expert rate of certainties; 0 where there are none."""
    return jnp.where(jnp.isnan(p), 0.0, rates.hedge_rate(p, jnp))


def _shares(key: Array, alpha: float | Array, shape: tuple[int, ...]) -> Array:
    """Shares drawn from Beta(alpha, alpha); 1 where alpha is 0, which the distribution cannot take."""
    safe = jnp.maximum(alpha, 1e-3)
    return jnp.where(alpha > 0, jax.random.beta(key, safe, safe, shape), 1.0)


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
    """Trains LU-ViT under the config's method; checkpoints and journal go to ``folder``.

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
      ValueError: the method asks for what the data does not have, or a pre-trained model cannot be used.
    """
    policy = methods.settings(config.policy)
    method = methods.METHODS[policy.name]
    shards, vocabulary = parts[0].shards, parts[0].vocabulary
    joined = parts_lib.training(parts, policy, config.seed)
    images = len(joined["state"])
    steps = max(1, round(config.train.epochs * images / config.train.batch_size))
    train = ml_collections.ConfigDict({**config.train, "seed": config.seed, "steps": steps})
    mesh = sharding.make_mesh(train.mesh, model_parallel=train.model_parallel)
    backbone = pretrained.load(config.model.pretrained) if config.model.pretrained else None
    model = make_model(config.model, len(vocabulary), mesh, backbone, method.third)
    stored = shards_lib.Images(shards, "train")
    side = stored.shape[0]
    forward = make_forward(model)
    validate = _validation(config, parts[0], policy, forward)
    host, hosts = sharding.host_part(mesh)
    meter = Meter()
    task = loop.Task(
        name="luvit",
        flops=flops.training(model, side) * method.networks,
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
        memory=jax.device_get(methods.start(policy, methods.values(policy), dict[str, Any](joined))),
        networks=method.networks,
        revise=_revision(config, parts, joined, policy, forward),
        revised=method.hook.steps(train.steps) if method.hook else (),
    )
    state, mesh = loop.train(task, train, folder, journal, mesh)
    return {"train_images": images, "steps": int(state.step), **validate(state.weights, mesh)}


def _validation(
    config: ml_collections.ConfigDict, part: parts_lib.Part, policy: PolicyConfig, forward: Forward
) -> Callable[[Params, Mesh], dict[str, float]]:
    """What the loop measures at every checkpoint: against labels such as training sees, not against the truth."""
    target, mask = labels.noisy_reference(parts_lib.columns(part, "valid", policy, config.seed))

    def validate(params: Params, mesh: Mesh) -> dict[str, float]:
        probability = _probabilities(config, [part], "valid", params, mesh, forward)
        return {"mean_auroc": float(metrics.mean_auroc(probability, target, mask))}

    return validate


def _probabilities(
    config: ml_collections.ConfigDict,
    parts: Sequence[parts_lib.Part],
    split: str,
    params: Params,
    mesh: Mesh,
    forward: Forward,
) -> np.ndarray:
    """Probabilities [n, c] for a split of all parts, images as they are."""
    size = sharding.round_up(config.evaluate.batch_size, sharding.batch_parts(mesh))
    host, hosts = sharding.host_part(mesh)
    folders = [part.shards for part in parts]
    batches = pipeline.eval_batches(folders, split, {}, batch_size=size, host_index=host, host_count=hosts)
    return predict(forward, params, batches, mesh)["probability"]


def _revision(
    config: ml_collections.ConfigDict,
    parts: Sequence[parts_lib.Part],
    columns: Mapping[str, np.ndarray],
    policy: PolicyConfig,
    forward: Forward,
) -> Callable[[TrainState, Mesh], Memory] | None:
    """The method's hook, with predictions for the training split and the first part's validation split; or None."""
    hook, hyper = methods.METHODS[policy.name].hook, methods.values(policy)
    if hook is None:
        return None
    found = parts_lib.columns(parts[0], "valid", policy, config.seed)
    valid = {name: values for name, values in found.items() if name in columns}

    def revise(state: TrainState, mesh: Mesh) -> Memory:
        assert hook is not None and state.memory is not None

        def view(over: Sequence[parts_lib.Part], split: str, known: Mapping[str, Any]) -> methods.View:
            p = np.clip(_probabilities(config, over, split, state.weights, mesh, forward), 1e-7, 1 - 1e-7)
            return methods.view(policy, hyper, known, jnp.log(p) - jnp.log1p(-p))

        seen = view(parts, "train", columns), view(parts[:1], "valid", valid)
        return jax.device_get(hook.apply(jax.device_get(state.memory), *seen, hyper))

    return revise
