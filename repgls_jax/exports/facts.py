"""What a run's other folders say of its model: thresholds, how training films look, counts, and metrics.

Only numbers and names of findings, splits and data sets are taken; nothing of a patient or a report.
"""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np

from repgls_jax import findings as findings_lib
from repgls_jax import sidecars, trained
from repgls_jax.data import pipeline
from repgls_jax.data import shards as shards_lib
from repgls_jax.data.build import MANIFEST, SHARDS
from repgls_jax.exports import reference
from repgls_jax.results import operating, table
from repgls_jax.train import labels, luvit, sharding
from repgls_jax.train.journal import Journal

_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Facts:
    """See the module; None, {} or "" where the folders are not at hand.

    Attributes:
      thresholds: of :func:`repgls_jax.results.operating.choose`.
      chosen_on: {"split", "images", "reference"} that they were chosen on.
      reference: of :func:`repgls_jax.exports.reference.make`.
      data: {"dataset", "counts" {split: images}, "simulated"}.
      metrics: the table of the run's evaluation, Markdown.
      metrics_note: what it was measured on, or why there is none.
    """

    thresholds: dict[str, Any] | None
    chosen_on: dict[str, Any] | None
    reference: dict[str, Any] | None
    data: dict[str, Any]
    metrics: str
    metrics_note: str


def gather(run_folder: pathlib.Path, model: trained.Trained, journal: Journal) -> Facts:
    """Reads what lies beside a run.

    Raises:
      ValueError: the data beside it is of other findings or images than the model's.
    """
    record_path = run_folder / trained.RECORD
    if not record_path.exists():
        journal.say(f"  no {trained.RECORD} in {run_folder}: no thresholds, counts or metrics are known")
        return Facts(None, None, None, {}, "", "Nothing: the run's record was not at hand.")
    record = json.loads(record_path.read_text())
    metrics, note = _metrics(run_folder, model)
    built = run_folder.parent / record["stages"]["data"] / "set"
    data: dict[str, Any] = {"dataset": record["config"]["data"]["dataset"]}
    if not (built / SHARDS).is_dir():
        journal.say(f"  no data set in {built}: no thresholds are chosen")
        return Facts(None, None, None, data, metrics, note)
    manifest = json.loads((built / MANIFEST).read_text())
    counts = {split: count["images"] for split, count in manifest["counts"].items()}
    data |= {"counts": counts, "simulated": manifest["simulated"]}
    return Facts(*_thresholds(run_folder, record, built, model), _reference(built, model), data, metrics, note)


def _thresholds(
    run_folder: pathlib.Path, record: dict[str, Any], built: pathlib.Path, model: trained.Trained
) -> tuple[dict[str, Any], dict[str, Any]]:
    vocabulary = shards_lib.vocabulary(built / SHARDS)
    findings_lib.require_same(vocabulary.findings, model.vocabulary.findings, model.where)
    examples = shards_lib.examples(built / SHARDS, "valid")
    stage = record["stages"].get("evidence")
    path = stage and run_folder.parent / stage / "evidence.parquet"
    evidence = sidecars.read(path, sidecars.EVIDENCE, vocabulary) if path else None
    made = labels.columns(examples, evidence, vocabulary)
    truth, mask, against = labels.reference(made, examples["has_report"])
    mesh = sharding.make_mesh(devices=jax.devices("cpu")[:1])
    batches = pipeline.eval_batches(built / SHARDS, "valid", {}, batch_size=_BATCH, host_index=0, host_count=1)
    probability = luvit.predict(model.apply, model.params, batches, mesh)["probability"]
    chosen = operating.choose(probability, truth, mask, vocabulary.findings)
    return chosen, {"split": "valid", "images": len(probability), "reference": against}


def _reference(built: pathlib.Path, model: trained.Trained) -> dict[str, Any] | None:
    stored = shards_lib.Images(built / SHARDS, "train")
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.permutation(len(stored))[: reference.FILMS])
    del model
    return reference.make(stored.read(chosen))


def _metrics(run_folder: pathlib.Path, model: trained.Trained) -> tuple[str, str]:
    """The table of the run's own evaluation, and what it was measured on."""
    key = run_folder.resolve().name.rpartition("-")[2]
    for marker in sorted(run_folder.parent.glob("evaluation-*/stage.json")):
        if json.loads(marker.read_text())["inputs"].get("luvit") != key:
            continue
        results = json.loads((marker.parent / "metrics.json").read_text())
        newest, ours = trained.load(run_folder).source["step"], model.source["step"]
        if newest != ours:
            return (
                "",
                f"Not this checkpoint: the run was evaluated at step {newest}, and this is of step {ours}.",
            )
        note = (
            f"On the test split, {results['images']:,} films of {results['patients']:,} patients held out, against "
            f"{results['reference']}."
        )
        return table.format_markdown(results), note
    return "", "Nothing: no evaluation of this run was found beside it (launch/evaluate.py makes one)."
