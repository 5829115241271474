"""Evaluation of trained models: predictions, metrics with intervals, operating points, and a page to open.

All processes of a job predict, each its part of every batch; the first one scores and writes.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from repgls_jax import distributed, trained
from repgls_jax.data import pipeline
from repgls_jax.data import shards as shards_lib
from repgls_jax.evaluation import films, outputs, sets, subjects
from repgls_jax.evaluation.sets import Alignment, Labelled, Place
from repgls_jax.evaluation.subjects import Subject
from repgls_jax.models import luvit as luvit_model
from repgls_jax.results import compare, operating, page, score, selective, strata, table, table_points
from repgls_jax.train import luvit, sharding
from repgls_jax.train.journal import Journal

PREDICTIONS = outputs.PREDICTIONS
RECORD = trained.RECORD
VALIDATION = "valid"

Predicted = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to evaluate.

    Attributes:
      batch_size: images at a time, over all devices.
      replicates: of the bootstrap; 0 for no intervals.
      checkpoint: of a run: "latest", "best" by the validation's mean AUROC, or a step.
      thresholds: "" takes those stored with a model and else chooses them on the data's validation split; "valid"
        always chooses; else a file thresholds.json.
      groups: CSV file of groups of studies, or "".
      gallery: films of each kind that the page shows; 0 for none.
      show_ids: the page names the images, studies and patients of these films.
    """

    batch_size: int
    replicates: int
    checkpoint: int | str = "latest"
    thresholds: str = ""
    groups: str = ""
    gallery: int = 0
    show_ids: bool = False


def run(
    run_folder: pathlib.Path,
    output: pathlib.Path,
    split: str,
    config: Mapping[str, Any],
    journal: Journal,
    seconds: Mapping[str, float] | None = None,
    against: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Scores a run on a split of its own data; see :func:`model` for what it writes.

    Args:
      run_folder: of the LU-ViT run; its ``run.json`` says where data and side-cars are.
      output: folder to write to; must exist.
      split: train, valid or test.
      config: fields of :class:`Settings`.
      journal: the table is said to it.
      seconds: stage -> time it took, shown on the page.
      against: a further run, checkpoint or export to compare with on the same images, or None.

    Returns:
      Summary: images and mean metrics.

    Raises:
      FileNotFoundError: the run, its checkpoint or its data does not exist.
      ValueError: the checkpoint was made for other findings or other images than the data has.
    """
    settings = Settings(**config)
    record = subjects.record_of(run_folder)
    mesh = sharding.make_mesh()
    first = subjects.of_run(run_folder, mesh, settings.checkpoint)
    first = dataclasses.replace(first, info={"seconds": dict(seconds or {}), **first.info})
    others = [subjects.at(against, mesh, settings.checkpoint)] if against else []
    name = record.get("config", {}).get("data", {}).get("dataset", "its data")
    return _evaluate([first, *others], subjects.place_of(run_folder), name, output, split, settings, mesh, journal)


def model(
    path: pathlib.Path,
    place: Place,
    output: pathlib.Path,
    split: str,
    config: Mapping[str, Any],
    journal: Journal,
    against: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Scores any checkpoint or export on any data set, and compares it with another where ``against`` is given.

    Writes ``predictions.parquet``, ``metrics.json``, ``table.md``, ``thresholds.json`` and ``report.html``, the first
    four of the other model to the folder ``against``, and ``comparison.json`` and ``comparison.md``. Called by every
    process of a job.

    Args:
      path: see :func:`repgls_jax.trained.load`.
      place: of the data.
      output, split, config, journal, against: see :func:`run`, as for what is raised and returned.
    """
    settings = Settings(**config)
    mesh = sharding.make_mesh()
    paths = [path, against] if against else [path]
    made = [subjects.at(one, mesh, settings.checkpoint) for one in paths]
    return _evaluate(made, place, place.shards.parent.name, output, split, settings, mesh, journal)


def _evaluate(
    models: Sequence[Subject],
    place: Place,
    name: str,
    output: pathlib.Path,
    split: str,
    settings: Settings,
    mesh: Any,
    journal: Journal,
) -> dict[str, Any]:
    alignments = [_alignment(subject, place, split) for subject in models]
    labelled = [sets.read(place, split, alignment) for alignment in alignments]
    if len(models) > 1 and alignments[0].vocabulary.findings != alignments[1].vocabulary.findings:
        raise ValueError(
            f"{models[0].model.where} is scored on [{', '.join(alignments[0].vocabulary.findings)}] and "
            f"{models[1].model.where} on [{', '.join(alignments[1].vocabulary.findings)}]; models are compared on the "
            "same findings"
        )
    groups = None
    if settings.groups:
        groups = sets.read_groups(pathlib.Path(settings.groups), list(labelled[0].examples["study_id"]))
    predicted = [_predict(subject, place, split, settings, mesh) for subject in models]
    points = [
        _thresholds(subject, place, alignment, part, settings, mesh, split, scored)
        for subject, alignment, part, scored in zip(models, alignments, labelled, predicted, strict=True)
    ]
    if not distributed.is_first():
        return distributed.from_first("scores", dict)
    shown, results = [], []
    for i, subject in enumerate(models):
        folder = output if i == 0 else output / "against"
        folder.mkdir(exist_ok=True)
        one = _scored(labelled[i], alignments[i], predicted[i], points[i], settings, groups)
        results.append(one)
        _write(folder, one, labelled[i], predicted[i], subject, alignments[i], points[i][0])
        info = {"split": split, "scored against": one["reference"], "thresholds": points[i][1], **subject.info}
        if alignments[i].told():
            info["not scored"] = alignments[i].told()
        shown.append(page.Run(subject.name, one, subject.history, info, subject.rates, subject.rate_finding))
        journal.say(f"\n{subject.name}, {split} split, scored against: {one['reference']}\n{table.format_text(one)}")
        journal.say("\n".join(table_points.brief(one)))
        if alignments[i].told():
            journal.say(f"not scored: {alignments[i].told()}")
    shown = _told_apart(shown)
    compared = None
    if len(models) > 1:
        compared = _compared(shown, labelled[0], alignments, predicted, output, settings)
        journal.say(f"\n{table_points.format_comparison(compared)}")
    found, vocabulary = _aligned(predicted[0], alignments[0]), alignments[0].vocabulary
    cards = films.gallery(place.shards, labelled[0], found, vocabulary, settings.gallery, settings.show_ids)
    lead = f"Scored against: {results[0]['reference']}."
    title = f"LU-ViT on {name}: {split} split"
    page.write_page(output / outputs.PAGE, title, shown, lead=lead, gallery=cards, comparison=compared)
    journal.say(f"\npage: {output / outputs.PAGE}")
    means = {f"mean_{metric}": entry["value"] for metric, entry in results[0]["mean"].items()}
    summary = {"images": results[0]["images"], "patients": results[0]["patients"], **means}
    return distributed.from_first("scores", lambda: summary)


def _told_apart(runs: list[page.Run]) -> list[page.Run]:
    """Runs whose names differ: two of one name are numbered."""
    if len({run.name for run in runs}) == len(runs):
        return runs
    return [dataclasses.replace(run, name=f"{run.name} ({i + 1})") for i, run in enumerate(runs)]


def _alignment(subject: Subject, place: Place, split: str) -> Alignment:
    model, vocabulary = subject.model, shards_lib.vocabulary(place.shards)
    alignment = sets.align(model.vocabulary, vocabulary)
    stored = shards_lib.Images(place.shards, split)
    luvit_model.require_input(model.input, stored.dtype, stored.shape[0], f"the model in {model.where}")
    return alignment


def _predict(subject: Subject, place: Place, split: str, settings: Settings, mesh: Any) -> Predicted:
    """Probabilities and rates [n, findings of the model] of a split."""
    batch_size = sharding.round_up(settings.batch_size, sharding.batch_parts(mesh))
    host, hosts = sharding.host_part(mesh)
    batches = pipeline.eval_batches(place.shards, split, {}, batch_size=batch_size, host_index=host, host_count=hosts)
    return luvit.predict(subject.model.apply, subject.model.params, batches, mesh)


def _aligned(predicted: Predicted, alignment: Alignment) -> Predicted:
    return {name: values[:, alignment.model] for name, values in predicted.items()}


def _thresholds(
    subject: Subject,
    place: Place,
    alignment: Alignment,
    labelled: Labelled,
    settings: Settings,
    mesh: Any,
    split: str,
    scored: Predicted,
) -> tuple[operating.Thresholds | None, str]:
    """Thresholds of the findings, and where they are from. Called by every process: a validation split is predicted."""
    findings = alignment.vocabulary.findings
    stored = subject.model.thresholds
    if settings.thresholds not in ("", VALIDATION):
        path = pathlib.Path(settings.thresholds)
        if not path.is_file():
            raise FileNotFoundError(f"thresholds {path} do not exist; expected a file of launch/evaluate.py")
        try:
            told = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"thresholds {path} are not JSON: {error}") from None
        return operating.require(told, findings, str(path)), f"of {path.name}"
    if stored and settings.thresholds == "":
        return operating.require(stored, findings, f"the model in {subject.model.where}"), "stored with the model"
    if split == VALIDATION:
        chosen = operating.choose(_aligned(scored, alignment)["probability"], labelled.labels, labelled.mask, findings)
        return chosen, "chosen on the images that are scored: read what they give with care"
    if VALIDATION not in sets.splits(place.shards):
        return None, "none: the data has no validation split, and no threshold is stored with the model"
    held = sets.read(place, VALIDATION, alignment)
    predicted = _aligned(_predict(subject, place, VALIDATION, settings, mesh), alignment)
    chosen = operating.choose(predicted["probability"], held.labels, held.mask, findings)
    return chosen, f"chosen on the {len(held.labels):,} images of the validation split"


def _scored(
    labelled: Labelled,
    alignment: Alignment,
    predicted: Predicted,
    points: tuple[operating.Thresholds | None, str],
    settings: Settings,
    groups: sets.Groups | None,
) -> dict[str, Any]:
    """What metrics.json holds: the dictionary of ``score.score`` and operating, selective, strata beside it."""
    found, vocabulary = _aligned(predicted, alignment), alignment.vocabulary
    findings, replicates = vocabulary.findings, settings.replicates
    truth = (labelled.labels, labelled.mask)
    results = score.score(found["probability"], *truth, labelled.patients, vocabulary, replicates=replicates)
    results |= {"reference": labelled.reference, "split": labelled.split}
    results["not_scored"] = {"no_labels": list(alignment.only_model), "unknown": list(alignment.only_data)}
    thresholds, origin = points
    _, patient = np.unique(np.asarray(labelled.patients), return_inverse=True)
    rules = {
        rule: operating.measure(
            found["probability"],
            *truth,
            patient,
            each,
            findings,
            patients=int(patient.max()) + 1,
            replicates=replicates,
        )
        for rule, each in (thresholds or {}).items()
    }
    results["operating"] = {"thresholds": origin, "rules": rules}
    # Without a threshold calls are made at even odds.
    main = (thresholds or {}).get(operating.MAIN) or dict.fromkeys(findings, 0.5)
    results["selective"] = selective.measure(found["probability"], found["rate"], *truth, main, findings)
    results["strata"] = strata.measure(
        found["probability"],
        *truth,
        labelled.patients,
        vocabulary,
        sets.strata_of(labelled, groups),
        main,
        replicates=replicates,
    )
    return results


def _write(
    folder: pathlib.Path,
    results: dict[str, Any],
    labelled: Labelled,
    predicted: Predicted,
    subject: Subject,
    alignment: Alignment,
    thresholds: operating.Thresholds | None,
) -> None:
    outputs.predictions(folder / outputs.PREDICTIONS, labelled, predicted, subject.model.vocabulary, alignment)
    outputs.as_json(folder / outputs.METRICS, {**results, "model": dict(subject.model.source)})
    outputs.text(folder / outputs.TABLE, table.format_markdown(results) + table_points.format_markdown(results))
    if thresholds is not None:
        outputs.as_json(folder / outputs.THRESHOLDS, thresholds)


def _compared(
    runs: Sequence[page.Run],
    labelled: Labelled,
    alignments: Sequence[Alignment],
    predicted: Sequence[Predicted],
    output: pathlib.Path,
    settings: Settings,
) -> dict[str, Any]:
    """The first model less the second, written and returned."""
    ours, theirs = (_aligned(p, a)["probability"] for p, a in zip(predicted, alignments, strict=True))
    vocabulary, replicates = alignments[0].vocabulary, max(settings.replicates, 1)
    truth = (labelled.labels, labelled.mask, labelled.patients)
    found = compare.paired(ours, theirs, *truth, vocabulary, replicates=replicates)
    found |= {"first": runs[0].name, "second": runs[1].name}
    found |= {"reference": labelled.reference, "split": labelled.split}
    outputs.as_json(output / outputs.COMPARISON, found)
    outputs.text(output / outputs.COMPARISON_TABLE, table_points.format_comparison(found))
    return found
