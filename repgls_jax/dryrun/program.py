"""The train and evaluation steps that a config asks for, as shapes with shardings: nothing is computed."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax import ShapeDtypeStruct
from jax.sharding import Mesh

from repgls_jax import data, findings, methods
from repgls_jax.dryrun.target import Target
from repgls_jax.models import luvit as models
from repgls_jax.models import pretrained
from repgls_jax.train import luvit, sharding
from repgls_jax.train.optimizer import optimizer
from repgls_jax.train.state import create
from repgls_jax.train.step import make_train_step

STEPS = 10_000  # of the schedules; a number in the program, whose size does not change with it
EXAMPLES = 100_000  # that a method with a memory remembers, where the config does not tell how many films there are


@dataclasses.dataclass(frozen=True)
class Program:
    """What :mod:`repgls_jax.train.loop` would run.

    Attributes:
      config: of configs/luvit.py.
      mesh: the devices.
      model: the network.
      findings: c.
      side: of the films, pixels.
      pixels: their type.
      state: the train state's shapes, with shardings.
      step: jitted (state, batch) -> (state, scalars); takes the state's memory over.
      forward: jitted (parameters, images) -> predictions.
    """

    config: ml_collections.ConfigDict
    mesh: Mesh
    model: models.LUViT
    findings: int
    side: int
    pixels: Any
    state: Any
    step: Any
    forward: Any

    @property
    def parameters(self) -> int:
        """Number of the model's parameters."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.state.params))

    @property
    def unit(self) -> int:
        """What a training batch must be a multiple of."""
        mixes = methods.METHODS[self.config.policy.name].mixes or self.config.train.mixup > 0
        return sharding.batch_parts(self.mesh) * self.config.train.accumulate * (2 if mixes else 1)

    def batch(self, size: int) -> dict[str, ShapeDtypeStruct]:
        """The shapes of a training batch of ``size`` films, as :mod:`repgls_jax.train.parts` joins them.

        Raises:
          ValueError: the size does not divide over the devices and micro-batches.
        """
        if size % self.unit:
            raise ValueError(
                f"a batch of {size} does not divide over {sharding.batch_parts(self.mesh)} parts and "
                f"{self.config.train.accumulate} micro-batches; choose a multiple of {self.unit}"
            )
        shapes = labels(self.config.policy.name, size, self.findings)
        shapes["index"] = ((size,), jnp.int32)
        shapes["image"] = ((size, self.side, self.side, 1), self.pixels)
        placed = sharding.batch_sharding(self.mesh)
        return {name: ShapeDtypeStruct(shape, dtype, sharding=placed) for name, (shape, dtype) in shapes.items()}

    def images(self, size: int) -> ShapeDtypeStruct:
        """The shape of an evaluation batch of at least ``size`` films."""
        size = sharding.round_up(size, sharding.batch_parts(self.mesh))
        shape = (size, self.side, self.side, 1)
        return ShapeDtypeStruct(shape, self.pixels, sharding=sharding.batch_sharding(self.mesh))


def labels(method: str, size: int, count: int) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and type of the label columns that a method reads of ``size`` films."""
    made = methods.METHODS[method]
    columns = {"state": jnp.int8, "p": jnp.float32, "observed": jnp.bool_}
    columns |= {"rate": jnp.float32} if made.rates else {}
    columns |= {name: jnp.float32 if name == "belief" else jnp.int8 for name in made.needs}
    return {name: ((size, count), dtype) for name, dtype in columns.items()}


def vocabulary(config: ml_collections.ConfigDict) -> findings.Vocabulary:
    """The findings of the config's data set, by its name alone: the data set need not be there."""
    name = config.data.options.get("findings", "")
    return findings.vocabulary(name) if name else data.PhantomSource.vocabulary


def build(config: ml_collections.ConfigDict, target: Target) -> Program:
    """The program of ``config`` on ``target``.

    Raises:
      ValueError: the config asks for what does not exist or does not fit the devices.
    """
    train = ml_collections.ConfigDict({**config.train, "seed": config.seed, "steps": STEPS})
    mesh = sharding.make_mesh(train.mesh, target.devices, train.model_parallel)
    count, side = len(vocabulary(config)), config.data.options.image_size
    pixels = jnp.uint16 if config.data.options.get("bits", 8) == 16 else jnp.uint8
    folder = config.model.pretrained
    policy = methods.settings(config.policy)
    method = methods.METHODS[policy.name]
    model = luvit.make_model(config.model, count, mesh, pretrained.load(folder) if folder else None, method.third)
    tx = optimizer(train, STEPS)

    def fresh() -> Any:
        film = jnp.zeros((1, side, side, 1), pixels)
        params = model.init(jax.random.key(0), film)["params"]
        shapes = labels(policy.name, config.data.options.get("count", EXAMPLES), count)
        known = {name: jnp.zeros(shape, kind) for name, (shape, kind) in shapes.items()}
        memory = methods.start(policy, methods.values(policy), known)
        return create(params, tx, 0, train.ema, memory, params if method.networks == 2 else None)

    shapes = jax.eval_shape(fresh)
    placed = sharding.shard_state(shapes, mesh, train.mesh)
    loss = luvit.make_loss(model, policy, STEPS, config.model.uncertainty_weight, train.mixup)
    step = make_train_step(loss, tx, train.accumulate, train.ema, tuple(train.freeze))
    return Program(
        config=config,
        mesh=mesh,
        model=model,
        findings=count,
        side=side,
        pixels=pixels,
        state=jax.tree.map(lambda s, d: ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, placed),
        step=jax.jit(step, donate_argnums=0, out_shardings=(placed, None)),
        forward=luvit.make_forward(model),
    )
