"""The work in order: units of cells, what each needs, and where its results lie.

A cell is one run: (condition, half, arm, seed, trial). It is named by the hash of everything that it depends on, and
leaves two files, ``KEY.json`` with its row, written last, and ``KEY.npz`` with logits and bootstrap draws; so the grid
can be stopped at any moment, and goes on where it stood. A unit is all cells of one arm in one condition and half: the
trials on the tuning seed, then the chosen one on every test seed.
"""

import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
import time
from collections.abc import Mapping
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from repgls_jax import phantom, stages
from repgls_jax.benchmark import arms as arms_lib
from repgls_jax.benchmark import conditions as conditions_lib
from repgls_jax.benchmark import given, hospital, prepare, refining, runs, scores
from repgls_jax.models import vit
from repgls_jax.policies import PolicyConfig
from repgls_jax.results import bootstrap
from repgls_jax.train.journal import Journal, duration, finite

VERSION = 3  # raised when a cell's result changes for the same inputs
SILENT = Journal(None, None)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the whole grid shares.

    Attributes:
      root: folder of stages and cells.
      counts: studies of each hospital.
      schedule: of each run.
      read_out: architecture that the read-out takes its width, heads and MLP from.
      tuning: seed of the hospital that trials are compared on.
      seeds: of the hospitals that results are from; the tuning seed is none of them.
      main: fields of the phantom in the main condition.
      replicates: of the bootstrap over patients.
      other: encoder and RGN.
    """

    root: pathlib.Path
    counts: hospital.Counts
    schedule: runs.Schedule
    read_out: vit.Architecture
    tuning: int
    seeds: tuple[int, ...]
    main: Mapping[str, Any]
    replicates: int
    other: prepare.Elsewhere

    def __post_init__(self) -> None:
        if self.tuning in self.seeds or len(set(self.seeds)) != len(self.seeds) or not self.seeds:
            raise ValueError(
                f"seeds {self.seeds}, tuning seed {self.tuning}: expected different ones, without the tuning seed"
            )


@dataclasses.dataclass(frozen=True)
class Unit:
    """One arm in one condition and half, on some of the plan's seeds."""

    condition: str
    half: str
    arm: str
    seeds: tuple[int, ...]

    @property
    def cells(self) -> int:
        """How many cells it takes at most."""
        return len(self.seeds) + (arms_lib.TRIALS if self.condition == "main" else 0)


def units(
    conditions: tuple[str, ...], arms: tuple[str, ...], seeds: tuple[int, ...], few: int, halves: tuple[str, ...]
) -> list[Unit]:
    """The units of a grid, the main condition first; further conditions run the short list of arms on ``few`` seeds.

    Raises:
      ValueError: a condition, arm or half is unknown.
    """
    known = arms_lib.arms()
    wrong = [c for c in conditions if c not in conditions_lib.CONDITIONS] + [a for a in arms if a not in known]
    wrong += [h for h in halves if h not in conditions_lib.HALVES]
    if wrong:
        raise ValueError(
            f"unknown: {', '.join(wrong)}; conditions are {', '.join(conditions_lib.CONDITIONS)}, arms "
            f"{', '.join(known)}, halves {', '.join(conditions_lib.HALVES)}"
        )
    made = []
    for condition in conditions:
        chosen = [a for a in arms if condition == "main" or a in arms_lib.SHORT]
        for arm in chosen:
            count = len(seeds) if condition == "main" and known[arm].main else few
            made += [Unit(condition, half, arm, seeds[:count]) for half in halves]
    return made


def hospitals(plan: Plan, todo: list[Unit]) -> list[tuple[str, str, int]]:
    """The hospitals that units need: (condition, half, seed), each once, in order of need."""
    needed: dict[tuple[str, str, int], None] = {}
    for unit in todo:
        seeds = (plan.tuning, *unit.seeds) if unit.condition == "main" else unit.seeds
        needed |= dict.fromkeys((unit.condition, unit.half, seed) for seed in seeds)
    return list(needed)


def config_of(plan: Plan, condition: str, half: str, seed: int) -> phantom.PhantomConfig:
    """The phantom of a hospital."""
    record = conditions_lib.CONDITIONS[condition]
    return conditions_lib.phantom_of(record, half, seed, counts_of(plan, condition), plan.main)


def counts_of(plan: Plan, condition: str) -> hospital.Counts:
    """Studies of a hospital: the plan's, unless the condition wants more to train on."""
    more = max(plan.counts.train, conditions_lib.CONDITIONS[condition].n)
    return dataclasses.replace(plan.counts, train=more)


def make_hospital(plan: Plan, condition: str, half: str, seed: int) -> tuple[stages.Done, stages.Done]:
    """The stages of one hospital, done unless they have been: tokens, and labels."""
    config, counts = config_of(plan, condition, half, seed), counts_of(plan, condition)
    return (
        prepare.tokens(config, counts, plan.other, plan.root, SILENT),
        prepare.labels(config, counts, plan.other, plan.root, SILENT),
    )


def run_unit(plan: Plan, unit: Unit, run: bool = True) -> list[dict[str, Any]]:
    """Runs the cells of a unit that have not been run; returns all their rows, trials first.

    Args:
      plan: of the grid.
      unit: which.
      run: False to return only what has been run; a unit whose trials are not complete has nothing yet.
    """
    arm = arms_lib.arms()[unit.arm]
    # An arm outside of the main condition is a study of its own under the default settings.
    trials = arm.trials() if arm.main else arm.trials()[:1]
    tuned = [_cell(plan, "main", unit.half, unit.arm, plan.tuning, i, run) for i in range(len(trials))]
    known = [row for row in tuned if row is not None]
    if len(known) < len(trials):
        return []
    best = max(range(len(known)), key=lambda i: (known[i]["valid_auroc"] or -1.0, -i))
    rows = []
    if unit.condition == "main":
        rows = [{**row, "role": "trial", "chosen": i == best} for i, row in enumerate(known)]
    for seed in unit.seeds:
        row = _cell(plan, unit.condition, unit.half, unit.arm, seed, best, run)
        if row is not None:
            rows.append({**row, "role": "test", "chosen": True})
    return rows


def _cell(plan: Plan, condition: str, half: str, name: str, seed: int, trial: int, run: bool) -> dict[str, Any] | None:
    """The row of one cell, read if it is there; None if it is not, and is not to be run."""
    arm, record = arms_lib.arms()[name], conditions_lib.CONDITIONS[condition]
    settings = arm.trials()[trial]
    policy = {**record.policy, **arm.policy, "name": arm.method}
    stage_inputs = prepare.inputs(config_of(plan, condition, half, seed), counts_of(plan, condition), plan.other)
    inputs = {
        "version": VERSION,
        "stages": {name: stages.key_of(values) for name, values in stage_inputs.items()},
        "condition": {"shift": record.shift, "exact": record.exact, "n": record.n},
        "refined": arm.refined,
        "believed": arm.believed,
        "policy": policy,
        "settings": settings,
        "schedule": dataclasses.asdict(plan.schedule),
        "read_out": dataclasses.asdict(plan.read_out),
        "replicates": plan.replicates,
    }
    key = stages.key_of(inputs)
    where = plan.root / "cells" / f"{key}.json"
    if not where.exists():
        if not run:
            return None
        done = make_hospital(plan, condition, half, seed)
        began, used = time.monotonic(), time.process_time()
        found, arrays = _train(plan, condition, arm, policy, settings, seed, done)
        found |= {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - used}
        where.parent.mkdir(parents=True, exist_ok=True)
        _write(where, found, arrays)
    row = json.loads(where.read_text())
    named = {"condition": condition, "half": half, "arm": name, "seed": seed, "trial": trial, "cell": key}
    return {**named, "settings": json.dumps(settings), **row}


def _write(where: pathlib.Path, row: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Both files, each whole or not at all, the row last."""
    with where.with_suffix(".npz.partial").open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # the stub takes the names for allow_pickle
    where.with_suffix(".npz.partial").replace(where.with_suffix(".npz"))
    partial = where.with_suffix(".json.partial")
    partial.write_text(json.dumps(finite(row)))
    partial.replace(where)


def draws(root: pathlib.Path, cell: str) -> np.ndarray:
    """AUROC of each bootstrap replicate and finding of a cell, float64 [replicates, c]."""
    with np.load(root / "cells" / f"{cell}.npz", allow_pickle=False) as stored:
        return stored["draws"].astype(np.float64)


@functools.lru_cache(maxsize=4)
def _tokens(folder: pathlib.Path) -> Mapping[str, np.ndarray]:
    return prepare.read_tokens(stages.Done(folder, "", {}, 0.0, True))


@functools.lru_cache(maxsize=4)
def _trainer(
    read_out: vit.Architecture, policy: tuple[tuple[str, Any], ...], schedule: runs.Schedule, n: int
) -> runs.Trainer:
    return runs.Trainer(read_out, len(hospital.VOCABULARY), PolicyConfig(**dict(policy)), schedule, n)


def _train(
    plan: Plan,
    condition: str,
    arm: arms_lib.Arm,
    policy: dict[str, Any],
    settings: dict[str, float],
    seed: int,
    done: tuple[stages.Done, stages.Done],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The figures of one run, and its arrays."""
    record, counts = conditions_lib.CONDITIONS[condition], counts_of(plan, condition)
    stored = _tokens(done[0].folder)
    told, read = prepare.read_labels(done[1])
    made = conditions_lib.columns(record, told, stored["truth"], read)
    n, v = record.n or counts.train, counts.train + counts.valid
    train, valid = given.part(made, 0, n), given.part(made, counts.train, v)
    labels, mask = given.validation(valid, policy.get("blank", PolicyConfig.blank))
    if arm.believed:
        train, valid = given.believed(train), given.believed(valid)
    config = PolicyConfig(**policy)
    rate = given.rates(train, arm, config, seed)
    tokens = stored["tokens"]
    data = runs.Data(
        _device(tokens[:n]),
        {},
        _device(tokens[counts.train : v]),
        jax.tree.map(jnp.asarray, given.columns(valid, arm, given.rates(valid, arm, config, seed))),
        jnp.asarray(labels),
        jnp.asarray(mask),
        _device(tokens[v:]),
    )
    trainer = _trainer(plan.read_out, tuple(policy.items()), plan.schedule, n)

    def run(rate: np.ndarray | None) -> runs.Outcome:
        columns = jax.tree.map(jnp.asarray, given.columns(train, arm, rate))
        return trainer(data._replace(labels=columns), settings, seed)

    outcome = run(rate)
    if arm.refined:
        assert rate is not None  # the arm's method reads the RGN's
        few = min(refining.VERIFIED, counts.valid)
        verified = (data.valid_tokens[:few], valid["truth"][:few])
        rate = refining.refined(trainer.model, outcome.params, data.tokens, train, rate, verified, seed)
        outcome = run(rate)
    test = given.part(made, v, len(tokens))
    found = scores.row(
        outcome.logits,
        outcome.rate,
        outcome.valid_logits,
        test["truth"],
        told.state[v:],
        told.p[v:],
        (labels, mask),
    )
    best = int(np.argmax(np.nan_to_num(outcome.curve, nan=-1.0)))
    found |= {"valid_auroc": float(outcome.curve[best]), "best_epoch": best + 1}
    found |= {"curve": outcome.curve.tolist(), "loss": outcome.loss.tolist()}
    _, patient = np.unique(stored["patient"][v:], return_inverse=True)
    everything = np.ones(test["truth"].shape, bool)
    drawn = bootstrap.replicates(
        seed,
        outcome.logits,
        test["truth"],
        everything,
        patient,
        patients=int(patient.max()) + 1,
        count=plan.replicates,
        names=("auroc",),
    )
    return found, {"logits": outcome.logits, "draws": drawn["auroc"].astype(np.float32)}


def _device(tokens: np.ndarray) -> jax.Array:
    return jnp.asarray(tokens, jnp.float32)


def begin(root: str) -> None:
    """Of every process: compiled programs are kept, and shared between processes."""
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(root).absolute() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def run(plan: Plan, todo: list[Unit], workers: int, journal: Journal) -> list[dict[str, Any]]:
    """Runs all units in ``workers`` processes of one thread each; the rows of all, in the order of ``todo``."""
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
    context = multiprocessing.get_context("spawn")
    started, done, total = time.monotonic(), 0, sum(unit.cells for unit in todo)
    with futures.ProcessPoolExecutor(workers, context, begin, (str(plan.root),)) as pool:
        places = {pool.submit(make_hospital, plan, *place): place for place in hospitals(plan, todo)}
        waiting = {pool.submit(run_unit, plan, unit): unit for unit in todo}
        everything: list[futures.Future[Any]] = [*places, *waiting]
        for one in futures.as_completed(everything):
            one.result()  # raises what the worker raised; what is done stays
            if one in places:
                journal.say(f"hospital {' '.join(map(str, places[one]))} is there")
                continue
            unit, rows = waiting[one], one.result()
            done += unit.cells
            rate = done / max(time.monotonic() - started, 1e-9)
            test = [row["auroc"] for row in rows if row["role"] == "test"]
            journal.say(
                f"{unit.condition} {unit.half} {unit.arm}: AUROC {np.mean(test):.4f}   {done}/{total} runs  "
                f"{rate:.2f}/s  {duration((total - done) / rate)} left"
            )
    return [row for one in waiting for row in one.result()]


def finished(plan: Plan, todo: list[Unit]) -> list[dict[str, Any]]:
    """The rows of all cells that have been run."""
    return [row for unit in todo for row in run_unit(plan, unit, run=False)]
