"""The effectful loop around the pure step: mesh, state, data, checkpoints, journal, in that order."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh

from repgls_jax import distributed
from repgls_jax.data.meter import Meter
from repgls_jax.dryrun import flops
from repgls_jax.memory import Memory
from repgls_jax.train import begin, board, divergence, place, profiler, sharding, telemetry
from repgls_jax.train import journal as journal_lib
from repgls_jax.train.checkpoint import Checkpoints
from repgls_jax.train.divergence import DivergedError as DivergedError
from repgls_jax.train.divergence import Done
from repgls_jax.train.optimizer import optimizer
from repgls_jax.train.signals import Stop, StoppedError
from repgls_jax.train.state import Params, TrainState, create
from repgls_jax.train.step import LossFn, make_train_step


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained. One record serves every network; the trainer is the same.

    Attributes:
      name: for the journal.
      init: pure, key -> parameters.
      loss: pure, see :data:`repgls_jax.train.step.LossFn`.
      batches: first step -> this host's batches from that step on, without end. A column "index" [b] int, the examples'
        numbers in the data, is kept for the record of a divergence.
      validate: (parameters, mesh) -> scalars on validation data. The parameters are the moving average, if one is kept.
      best: the scalar of ``validate`` whose maximum marks the best checkpoint.
      meta: JSON stored with the weights.
      flops: operations that a step needs for one example, without recomputation; 0 to count the step's own.
      meter: told where the time of the input goes; by ``batches``, if it knows, and by the loop.
      weights: gives host arrays, a part of the parameters' tree, that replace those initialised when a run starts; not
        called when it goes on.
      identify: numbers of examples -> their image ids, for the record of a divergence.
      memory: host arrays, what the method remembers at the start; None for nothing.
      networks: 1, or 2 for a method with a peer, whose parameters are initialised by another key.
      revise: (state, mesh) -> host arrays, the memory anew; called by every process.
      revised: steps after which it is, in order.
    """

    name: str
    init: Callable[[jax.Array], Params]
    loss: LossFn
    batches: Callable[[int], Iterator[dict[str, np.ndarray]]]
    validate: Callable[[Params, Mesh], dict[str, float]]
    best: str
    meta: dict[str, Any]
    flops: int = 0
    meter: Meter = dataclasses.field(default_factory=Meter)
    weights: Callable[[], dict[str, Any]] | None = None
    identify: Callable[[np.ndarray], list[str]] | None = None
    memory: Memory | None = None
    networks: int = 1
    revise: Callable[[TrainState, Mesh], Memory] | None = None
    revised: tuple[int, ...] = ()


def train(
    task: Task,
    config: ml_collections.ConfigDict,
    folder: pathlib.Path,
    journal: journal_lib.Journal,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Mesh]:
    """Trains to the end, from the newest sound checkpoint in ``folder`` if there is one. Called by every process.

    Args:
      task: what is trained.
      config: steps, batch_size, checkpoint_every, seed, mesh (preset), model_parallel, accumulate, ema, and the
        optimizer's settings.
      folder: of the run; checkpoints go to ``folder/checkpoints``, scalars to ``folder/journal.jsonl`` and, where
        tensorboardX is installed, to ``folder/tensorboard``, a profile to ``folder/profile``.
      journal: what people see.
      mesh: all devices by default.

    Returns:
      The final state and the mesh it lives on.

    Raises:
      DivergedError: the loss became NaN or infinite; names the step, whose batch is in ``folder/diverged.json``.
      StoppedError: a signal asked for the end; the state is saved.
      DamagedError: there are checkpoints, and none is sound.
      DiskFullError: there is no space for a checkpoint.
      ValueError: the checkpoint, or the weights to start with, are of another network; names what differs.
    """
    mesh = mesh or sharding.make_mesh(config.mesh, model_parallel=config.model_parallel)
    tx = optimizer(config, config.steps)

    def make() -> TrainState:
        key = jax.random.key(config.seed)
        peer = task.init(jax.random.fold_in(key, 1)) if task.networks == 2 else None
        return create(task.init(key), tx, config.seed, config.ema, begin.blank(task.memory), peer)

    shapes = jax.eval_shape(make)
    shardings = sharding.shard_state(shapes, mesh, config.mesh)
    log = journal.at(folder / "journal.jsonl")
    count = parameter_overview.count_parameters(shapes.params)
    journal.say(f"  {task.name}: {count:,} parameters, {mesh.size} device(s), preset {config.mesh}")
    checkpoints = Checkpoints(place.of(folder), best=task.best, journal=log)
    try:
        state, start = begin.state(checkpoints, make, shapes, shardings, task.weights, task.memory)
        if start:
            journal.say(f"  {task.name}: resumed at step {start} of {config.steps}")
        log.rewind(start)
        if log.path is not None and board.available():
            log.board = board.Board(folder / "tensorboard", start)
        step = make_train_step(task.loss, tx, config.accumulate, config.ema, tuple(config.freeze))
        # The state is donated: a step overwrites it in place instead of holding two copies.
        step_fn = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
        with Stop(mesh, log) as stop:
            state = _Run(task, config, folder, mesh, checkpoints, log, step_fn, stop, shardings).to_the_end(
                state, start
            )
    finally:
        if log.board is not None:
            log.board.close()
        checkpoints.close()
    return state, mesh


@dataclasses.dataclass
class _Run:
    """What the loop works with."""

    task: Task
    config: ml_collections.ConfigDict
    folder: pathlib.Path
    mesh: Mesh
    checkpoints: Checkpoints
    log: journal_lib.Journal
    step_fn: jax.stages.Wrapped
    stop: Stop
    shardings: Any

    def to_the_end(self, state: TrainState, start: int) -> TrainState:
        """Steps ``start`` to the last; the scalars of a step are fetched after the next one is dispatched."""
        config, meter = self.config, self.task.meter
        if start >= config.steps:
            return state
        batches = self.task.batches(start)
        first = next(batches)
        step_fn, costs = self._compiled(state, sharding.put_batch(first, self.mesh))
        progress = journal_lib.Progress(self.log, self.task.name, start, config.steps, config.batch_size)
        pending: Done | None = None
        began, waited = time.monotonic(), meter.waited()
        with profiler.Profiler(self.folder / "profile", self.log) as profile:
            for step in range(start + 1, config.steps + 1):
                if profile.begins(step):
                    jax.block_until_ready(state)
                    profile.start()
                # The step before is still running, and the copy to the device goes on beside it.
                with meter.measure("wait"):
                    made = first if step == start + 1 else next(batches)
                with meter.measure("transfer"):
                    batch = sharding.put_batch(made, self.mesh)
                state, scalars = step_fn(state, batch)
                if pending is not None:
                    progress.update(pending.step, self._note(pending, costs))
                pending = Done(step, scalars, made.get("index"))
                number = self.stop.asked(step)
                saving = step % config.checkpoint_every == 0 or step == config.steps
                revising = step in self.task.revised
                if saving or number or revising or profile.ends(step):
                    progress.update(step, self._note(pending, costs))
                    done, pending = pending, None
                    if revising:  # before saving: what goes on from a checkpoint goes on with the new memory
                        state = self._revised(state, step)
                    if profile.ends(step):
                        profile.stop()
                    if saving or number:
                        self._save(state, done, costs, validate=saving)
                self._stop_after(step, number)
        self._sum_up(start, time.monotonic() - began, meter.waited() - waited)
        self._stop_after(config.steps, self.stop.asked_last())  # or what follows would begin in spite of the signal
        return state

    def _stop_after(self, step: int, number: int) -> None:
        """Ends the run after ``step``, which is saved, if the signal ``number`` is not 0."""
        if number:
            self.checkpoints.wait()
            stopped = StoppedError(number, step, self.config.steps)
            self.log.say(f"  {self.task.name}: {stopped}")
            raise stopped

    def _note(self, done: Done, costs: telemetry.Telemetry) -> str:
        said = divergence.note(done, self.folder, self.log, self.task.identify)
        costs.arrived()
        return said

    def _revised(self, state: TrainState, step: int) -> TrainState:
        assert self.task.revise is not None
        memory = begin.placed(self.task.revise(state, self.mesh), self.shardings.memory)
        self.log.record("revised", step=step)
        return state.replace(memory=memory)

    def _compiled(
        self, state: TrainState, batch: dict[str, jax.Array]
    ) -> tuple[Callable[..., Any], telemetry.Telemetry]:
        """The step, and what counts its costs."""
        began = time.monotonic()
        traced = self.step_fn.trace(state, batch)
        step_fn = traced.lower().compile()
        distributed.together("step compiled")  # collectives of the CPU give up on one that comes half a minute late
        work = self.task.flops * self.config.batch_size or flops.counted(traced.jaxpr)
        seconds = time.monotonic() - began
        self.log.record("compiled", seconds=round(seconds, 3), flops=work)
        shown = telemetry.flops_in_words(work)
        self.log.say(f"  {self.task.name}: compiled in {seconds:.1f} s; {shown} of matrix products a step")
        devices = list(self.mesh.devices.flat)
        return step_fn, telemetry.Telemetry(self.config.batch_size, devices, work, self.task.meter)

    def _save(self, state: TrainState, done: Done, costs: telemetry.Telemetry, validate: bool) -> None:
        """Starts writing a checkpoint of a state that is known to be finite."""
        if not divergence.all_finite(state):
            values = {name: float(value) for name, value in done.scalars.items()}
            divergence.fail(done, values, self.folder, self.log, self.task.identify, "the state", float("nan"))
        interval = costs.interval()
        self.log.record("interval", step=done.step, **interval)
        measured: dict[str, float] = {}
        if validate:
            measured = self.task.validate(state.weights, self.mesh)
            self.log.record("valid", step=done.step, **measured)
            shown = "  ".join(f"{k} {v:.4f}" for k, v in measured.items())
            self.log.say(f"  {self.task.name} step {done.step}: {shown}   {telemetry.words(interval)}")
        self.checkpoints.save(done.step, state, self.task.meta, measured)
        costs.resume()

    def _sum_up(self, start: int, seconds: float, waited: float) -> None:
        steps, meter = self.config.steps - start, self.task.meter
        self.log.record(
            "speed",
            step=self.config.steps,
            seconds=seconds,
            examples_per_second=steps * self.config.batch_size / seconds,
            data_wait_share=waited / seconds,
            input_seconds=dict(meter.seconds),
        )
        self.log.say(f"  {self.task.name} {meter.summary(seconds)}")
