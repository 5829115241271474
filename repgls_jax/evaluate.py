"""Evaluation of a trained LU-ViT: predictions, metrics with intervals, and a page that a person can open."""

import json
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from clu import parameter_overview

from repgls_jax import distributed, methods, sidecars, trained
from repgls_jax import findings as findings_lib
from repgls_jax.data import pipeline
from repgls_jax.data import shards as shards_lib
from repgls_jax.data.build import SHARDS
from repgls_jax.models import luvit as luvit_model
from repgls_jax.results import page, score, table
from repgls_jax.train import labels, luvit, sharding
from repgls_jax.train.journal import Journal

PREDICTIONS = "predictions.parquet"
RECORD = trained.RECORD


def run(
    run_folder: pathlib.Path,
    output: pathlib.Path,
    split: str,
    config: dict[str, Any],
    journal: Journal,
    seconds: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Scores a run on a split and writes ``predictions.parquet``, ``metrics.json``, ``table.md`` and ``report.html``.

    Called by every process of a job: all of them predict, the first one scores and writes.

    Args:
      run_folder: of the LU-ViT run; its ``run.json`` says where data and side-cars are.
      output: folder to write to; must exist.
      split: train, valid or test.
      config: batch_size and replicates.
      journal: the table is said to it.
      seconds: stage -> time it took, shown on the page.

    Returns:
      Summary: images and mean metrics.

    Raises:
      FileNotFoundError: the run, its checkpoint or its data does not exist.
      ValueError: the checkpoint was made for other findings or other images than the data has.
    """
    if not (run_folder / RECORD).exists():
        raise FileNotFoundError(f"{run_folder} holds no {RECORD}; expected the folder of a LU-ViT run")
    record = json.loads((run_folder / RECORD).read_text())
    mesh = sharding.make_mesh()
    model = trained.load(run_folder, mesh)
    data_folder = run_folder.parent / record["stages"]["data"] / "set"
    vocabulary = shards_lib.vocabulary(data_folder / SHARDS)
    findings_lib.require_same(vocabulary.findings, model.vocabulary.findings, f"the checkpoint in {run_folder}")
    stored = shards_lib.Images(data_folder / SHARDS, split)
    luvit_model.require_input(model.input, stored.dtype, stored.shape[0], f"the checkpoint in {run_folder}")
    examples = shards_lib.examples(data_folder / SHARDS, split)
    evidence_folder = record["stages"].get("evidence")
    evidence = evidence_folder and sidecars.read(
        run_folder.parent / evidence_folder / "evidence.parquet", sidecars.EVIDENCE, vocabulary
    )
    made = labels.columns(examples, evidence or None, vocabulary)
    truth, mask, reference = labels.reference(made, examples["has_report"])
    batch_size = sharding.round_up(config["batch_size"], sharding.batch_parts(mesh))
    host, hosts = sharding.host_part(mesh)
    batches = pipeline.eval_batches(
        data_folder / SHARDS, split, {}, batch_size=batch_size, host_index=host, host_count=hosts
    )
    predicted = luvit.predict(model.apply, model.params, batches, mesh)
    if not distributed.is_first():
        return distributed.from_first("scores", dict)
    results = score.score(
        predicted["probability"],
        truth,
        mask,
        list(examples["patient_id"]),
        vocabulary,
        replicates=config["replicates"],
    )
    _write_predictions(output / PREDICTIONS, examples, predicted, truth, mask, vocabulary)
    run_config = record["config"]
    info = {
        "split": split,
        "scored against": reference,
        "policy": methods.METHODS[run_config["policy"]["name"]].words,
        "parameters": parameter_overview.count_parameters(model.params),
        "seconds": seconds or {},
        **_trained_on(record),
        "config": _shown(run_config),
    }
    name = f"{run_config['model']['name']} {run_config['policy']['name']} seed {run_config['seed']}"
    (output / "metrics.json").write_text(json.dumps({**results, "reference": reference}, indent=1, allow_nan=False))
    (output / "table.md").write_text(table.format_markdown(results))
    history = Journal(run_folder / "journal.jsonl", None)
    rows = [{"step": e["step"], "train/loss": e["presence"]} for e in history.read("train")]
    rows += [{"step": e["step"], "valid/mean AUROC": e["mean_auroc"]} for e in history.read("valid")]
    rates, columns = _rates(run_folder, record, vocabulary)
    page.write_page(
        output / "report.html",
        f"LU-ViT on {run_config['data']['dataset']}: {split} split",
        [page.Run(name, results, rows, info, rates, columns)],
        lead=f"Scored against: {reference}.",
    )
    journal.say(f"\n{name}, {split} split, scored against: {reference}\n{table.format_text(results)}\n")
    journal.say(f"page: {output / 'report.html'}")
    means = {f"mean_{metric}": entry["value"] for metric, entry in results["mean"].items()}
    summary = {"images": len(truth), "patients": results["patients"], **means}
    return distributed.from_first("scores", lambda: summary)


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
    run_folder: pathlib.Path, record: dict[str, Any], vocabulary: findings_lib.Vocabulary
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The rates that the run trained on, of several sets those of the first: [m] float32, and the finding of each."""
    if "rgn" not in record["stages"]:
        return None, None
    path = run_folder.parent / record["stages"]["rgn"] / "rates.parquet"
    stored = sidecars.read(path, sidecars.RATES, vocabulary)
    columns = np.array([vocabulary.index(f) for f in stored.column("finding").to_pylist()], np.int32)
    return stored.column("rate").to_numpy(), columns


def _write_predictions(
    path: pathlib.Path,
    examples: dict[str, np.ndarray],
    predicted: dict[str, np.ndarray],
    truth: np.ndarray,
    mask: np.ndarray,
    vocabulary: findings_lib.Vocabulary,
) -> None:
    """One row per image and finding: ids, probability, the rate expected of a report, and the label (null: none)."""
    n, c = predicted["probability"].shape
    columns = {name: np.repeat(examples[name], c) for name in ("image_id", "study_id", "patient_id")}
    columns["finding"] = np.tile(np.array(vocabulary.findings), n)
    columns |= {name: predicted[name].reshape(-1) for name in ("probability", "rate")}
    label = pa.array(truth.reshape(-1), pa.int8(), mask=~mask.reshape(-1))
    temporary = path.with_name(path.name + ".partial")
    pq.write_table(pa.table({**columns, "label": label}), temporary)
    temporary.replace(path)
