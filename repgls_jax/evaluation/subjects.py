"""Models to evaluate: a run with its history and data, or any checkpoint or export by itself."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from clu import parameter_overview

from repgls_jax import findings as findings_lib
from repgls_jax import methods, sidecars, trained
from repgls_jax.evaluation import sets
from repgls_jax.train.journal import Journal


@dataclasses.dataclass(frozen=True)
class Subject:
    """A trained model and what a page shows of it.

    Attributes:
      model: see :class:`repgls_jax.trained.Trained`.
      name: short.
      info: settings for the page; nested dictionaries.
      history: rows of the training journal.
      rates, rate_finding: the rates that it was trained on, or None.
    """

    model: trained.Trained
    name: str
    info: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]] = ()
    rates: np.ndarray | None = None
    rate_finding: np.ndarray | None = None


def record_of(run: pathlib.Path) -> dict[str, Any]:
    """What a run says of itself.

    Raises:
      FileNotFoundError: the folder is not of a LU-ViT run.
    """
    if not (run / trained.RECORD).exists():
        raise FileNotFoundError(f"{run} holds no {trained.RECORD}; expected the folder of a LU-ViT run")
    return json.loads((run / trained.RECORD).read_text())


def place_of(run: pathlib.Path) -> sets.Place:
    """The data that a run was trained on; raises FileNotFoundError where it is not beside the run."""
    stages = record_of(run)["stages"]
    evidence = stages.get("evidence")
    build = run.parent / stages["data"] / "set"
    return sets.place(build, run.parent / evidence / "evidence.parquet" if evidence else None)


def of_run(run: pathlib.Path, mesh: jax.sharding.Mesh, which: int | str) -> Subject:
    """A run's checkpoint; raises as :func:`repgls_jax.trained.load` and :func:`record_of` do."""
    record = record_of(run)
    model = trained.load(run, mesh, which)
    config = record.get("config")
    if not config:  # of a run that tells nothing of itself
        return of_model(model)
    info = {
        "policy": methods.METHODS[config["policy"]["name"]].words,
        "parameters": parameter_overview.count_parameters(model.params),
        **_checkpoint(model),
        **_trained_on(record),
        "config": _shown(config),
    }
    name = f"{config['model']['name']} {config['policy']['name']} seed {config['seed']}"
    journal = Journal(run / "journal.jsonl", None)
    rows: list[dict[str, Any]] = [{"step": e["step"], "train/loss": e["presence"]} for e in journal.read("train")]
    rows += [{"step": e["step"], "valid/mean AUROC": e["mean_auroc"]} for e in journal.read("valid")]
    return Subject(model, name, info, rows, *_rates(run, record, model.vocabulary))


def of_model(model: trained.Trained) -> Subject:
    """A checkpoint or an export without its run."""
    source = model.source
    info = {"parameters": parameter_overview.count_parameters(model.params), **_checkpoint(model)}
    return Subject(model, f"{source.get('name')} step {source.get('step')}", info)


def at(path: pathlib.Path, mesh: jax.sharding.Mesh, which: int | str) -> Subject:
    """What is at a path: a run with its history, or a model."""
    if (path / trained.RECORD).exists():
        return of_run(path, mesh, which)
    return of_model(trained.load(path, mesh, which))


def _checkpoint(model: trained.Trained) -> dict[str, Any]:
    source = model.source
    return {"model": {"kind": source.get("kind"), "step": source.get("step"), **(source.get("metrics") or {})}}


def _shown(config: dict[str, Any]) -> dict[str, Any]:
    """The config for the page, which takes no key named "report": a table's columns as "role=column"."""
    data = _columns_shown(config["data"])
    if "also" in data:
        data = {**data, "also": {name: _columns_shown(one) for name, one in data["also"].items()}}
    return {**config, "data": data}


def _columns_shown(data: dict[str, Any]) -> dict[str, Any]:
    options = data.get("options", {})
    if "columns" not in options:
        return data
    columns = [f"{role}={column}" for role, column in options["columns"].items() if column is not None]
    return {**data, "options": {**options, "columns": columns}}


def _trained_on(record: dict[str, Any]) -> dict[str, Any]:
    """The data sets of a run that had several, for the page; {} for one. A row each: a page cuts long ones."""
    said: dict[str, str] = {}
    for one in record.get("training_sets", ()):
        name = one["name"] if one["name"] == one["dataset"] else f"{one['name']} ({one['dataset']})"
        share = "by its images" if one["weight"] is None else f"{one['weight']:g}"
        said[f"set {len(said) + 1}"] = (
            f"{name}, vocabulary {one['vocabulary']}, {one['images']:,} images, weight {share}"
        )
    return {"trained on": said, "validated and scored on": "the first of its training sets"} if said else {}


def _rates(
    run: pathlib.Path, record: dict[str, Any], vocabulary: findings_lib.Vocabulary
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The rates that the run trained on, of several sets those of the first: [m] float32, and the finding of each."""
    path = run.parent / record["stages"].get("rgn", "") / "rates.parquet"
    if "rgn" not in record["stages"] or not path.exists():  # a run may have been copied without what it read
        return None, None
    stored = sidecars.read(path, sidecars.RATES, vocabulary)
    columns = np.array([vocabulary.index(f) for f in stored.column("finding").to_pylist()], np.int32)
    return stored.column("rate").to_numpy(), columns
