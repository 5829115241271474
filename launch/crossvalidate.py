"""Compares label methods on real films whose labels are known, under a simulated reader who hedges.

    python data_prep/build.py --dataset=nih --source=DIR --output=BUILD --image_size=64
    python launch/crossvalidate.py --data=BUILD --output=results

LU-ViT is trained on the films from scratch, in folds grouped by patient, once for each method and seed; a part of the
training patients validates, on labels as noisy as the training's. All splits of the build are pooled. See
repgls_jax/benchmark/films.py for the reader. Writes crossvalidation.json and crossvalidation.md; runs that are done are
kept in --output and not done again.
"""

import json
import pathlib
import sys
import time

import numpy as np
from absl import app, flags, logging

from repgls_jax import findings as findings_lib
from repgls_jax.benchmark import crossvalidation, films
from repgls_jax.benchmark.runs import Schedule
from repgls_jax.data import shards
from repgls_jax.data.build import SHARDS
from repgls_jax.data.splits import SPLITS
from repgls_jax.results import compare, table
from repgls_jax.train.journal import Journal, duration

_DATA = flags.DEFINE_string("data", None, "build whose labels count as the truth", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "folder to write to", required=True)
_METHODS = flags.DEFINE_list(
    "methods",
    ["hard", "u_ones", "u_zeros", "u_ignore", "constant", "expert", "permuted", "report_likelihood", "clean"],
    "methods; the first is the baseline",
)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1"], "of readers, folds and networks")
_FOLDS = flags.DEFINE_integer("folds", 5, "folds", lower_bound=2)
_EPOCHS = flags.DEFINE_integer("epochs", 20, "of each run; the best on noisy validation labels is kept", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch_size", 32, "films a step", lower_bound=1)
_MODEL = flags.DEFINE_string("model", "demo/16", "SIZE/PATCH")
_LEAST = flags.DEFINE_integer("positives", 20, "a finding with fewer positive films is left out", lower_bound=1)
_DISTANCE = flags.DEFINE_float("distance", 2.0, "of the simulated reader", lower_bound=0.0)


def _pooled(build: pathlib.Path, least: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, findings_lib.Vocabulary]:
    """Films uint8 [n, h, w, 1], labels int8 [n, c], patients [n], and the findings that have enough positives."""
    vocabulary = shards.vocabulary(build / SHARDS)
    pixels, labels, patients = [], [], []
    for split in SPLITS:
        stored = shards.Images(build / SHARDS, split)
        made = shards.examples(build / SHARDS, split)
        pixels.append(stored.read(np.arange(len(stored))))
        labels.append(np.where(made["observed"], made["labels"], findings_lib.NOT_MENTIONED))
        patients.append(made["patient_id"])
    known = np.concatenate(labels)
    kept = [
        k
        for k in range(len(vocabulary))
        if np.isin(known[:, k], (0, 1)).all() and (known[:, k] == 1).sum() >= least and (known[:, k] == 0).any()
    ]
    if not kept:
        raise ValueError(
            f"no finding of {build} is labelled in every film and positive in {least}; lower --positives, or choose a "
            "set whose labels are complete"
        )
    named = findings_lib.Vocabulary(vocabulary.name, vocabulary.version, tuple(vocabulary.findings[k] for k in kept))
    return np.concatenate(pixels), known[:, kept].astype(np.int8), np.concatenate(patients), named


def main(argv: list[str]) -> None:
    """Trains what is missing, then compares."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    journal, output, began = Journal(None, sys.stderr), pathlib.Path(_OUTPUT.value), time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    try:
        images, truth, patients, vocabulary = _pooled(pathlib.Path(_DATA.value), _LEAST.value)
        plan = crossvalidation.Plan(
            _MODEL.value,
            Schedule(_EPOCHS.value, _BATCH.value),
            _FOLDS.value,
            films.Reading(_DISTANCE.value),
        )
        told = {
            method: [
                crossvalidation.out_of_fold(plan, method, int(seed), images, truth, patients, output / "runs", journal)
                for seed in _SEEDS.value
            ]
            for method in _METHODS.value
        }
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    rows = compare.arms(told, _METHODS.value[0], truth, np.ones(truth.shape, bool), patients.tolist(), vocabulary)
    (output / "crossvalidation.json").write_text(json.dumps(rows, indent=1, allow_nan=False))
    positives = ", ".join(f"{name} {int(k):,}" for name, k in zip(vocabulary.findings, truth.sum(0), strict=True))
    text = (
        f"{len(images):,} films of {len(np.unique(patients)):,} patients, {plan.folds} folds, "
        f"{len(_SEEDS.value)} seeds.\n"
        f"Positive films: {positives}.\n\n{table.format_arms(rows, _METHODS.value[0])}"
    )
    (output / "crossvalidation.md").write_text(text)
    journal.say(f"\n{text}\n{duration(time.monotonic() - began)}")


if __name__ == "__main__":
    app.run(main)
