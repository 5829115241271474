"""Cross-validation of methods on films in memory: out-of-fold predictions of LU-ViT, trained from scratch."""

import dataclasses
import functools
import pathlib
import time

import jax.numpy as jnp
import numpy as np

from repgls_jax import methods, rates
from repgls_jax.benchmark import films
from repgls_jax.benchmark.runs import Data, Schedule, Trainer
from repgls_jax.models import vit
from repgls_jax.policies import PolicyConfig
from repgls_jax.stages import key_of
from repgls_jax.train import labels as labels_lib
from repgls_jax.train.journal import Journal, duration

LEARNING_RATE = 1e-3  # the same for every method: these sets are too small to tune on
_COLUMNS = ("state", "p", "observed")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all runs share.

    Attributes:
      model: SIZE/PATCH of the encoder.
      schedule: of a run.
      folds: how many, grouped by patient; one in ``folds`` of the remaining patients validates.
      reading: the simulated reader.
    """

    model: str
    schedule: Schedule
    folds: int
    reading: films.Reading


def out_of_fold(
    plan: Plan,
    method: str,
    seed: int,
    images: np.ndarray,
    truth: np.ndarray,
    patient_ids: np.ndarray,
    kept: pathlib.Path,
    journal: Journal,
) -> np.ndarray:
    """Probabilities [n, c] float32 of films, each from the network that has not seen its patient.

    The reader, the folds and the networks' start depend on ``seed`` alone, so that methods are paired. A fold that is
    done is kept as an array in ``kept`` and read from there.

    Args:
      plan: what all runs share.
      method: key in METHODS; its rates may be the expert's, not the RGN's, for there are no sentences.
      seed: of reader, folds and network.
      images: [n, h, w, 1] uint8.
      truth: [n, c] of 0 and 1.
      patient_ids: [n] strings.
      kept: folder of what is done.
      journal: told of every fold.

    Raises:
      ValueError: the method is unknown or reads the RGN's rates, or there are fewer patients than folds.
    """
    if method not in methods.METHODS:
        raise ValueError(f"method {method!r} is unknown; expected one of {', '.join(methods.METHODS)}")
    if methods.METHODS[method].policy.rates == "rgn":
        raise ValueError(f"method {method!r} reads sentences, and the simulated reader writes none; choose expert")
    fold = films.folds(patient_ids, plan.folds, seed)
    inner = films.folds(patient_ids, plan.folds, seed + 1_000)
    said = films.read(truth, plan.reading, seed)
    config = PolicyConfig(method)
    # One number for all folds and seeds, so that a method is compiled once; folds differ by a patient's films.
    batch = plan.schedule.batch
    n = max(batch, round(len(truth) * (1 - 1 / plan.folds) ** 2) // batch * batch)
    trainer = _trainer(plan.model, truth.shape[1], method, plan.schedule, n)
    probability = np.full(truth.shape, np.nan, np.float32)
    for k in range(plan.folds):
        others = np.flatnonzero((fold != k) & (inner != k))
        train = np.resize(np.random.default_rng([seed, k]).permutation(others), n)
        valid, test = np.flatnonzero((fold != k) & (inner == k)), np.flatnonzero(fold == k)
        name = key_of({"plan": dataclasses.asdict(plan), "method": method, "seed": seed, "fold": k, "n": len(truth)})
        path, began = kept / f"{method}-{seed}-{k}-{name}.npy", time.monotonic()
        if path.exists():
            probability[test] = np.load(path, allow_pickle=False)
            continue
        held_out, mask = labels_lib.noisy_reference(_part(said, valid))
        data = Data(
            jnp.asarray(images[train]),
            {name: jnp.asarray(values) for name, values in _columns(said, train, config, seed).items()},
            jnp.asarray(images[valid]),
            {name: jnp.asarray(values) for name, values in _columns(said, valid, config, seed).items()},
            jnp.asarray(held_out),
            jnp.asarray(mask),
            jnp.asarray(images[test]),
        )
        settings = {"learning_rate": LEARNING_RATE, **methods.values(config)}
        logits = trainer(data, {key: float(value) for key, value in settings.items()}, seed).logits
        probability[test] = 1.0 / (1.0 + np.exp(-logits))
        _keep(path, probability[test])
        journal.say(f"{method}, seed {seed}, fold {k + 1} of {plan.folds}: {duration(time.monotonic() - began)}")
    return probability


@functools.lru_cache(maxsize=4)
def _trainer(model: str, findings: int, method: str, schedule: Schedule, n: int) -> Trainer:
    return Trainer(vit.parse_model(model)[0], findings, PolicyConfig(method), schedule, n)


def _part(said: labels_lib.Columns, rows: np.ndarray) -> labels_lib.Columns:
    return {name: values[rows] for name, values in said.items()}


def _columns(said: labels_lib.Columns, rows: np.ndarray, config: PolicyConfig, seed: int) -> labels_lib.Columns:
    """What the method reads of the reports of ``rows``."""
    method, made = methods.METHODS[config.name], _part(said, rows)
    columns = {name: made[name] for name in (*_COLUMNS, *method.needs)}
    if method.policy.rates:
        certainty = made["belief"] if method.policy.rates == "belief" else made["p"]
        y, rate = rates.expert_rates(certainty, config.rho, config.r_blank)
        if method.policy.permuted:
            rate = rates.permute(rate, y, ~np.isnan(made["p"]), seed)
        columns["rate"] = rate
    return columns


def _keep(path: pathlib.Path, values: np.ndarray) -> None:
    """Writes beside and renames: a run that is killed leaves no half of a fold."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    with temporary.open("wb") as file:
        np.save(file, values, allow_pickle=False)
    temporary.replace(path)
