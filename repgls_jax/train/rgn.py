"""Training the RGN under expert guidance, and the rates it gives to every study."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pyarrow.parquet as pq
from jax import Array
from jax.sharding import Mesh
from scipy import stats

from repgls_jax import distributed, losses, sidecars
from repgls_jax import findings as findings_lib
from repgls_jax.data import cue_sentences, language
from repgls_jax.data import wording as wording_lib
from repgls_jax.models import rgn
from repgls_jax.reports import expressions, lexicon
from repgls_jax.train import loop, sharding
from repgls_jax.train.journal import Journal
from repgls_jax.train.state import Batch, Params


def make_loss(model: rgn.RGN, delta: float, ordering: float) -> Callable[..., Any]:
    """The pure loss of expert guidance, see :func:`repgls_jax.models.rgn.guidance`."""

    def loss(params: Params, batch: Batch, key: Array, step: Array) -> dict[str, losses.Term]:
        del step
        drop, pair = jax.random.split(key)
        read: Any = model.apply({"params": params}, batch, train=True, rngs={"dropout": drop})
        shift = jax.random.randint(pair, (), 1, len(batch["expert"]))

        def guided(ours: Array, theirs: Array) -> dict[str, losses.Term]:
            return rgn.guidance(ours, theirs, batch["weight"], delta, ordering, shift)

        certain = guided(2 * read.p - 1, 2 * batch["p"] - 1)
        return guided(read.rate, batch["expert"]) | {f"certainty_{name}": term for name, term in certain.items()}

    return loss


def batches(
    wording: wording_lib.Wording, rows: np.ndarray, batch_size: int, seed: int, host_index: int = 0, host_count: int = 1
) -> Callable[..., Any]:
    """First step -> this host's block of the batches of ``wording.take`` from that step on.

    The global batch is the same for any number of hosts, its rows in the same order.
    """
    if not len(rows):
        raise ValueError("no study of the training split has evidence; the RGN has nothing to learn from")
    local = batch_size // host_count
    block = slice(host_index * local, (host_index + 1) * local)

    def start(step: int) -> Iterator[dict[str, np.ndarray]]:
        order = grain.MapDataset.source(rows).seed(seed).shuffle().repeat().batch(batch_size, drop_remainder=True)
        return iter(order.map(lambda chosen: wording.take(chosen[block]))[step:].to_iter_dataset())

    return start


def predict(
    apply: Callable[[Params, Batch], Array],
    params: Params,
    wording: wording_lib.Wording,
    rows: np.ndarray,
    mesh: Mesh,
    size: int = 256,
) -> np.ndarray:
    """Rates [len(rows), c] float32 of some studies, computed in batches of ``size`` (rounded up to the devices).

    Called by every process of a job: each computes its part, and gets all of them.
    """
    size = sharding.round_up(size, sharding.batch_parts(mesh))
    host, hosts = sharding.host_part(mesh)
    out = np.zeros((len(rows), wording.expert.shape[1]), np.float32)
    for first in range(0, len(rows), size):
        # The last row fills the last batch.
        whole = np.minimum(np.arange(first, first + size, dtype=np.int32), len(rows) - 1)
        place = whole[host * size // hosts :][: size // hosts]
        batch = {name: values[rows[place]] for name, values in wording.arrays.items()}
        placed = sharding.put_batch({**batch, "place": place}, mesh)
        at = placed.pop("place")
        if first == 0:
            distributed.compile_together(apply, params, placed)
        where, rates = distributed.gather((at, apply(params, placed)))
        out[where] = rates
    return out


def agreement(predicted: np.ndarray, wording: wording_lib.Wording, rows: np.ndarray) -> dict[str, float]:
    """How rates [len(rows), c] follow the expert's on cues of the table: mean absolute error, Spearman; else NaN."""
    known = wording.weight[rows] == 1
    ours, theirs = predicted[known], wording.expert[rows][known]
    if len(ours) == 0:
        return {"rate_mae": float("nan"), "spearman": float("nan")}
    ordered = len(ours) > 2 and np.ptp(theirs) > 0 and np.ptp(ours) > 0
    spearman = float(stats.spearmanr(ours, theirs)[0]) if ordered else float("nan")
    return {"rate_mae": float(np.abs(ours - theirs).mean()), "spearman": spearman}


def run(
    config: ml_collections.ConfigDict,
    vocabulary: findings_lib.Vocabulary,
    reports_path: pathlib.Path,
    evidence_path: pathlib.Path,
    folder: pathlib.Path,
    journal: Journal,
    evidence_key: str,
    rho: float = 0.0,
) -> dict[str, Any]:
    """Trains the RGN on the training split and writes ``folder/rates.parquet`` for every study with evidence.

    Args:
      config: the settings of ``configs/rgn.py``.
      vocabulary: order of the findings.
      reports_path: ``reports.parquet`` of the data set.
      evidence_path: ``evidence.parquet`` made from it.
      folder: of the run.
      journal: told of progress.
      evidence_key: hash of the evidence, for the rates' provenance.
      rho: sharpening of plain wording in the guidance, in [0, 1).

    Returns:
      Summary: studies, how the rates follow the expert's on the validation split.

    Raises:
      ValueError: no training study has evidence, or features and made sentences are asked for together.
    """
    wording, split, settings = _read(config, vocabulary, reports_path, evidence_path, rho)
    rows = {name: np.nonzero(split == name)[0] for name in ("train", "valid", "test")}
    if not len(rows["train"]):
        raise ValueError("no study of the training split has evidence; the RGN has nothing to learn from")
    taught, lessons = _taught(config, vocabulary, wording, rows["train"], rho)
    model = rgn.build(len(vocabulary), **settings)

    def rates_of(params: Params, batch: Batch) -> Array:
        read: Any = model.apply({"params": params}, batch)
        return read.rate

    apply = jax.jit(rates_of)
    sample = {name: jnp.asarray(values[:1]) for name, values in wording.arrays.items()}
    mesh = sharding.make_mesh(config.train.mesh, model_parallel=config.train.model_parallel)
    task = loop.Task(
        name="rgn",
        init=lambda key: model.init(key, sample)["params"],
        loss=make_loss(model, config.delta, config.ordering),
        batches=batches(taught, lessons, config.train.batch_size, config.train.seed, *sharding.host_part(mesh)),
        validate=lambda params, mesh: agreement(
            predict(apply, params, wording, rows["valid"], mesh), wording, rows["valid"]
        ),
        best="spearman",
        meta={"model": settings, "vocabulary": vocabulary.name, "findings": list(vocabulary.findings)},
    )
    state, mesh = loop.train(task, config.train, folder, journal, mesh)
    rates = predict(apply, state.weights, wording, np.arange(len(split)), mesh)
    # Evidence without a sentence, such as a rule's "No Finding", gives the network nothing to read.
    unread = wording.mentioned & (wording.arrays["span"][..., 0] == wording.arrays["span"][..., 1])
    rates = np.where(unread, wording.expert, rates)
    if distributed.is_first():
        origin = {"labeller": "rgn", "version": folder.name, "evidence_hash": evidence_key}
        path = folder / "rates.parquet"
        sidecars.write_rates(path, rates, wording.mentioned, wording.study_ids, vocabulary, **origin)
    known = {name: agreement(rates[rows[name]], wording, rows[name]) for name in ("valid", "test")}
    return {
        "studies": len(wording.study_ids),
        "rates": int(wording.mentioned.sum()),
        "sentences_cut": wording.cut,
        **{f"{name}_{metric}": value for name, metrics in known.items() for metric, value in metrics.items()},
    }


def _read(
    config: ml_collections.ConfigDict,
    vocabulary: findings_lib.Vocabulary,
    reports_path: pathlib.Path,
    evidence_path: pathlib.Path,
    rho: float,
) -> tuple[wording_lib.Wording, np.ndarray, dict[str, Any]]:
    """What reports say, the split [n] of each study, and the network's settings with the width of the features."""
    reports = pq.read_table(reports_path)
    evidence = sidecars.read(evidence_path, sidecars.EVIDENCE, vocabulary)
    settings, features = dict(config.model), None
    if config.features:
        if config.made:
            raise ValueError(
                f"rgn.made is {config.made}, and made sentences have no features in {config.features}; "
                "set --config.rgn.made=0"
            )
        features = language.read(pathlib.Path(config.features))
        settings["features"] = language.dims_of(features)
    wording = wording_lib.read(reports, evidence, vocabulary, config.length, config.bare_weight, rho, features)
    split_of = dict(zip(reports.column("study_id").to_pylist(), reports.column("split").to_pylist(), strict=True))
    return wording, np.array([split_of[s] for s in wording.study_ids]), settings


def _taught(
    config: ml_collections.ConfigDict,
    vocabulary: findings_lib.Vocabulary,
    wording: wording_lib.Wording,
    rows: np.ndarray,
    rho: float,
) -> tuple[wording_lib.Wording, np.ndarray]:
    """The wording that is learned from, made sentences behind the data's, and the rows of it that are read."""
    if not config.made:
        return wording, rows
    made = cue_sentences.make(lexicon.load(), vocabulary, config.made, config.train.seed, None, expressions.load())
    taught = wording.joined(wording_lib.read(*made, vocabulary, config.length, config.bare_weight, rho))
    # However large the data set, at least half of what is read is made: few reports hedge, and in few ways.
    more = np.arange(len(wording.study_ids), len(taught.study_ids))
    return taught, np.concatenate([rows, np.resize(more, max(len(more), len(rows)))])
