"""The effectful loop around the pure step: mesh, state, data, checkpoints, journal, in that order."""

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh

from repgls_jax.data.meter import Meter
from repgls_jax.train import checkpoint, sharding
from repgls_jax.train import journal as journal_lib
from repgls_jax.train.state import Params, TrainState, create, optimizer
from repgls_jax.train.step import LossFn, make_train_step


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained. One record serves every network; the trainer is the same.

    Attributes:
      name: for the journal.
      init: pure, key -> parameters.
      loss: pure, see :data:`repgls_jax.train.step.LossFn`.
      batches: first step -> this host's batches from that step on, without end.
      validate: (parameters, mesh) -> scalars on validation data.
      best: the scalar of ``validate`` whose maximum marks the best checkpoint.
      meta: JSON stored with the weights.
      meter: told where the time of the input goes; by ``batches``, if it knows, and by the loop.
    """

    name: str
    init: Callable[[jax.Array], Params]
    loss: LossFn
    batches: Callable[[int], Iterator[dict[str, np.ndarray]]]
    validate: Callable[[Params, Mesh], dict[str, float]]
    best: str
    meta: dict[str, Any]
    meter: Meter = dataclasses.field(default_factory=Meter)


class DivergedError(RuntimeError):
    """The loss is not a number."""


def train(
    task: Task,
    config: ml_collections.ConfigDict,
    folder: pathlib.Path,
    journal: journal_lib.Journal,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Mesh]:
    """Trains to the end, from the newest checkpoint in ``folder`` if there is one.

    Args:
      task: what is trained.
      config: steps, batch_size, checkpoint_every, mesh (preset), seed, and the optimizer's settings.
      folder: of the run; checkpoints go to ``folder/checkpoints``, scalars to ``folder/journal.jsonl``.
      journal: what people see.
      mesh: all devices by default.

    Returns:
      The final state and the mesh it lives on.

    Raises:
      DivergedError: the loss became NaN or infinite; names the step.
    """
    mesh = mesh or sharding.make_mesh()
    tx = optimizer(config, config.steps)

    def fresh() -> TrainState:
        return create(task.init(jax.random.key(config.seed)), tx, config.seed)

    shapes = jax.eval_shape(fresh)
    shardings = sharding.shard_state(shapes, mesh, config.mesh)
    log = journal.at(folder / "journal.jsonl")
    count = parameter_overview.count_parameters(shapes.params)
    journal.say(f"  {task.name}: {count:,} parameters, {mesh.size} device(s), preset {config.mesh}")
    checkpoints = checkpoint.Checkpoints(folder / "checkpoints", best=task.best)
    try:
        start = checkpoints.latest()
        if start is None:
            state, start = jax.jit(fresh, out_shardings=shardings)(), 0
        else:
            abstract = jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, shardings)
            state = checkpoints.restore(abstract, start)
            journal.say(f"  {task.name}: resumed at step {start} of {config.steps}")
        log.rewind(start)
        # The state is donated: a step overwrites it in place instead of holding two copies.
        step_fn = jax.jit(make_train_step(task.loss, tx), donate_argnums=0, out_shardings=(shardings, None))
        state = _run(task, config, state, start, step_fn, mesh, checkpoints, log)
    finally:
        checkpoints.close()
    return state, mesh


def _run(
    task: Task,
    config: ml_collections.ConfigDict,
    state: TrainState,
    start: int,
    step_fn: Callable[..., Any],
    mesh: Mesh,
    checkpoints: checkpoint.Checkpoints,
    log: journal_lib.Journal,
) -> TrainState:
    """Steps ``start`` to the end; the scalars of a step are fetched after the next one is dispatched."""
    if start >= config.steps:
        return state
    progress = journal_lib.Progress(log, task.name, start, config.steps, config.batch_size)
    pending: tuple[int, dict[str, jax.Array]] | None = None
    meter, began = task.meter, time.monotonic()
    batches = task.batches(start)
    for step in range(start + 1, config.steps + 1):
        # The step before is still running, and the copy to the device goes on beside it.
        with meter.measure("wait"):
            made = next(batches)
        with meter.measure("transfer"):
            batch = sharding.put_batch(made, mesh)
        state, scalars = step_fn(state, batch)
        if pending is not None:
            progress.update(pending[0], _note(*pending, log))
        pending = (step, scalars)
        if step % config.checkpoint_every == 0 or step == config.steps:
            progress.update(step, _note(*pending, log))
            pending = None
            validated = task.validate(state.params, mesh)
            log.record("valid", step=step, **validated)
            log.say(f"  {task.name} step {step}: " + "  ".join(f"{k} {v:.4f}" for k, v in validated.items()))
            checkpoints.save(step, state, task.meta, validated)
    seconds = time.monotonic() - began
    done = config.steps - start
    log.record(
        "speed",
        step=config.steps,
        seconds=seconds,
        examples_per_second=done * config.batch_size / seconds,
        data_wait_share=meter.waited() / seconds,
        input_seconds=dict(meter.seconds),
    )
    log.say(f"  {task.name} {meter.summary(seconds)}")
    return state


def _note(step: int, scalars: dict[str, jax.Array], log: journal_lib.Journal) -> str:
    """Fetches, checks and records the scalars of a step; returns a few words about it."""
    values = {name: float(value) for name, value in scalars.items()}
    log.record("train", step=step, **values)
    if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
        raise DivergedError(
            f"the loss at step {step} is {values['loss']}, its gradient's norm {values['grad_norm']}; "
            "lower the learning rate, or for negative rates lengthen the policy's warmup or lower its margin_cap. "
            "The last checkpoint is from before"
        )
    return f"loss {values['loss']:.4f}"
