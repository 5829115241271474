"""Stages that runs share: the other hospital with its encoder and RGN, films as tokens, reports as labels.

Each is a folder under the work directory, done once (see :mod:`repgls_jax.stages`).
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from repgls_jax import phantom, stages, trained, workflow
from repgls_jax.benchmark import hospital
from repgls_jax.data import wording
from repgls_jax.models import rgn as rgn_model
from repgls_jax.reports import engine as engine_lib
from repgls_jax.stages import Done
from repgls_jax.train import checkpoint, rgn, sharding
from repgls_jax.train.journal import Journal

VERSION = 1  # raised when a stage's result changes for the same inputs
_FILMS, _TOKENS, _LABELS = "films.npz", "tokens.npz", "labels.npz"


@dataclasses.dataclass(frozen=True)
class Elsewhere:
    """What comes from the other hospital: the folders of its encoder (a LU-ViT run) and of its RGN, and their keys."""

    encoder: pathlib.Path
    rgn: pathlib.Path
    keys: tuple[str, str]


def elsewhere(config: ml_collections.ConfigDict, root: pathlib.Path, journal: Journal) -> Elsewhere:
    """Trains encoder and RGN at the other hospital, by the project's own workflow, on labels from its own reports.

    Args:
      config: of configs/luvit.py: its phantom, model and training.
      root: folder of the stages.
      journal: told what each stage does.
    """
    reading = config.copy_and_resolve_references()
    reading.task = "rgn"
    chain = workflow.run(reading, root, journal)
    prepared = workflow.prepare(config, root, journal)
    encoder = workflow.train_luvit(config, prepared, root, journal)
    return Elsewhere(encoder.folder, chain["rgn"].folder, (encoder.key, chain["rgn"].key))


def inputs(config: phantom.PhantomConfig, counts: hospital.Counts, other: Elsewhere) -> dict[str, dict[str, Any]]:
    """What the stages "tokens" and "labels" of a hospital depend on."""
    shared = {"version": VERSION, "counts": dataclasses.asdict(counts)}
    fields = {**dataclasses.asdict(config), "split": list(config.split)}
    return {
        "tokens": {**_of_films(config, counts), "encoder": other.keys[0]},
        "labels": {**shared, "phantom": fields, "rgn": other.keys[1], "lexicon": _engine().version},
    }


def _of_films(config: phantom.PhantomConfig, counts: hospital.Counts) -> dict[str, Any]:
    fields = {**hospital.films_of(config), "split": list(config.split)}
    return {"version": VERSION, "counts": dataclasses.asdict(counts), "films": fields}


def films(config: phantom.PhantomConfig, counts: hospital.Counts, root: pathlib.Path, journal: Journal) -> Done:
    """Films of a hospital: films.npz with index, patient [n], truth [n, c] and images uint8 [n, h, w, 1]."""

    def work(folder: pathlib.Path) -> dict[str, Any]:
        index = hospital.studies(config, counts)
        truth, patient = hospital.truth(config, index)
        _save(folder / _FILMS, index=index, patient=patient, truth=truth, images=hospital.images(config, index))
        return {"films": len(index), "patients": len(set(patient.tolist()))}

    return stages.run(root, "films", _of_films(config, counts), work, journal)


def tokens(
    config: phantom.PhantomConfig, counts: hospital.Counts, other: Elsewhere, root: pathlib.Path, journal: Journal
) -> Done:
    """Films of a hospital, encoded: tokens.npz with patient [n], truth [n, c] and tokens float16 [n, l, d]."""
    made = films(config, counts, root, journal)

    def work(folder: pathlib.Path) -> dict[str, Any]:
        stored = _load(made.folder / _FILMS)
        encode, images = _encoder(other.encoder), stored["images"]
        _save(folder / _TOKENS, patient=stored["patient"], truth=stored["truth"], tokens=encode(images))
        return {"films": len(images)}

    return stages.run(root, "tokens", inputs(config, counts, other)["tokens"], work, journal)


def labels(
    config: phantom.PhantomConfig, counts: hospital.Counts, other: Elsewhere, root: pathlib.Path, journal: Journal
) -> Done:
    """Reports of a hospital, read: labels.npz with the arrays of hospital.Told, and read float32 [n, c].

    ``read`` holds the rates that the other hospital's RGN gives; NaN where a finding is not mentioned, or no sentence
    says it.
    """

    def work(folder: pathlib.Path) -> dict[str, Any]:
        index = hospital.studies(config, counts)
        told, reports, evidence = hospital.read(config, index, _engine())
        rates = _rgn(other.rgn)(reports, evidence)
        _save(folder / _LABELS, read=rates, **dataclasses.asdict(told))
        mentioned = told.state != -2
        return {
            "reports": len(index),
            "mentioned": float(mentioned.mean()),
            "hedged": float((told.state == -1).sum() / mentioned.sum()),
        }

    return stages.run(root, "labels", inputs(config, counts, other)["labels"], work, journal)


def read_tokens(done: Done) -> Mapping[str, np.ndarray]:
    """What :func:`tokens` left."""
    return _load(done.folder / _TOKENS)


def read_labels(done: Done) -> tuple[hospital.Told, np.ndarray]:
    """What :func:`labels` left: what is told, and the RGN's rates [n, c]."""
    arrays = _load(done.folder / _LABELS)
    fields = {field.name: arrays[field.name] for field in dataclasses.fields(hospital.Told)}
    return hospital.Told(**fields), arrays["read"]


@functools.lru_cache(maxsize=1)
def _engine() -> engine_lib.Engine:
    return engine_lib.Engine(hospital.VOCABULARY)


@functools.lru_cache(maxsize=1)
def _encoder(folder: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    return trained.encoder(trained.load(folder))


@functools.lru_cache(maxsize=1)
def _rgn(folder: pathlib.Path) -> Any:
    """(reports, evidence) -> float32 rates [n, c] of the RGN in ``folder``."""
    record = json.loads((folder / stages.MARKER).read_text())["inputs"]["config"]
    model = rgn_model.build(len(hospital.VOCABULARY), **record["model"])
    mesh = sharding.make_mesh(devices=jax.local_devices()[:1])
    checkpoints = checkpoint.Checkpoints(folder / "checkpoints")
    try:
        params = checkpoints.restore_params(mesh)
    finally:
        checkpoints.close()

    def rates_of(params: Any, batch: Any) -> Any:
        told: Any = model.apply({"params": params}, batch)
        return told.rate

    apply = jax.jit(rates_of)

    def read(reports: Any, evidence: Any) -> np.ndarray:
        ids = reports["study_id"].to_pylist()
        said = wording.read(reports, evidence, hospital.VOCABULARY, record["length"], record["bare_weight"])
        known = rgn.predict(apply, params, said, np.arange(len(said.study_ids)), mesh)
        span = said.arrays["span"]
        known = np.where(said.mentioned & (span[..., 0] < span[..., 1]), known, np.nan)
        at = {name: i for i, name in enumerate(ids)}
        rates = np.full((len(ids), known.shape[1]), np.nan, np.float32)
        rates[[at[name] for name in said.study_ids]] = known
        return rates

    return read


def _save(path: pathlib.Path, **arrays: np.ndarray) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # the stub takes the names for allow_pickle


def _load(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
