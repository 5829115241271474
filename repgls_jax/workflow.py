"""The whole method as a chain of stages, each one folder on disk (see :mod:`repgls_jax.stages`).

data        raw data set -> image shards, reports.parquet
evidence    reports -> evidence.parquet
rgn         reports, evidence -> RGN checkpoint, rates.parquet
luvit       shards, evidence, rates -> LU-ViT checkpoint
evaluation  checkpoint -> predictions.parquet, metrics.json, report.html
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import ml_collections

from repgls_jax import __version__, checks, distributed, evaluate, mixture, sidecars, sources, stages
from repgls_jax import config as config_lib
from repgls_jax import data as data_lib
from repgls_jax.data import fetch
from repgls_jax.data import shards as shards_lib
from repgls_jax.data.build import MANIFEST, SHARDS
from repgls_jax.data.source import SPLITS
from repgls_jax.exports import files
from repgls_jax.extraction import backends, given
from repgls_jax.extraction import run as extract_lib
from repgls_jax.methods import METHODS
from repgls_jax.models import pretrained
from repgls_jax.prepared import Prepared
from repgls_jax.stages import Done
from repgls_jax.train import luvit, parts, place, rgn
from repgls_jax.train.journal import Journal

# Raised when a stage's result changes for the same inputs, so that old folders are not taken for new ones.
STAGE_VERSIONS = {"data": 1, "evidence": 2, "rgn": 3, "luvit": 1, "evaluation": 1}


def _inputs(stage: str, **inputs: Any) -> dict[str, Any]:
    return {"stage": STAGE_VERSIONS[stage], "package": __version__, **inputs}


def prepare_data(
    config: ml_collections.ConfigDict, root: pathlib.Path, journal: Journal, needed: Sequence[str] = SPLITS
) -> Done:
    """Builds the data set; bad input raises ValueError or FileNotFoundError that says what and where."""
    if config.data.dataset == sources.BUILT:
        place = config.data.options.source
        build: Any = sources.described(config)[1]
    else:
        source = sources.make_source(config, needed)
        build = data_lib.identity_of(source)

    def work(folder: pathlib.Path) -> dict[str, Any]:
        if config.data.dataset == sources.BUILT:
            manifest = data_lib.read_manifest(fetch.fetch(place, folder / "set", reports=True))
        else:
            progress = journal.stream is not None
            manifest = data_lib.build_source(source, folder / "set", overwrite=True, progress=progress)
        counts = manifest["counts"]
        images = {split: counts[split]["images"] for split in counts}
        return {
            **images,
            "reports": sum(c["reports"] for c in counts.values()),
            "quarantined": manifest["quarantine"]["count"],
            "manifest": str(folder / "set" / MANIFEST),
        }

    inputs = _inputs("data", dataset=config.data.dataset, build=build)
    done = stages.run(root, "data", inputs, work, journal)
    # Its marker may have been copied, and not the rest.
    distributed.require_shared(done.folder / "set" / MANIFEST)
    return done


def prepare(
    config: ml_collections.ConfigDict, root: pathlib.Path, journal: Journal, needed: Sequence[str] = SPLITS
) -> Prepared:
    """The stages before LU-ViT: data with the splits ``needed``, evidence and, where they are read, the RGN's rates."""
    data = prepare_data(config, root, journal, needed)
    done = Prepared(data, None, None, shards_lib.vocabulary(data.folder / "set" / SHARDS))
    if not data.summary["reports"]:
        journal.say("[evidence] no study has a report: labels are those of the data set")
        return done

    done = dataclasses.replace(done, evidence=_evidence(config, done, root, journal))
    if config.task != "rgn" and METHODS[config.policy.name].rates != "rgn":
        return done
    return dataclasses.replace(done, rgn=_rates(config, done, root, journal))


def _evidence(config: ml_collections.ConfigDict, done: Prepared, root: pathlib.Path, journal: Journal) -> Done:
    backend, file = config.extract.backend, config.extract.evidence

    def work(folder: pathlib.Path) -> dict[str, Any]:
        output = folder / "evidence.parquet"
        if file:
            return given.take(pathlib.Path(file), done.reports, output, done.vocabulary)
        # The journal's own line sums the stage up.
        return extract_lib.extract(done.reports, output, done.vocabulary, backend)

    labeller = f"given {files.digest(pathlib.Path(file))}" if file else backends.make(backend, done.vocabulary).version
    inputs = _inputs("evidence", data=done.data.key, vocabulary=done.vocabulary.name, labeller=labeller)
    return stages.run(root, "evidence", inputs, work, journal)


def _rates(config: ml_collections.ConfigDict, done: Prepared, root: pathlib.Path, journal: Journal) -> Done:
    evidence = done.evidence
    assert evidence is not None  # prepare() calls this only for data with reports

    def work(folder: pathlib.Path) -> dict[str, Any]:
        if config.rgn.rates:
            known = sidecars.read(pathlib.Path(config.rgn.rates), sidecars.RATES, done.vocabulary)
            if distributed.is_first():
                shutil.copyfile(config.rgn.rates, folder / "rates.parquet")
            return {"rates": len(known), "given": True}
        path = evidence.folder / "evidence.parquet"
        return rgn.run(config.rgn, done.vocabulary, done.reports, path, folder, journal, evidence.key, rho)

    rho = config.policy.rho
    inputs = _inputs("rgn", evidence=evidence.key, config=config_lib.plain(config.rgn), rho=rho)
    for name in ("features", "rates"):  # another file at the same place is another input
        if config.rgn[name]:
            inputs[name] = files.digest(pathlib.Path(config.rgn[name]))
    return stages.run(root, "rgn", inputs, work, journal, everywhere=True)


def prepare_further(
    config: ml_collections.ConfigDict, first: Prepared, root: pathlib.Path, journal: Journal
) -> dict[str, Prepared]:
    """The stages before LU-ViT of every further training set, each from its own data; {} without any.

    Where the policy reads the RGN's rates, each set has an RGN of its own, trained on its own reports: findings and
    wording are its own too.
    """
    made = {}
    for name, own in mixture.configs(config).items():
        journal.say(f"further training set {name}:")
        done = made[name] = prepare(own, root, journal, ("train",))
        ours, theirs = first.vocabulary.findings, done.vocabulary.findings
        masked, left = [f for f in ours if f not in theirs], [f for f in theirs if f not in ours]
        if masked:
            journal.say(f"  masked, for {name} does not know them: {', '.join(masked)}")
        if left:
            journal.say(f"  left out, for the first set does not know them: {', '.join(left)}")
    return made


def train_luvit(
    config: ml_collections.ConfigDict,
    done: Prepared,
    root: pathlib.Path,
    journal: Journal,
    further: Mapping[str, Prepared] = MappingProxyType({}),
    disk: pathlib.Path | None = None,
    checkpoints: str = "",
) -> Done:
    """Trains LU-ViT on what :func:`prepare` left, and :func:`prepare_further`; see :func:`run`."""
    settings = {k: v for k, v in config_lib.plain(config).items() if k in ("seed", "model", "policy", "train")}
    if not settings["policy"]["hyper"]:  # a run without keeps the inputs, and so the key, of the time before there were
        del settings["policy"]["hyper"]
    if config.model.pretrained:  # another model in the same folder is another input
        settings["pretrained"] = pretrained.load(config.model.pretrained).source
    weights = mixture.weights(config)
    # A run on one data set keeps the inputs, and so the key, that it had before there could be several.
    mixed = {"further": {name: other.keys() for name, other in further.items()}, "weights": weights} if further else {}

    def work(folder: pathlib.Path) -> dict[str, Any]:
        record: dict[str, Any] = {
            "config": config_lib.plain(config),
            "stages": done.where(),
            "vocabulary": dataclasses.asdict(done.vocabulary),
        }
        if further:
            record["training_sets"] = _training_sets(config, done, further, weights)
        if distributed.is_first():
            (folder / evaluate.RECORD).write_text(json.dumps(record, indent=1))
            if checkpoints:
                place.put(folder, checkpoints)
        if checkpoints:
            place.require_shared(folder)
        first, others = done, dict(further)
        if disk is not None:
            journal.say(f"  shards are copied to {disk}")
            first, others = done.copied(disk), {name: other.copied(disk) for name, other in further.items()}
            distributed.together("copies of the shards")
        return luvit.run(config, _parts(first, others), weights, folder, journal)

    inputs = _inputs("luvit", **done.keys(), **mixed, **settings)
    return stages.run(root, "luvit", inputs, work, journal, everywhere=True)


def _parts(first: Prepared, further: Mapping[str, Prepared]) -> list[parts.Part]:
    """What training reads, the first set first.

    A further set without reports has no RGN: under a policy that reads its rates, the set's labels keep the expert's,
    as those of a study without a report do. Of the first set that would be no test of the RGN, and is refused.
    """
    made = [first.part()]
    for other in further.values():
        part = other.part()
        no_rates = sidecars.with_vocabulary(sidecars.RATES, part.vocabulary).empty_table()
        made.append(dataclasses.replace(part, rates=no_rates) if other.evidence is None else part)
    return made


def _training_sets(
    config: ml_collections.ConfigDict, first: Prepared, further: Mapping[str, Prepared], weights: list[float]
) -> list[dict[str, Any]]:
    """The data sets of the training split, for the run's record; the first has the name of its data set."""
    datasets = {name: one.data.dataset for name, one in mixture.configs(config).items()}
    rows = [(config.data.dataset, config.data.dataset, first)]
    rows += [(name, datasets[name], done) for name, done in further.items()]
    return [
        {
            "name": name,
            "dataset": dataset,
            "vocabulary": done.vocabulary.name,
            "images": done.data.summary["train"],
            "weight": weights[i] if weights else None,
            "stages": done.where(),
        }
        for i, (name, dataset, done) in enumerate(rows)
    ]


def run(
    config: ml_collections.ConfigDict,
    root: pathlib.Path,
    journal: Journal,
    disk: pathlib.Path | None = None,
    checkpoints: str = "",
) -> dict[str, Done]:
    """Runs every stage that the config asks for, reusing what has been done with the same inputs.

    Called by every process of a job; ``root`` must be a folder that all of them see.

    Args:
      config: of configs/luvit.py or configs/rgn.py.
      root: folder of the stages.
      journal: told what each stage does.
      disk: folder on a disk of each machine that shards are copied to before training reads them; None to read them
        where they are.
      checkpoints: folder or address such as gs://bucket/runs for LU-ViT's checkpoints; "" for the run's own folder.

    Returns:
      Stage name -> what it left, in order.

    Raises:
      ValueError: a setting or the input data cannot be used; says which and what would be right.
      FileNotFoundError: a file or folder that the config names does not exist.
    """
    checks.check(config)
    if distributed.is_first():
        place.require_renames(root)
    done = prepare(config, root, journal)
    chain = done.stages()
    if config.task == "rgn":
        if done.rgn is None:
            raise ValueError("no study has a report, so there is nothing for the RGN to read")
        return chain
    further = prepare_further(config, done, root, journal)
    for name, other in further.items():
        chain |= {f"{stage}:{name}": left for stage, left in other.stages().items()}
    trained = chain["luvit"] = train_luvit(config, done, root, journal, further, disk, checkpoints)

    def score(folder: pathlib.Path) -> dict[str, Any]:
        took = {name: stage.seconds for name, stage in chain.items()}
        return evaluate.run(trained.folder, folder, "test", config_lib.plain(config.evaluate), journal, took)

    inputs = _inputs("evaluation", luvit=trained.key, evaluate=config_lib.plain(config.evaluate))
    chain["evaluation"] = stages.run(root, "evaluation", inputs, score, journal, everywhere=True)
    return chain
