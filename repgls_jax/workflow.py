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
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import ml_collections
import pyarrow as pa

from repgls_jax import __version__, evaluate, mixture, sidecars, stages
from repgls_jax import config as config_lib
from repgls_jax import data as data_lib
from repgls_jax import findings as findings_lib
from repgls_jax.data import shards as shards_lib
from repgls_jax.data.build import MANIFEST, REPORTS, SHARDS
from repgls_jax.data.features import SIMULATED
from repgls_jax.data.source import SPLITS, Source
from repgls_jax.extraction import backends
from repgls_jax.extraction import run as extract_lib
from repgls_jax.models import vit
from repgls_jax.policies import POLICIES, PolicyConfig, require_columns
from repgls_jax.stages import Done
from repgls_jax.train import luvit, parts, rgn, sharding
from repgls_jax.train.journal import Journal

# Raised when a stage's result changes for the same inputs, so that old folders are not taken for new ones.
STAGE_VERSIONS = {"data": 1, "evidence": 2, "rgn": 1, "luvit": 1, "evaluation": 1}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What training reads.

    Attributes:
      data: its folder holds ``set/shards``, ``set/reports.parquet`` and ``set/manifest.json``.
      evidence: its folder holds ``evidence.parquet``; None when no study has a report.
      rgn: its folder holds ``rates.parquet``; None when the policy does not read the RGN's rates.
      vocabulary: order of the findings.
    """

    data: Done
    evidence: Done | None
    rgn: Done | None
    vocabulary: findings_lib.Vocabulary

    @property
    def shards(self) -> pathlib.Path:
        """Folder of the image shards."""
        return self.data.folder / "set" / SHARDS

    @property
    def reports(self) -> pathlib.Path:
        """File of the reports' texts."""
        return self.data.folder / "set" / REPORTS

    def evidence_table(self) -> pa.Table | None:
        """The evidence, or None."""
        path = self.evidence and self.evidence.folder / "evidence.parquet"
        return path and sidecars.read(path, sidecars.EVIDENCE, self.vocabulary)

    def rates_table(self) -> pa.Table | None:
        """The RGN's rates, or None."""
        path = self.rgn and self.rgn.folder / "rates.parquet"
        return path and sidecars.read(path, sidecars.RATES, self.vocabulary)

    def stages(self) -> dict[str, Done]:
        """The stages that were done, in order."""
        done = {"data": self.data, "evidence": self.evidence, "rgn": self.rgn}
        return {name: stage for name, stage in done.items() if stage}

    def where(self) -> dict[str, str]:
        """Folders of the stages beside the run's own, for its record; a work directory can be moved as a whole."""
        return {name: stage.folder.name for name, stage in self.stages().items()}

    def keys(self) -> dict[str, str]:
        """Keys of the stages, for the inputs of those that follow."""
        return {name: stage.key for name, stage in self.stages().items()}

    def part(self) -> parts.Part:
        """The data set as training reads it."""
        return parts.Part(self.shards, self.vocabulary, self.evidence_table(), self.rates_table())


def _inputs(stage: str, **inputs: Any) -> dict[str, Any]:
    return {"stage": STAGE_VERSIONS[stage], "package": __version__, **inputs}


def make_source(config: ml_collections.ConfigDict) -> Source:
    """The data set that the config names, read far enough to know its studies and splits.

    Raises:
      ValueError: an option is missing or wrong, or a split is missing.
      FileNotFoundError: a folder or file that the config names does not exist.
    """
    options = config_lib.plain(config.data.options)
    if "columns" in options:
        options["columns"] = {role: column for role, column in options["columns"].items() if column is not None}
    if options.get("source") == "":
        raise ValueError(f"data={config.data.dataset} needs its folder; add source=DIR to the config arguments")
    source = data_lib.dataset(config.data.dataset)(**options)
    missing = [split for split in SPLITS if split not in source.splits()]
    if missing:
        raise ValueError(
            f"the data has no images for {', '.join(missing)}; training, choice and test need patients of their own. "
            "Add the split to the table, or leave the split column out (columns.split= empty) to have splits made"
        )
    return source


def prepare_data(config: ml_collections.ConfigDict, root: pathlib.Path, journal: Journal) -> Done:
    """Builds the data set; bad input raises ValueError or FileNotFoundError that says what and where."""
    source = make_source(config)

    def work(folder: pathlib.Path) -> dict[str, Any]:
        manifest = data_lib.build_source(source, folder / "set", overwrite=True, progress=journal.stream is not None)
        counts = manifest["counts"]
        images = {split: counts[split]["images"] for split in counts}
        return {
            **images,
            "reports": sum(c["reports"] for c in counts.values()),
            "quarantined": manifest["quarantine"]["count"],
            "manifest": str(folder / "set" / MANIFEST),
        }

    inputs = _inputs("data", dataset=config.data.dataset, build=data_lib.identity_of(source))
    return stages.run(root, "data", inputs, work, journal)


def prepare(config: ml_collections.ConfigDict, root: pathlib.Path, journal: Journal) -> Prepared:
    """The stages before LU-ViT: data, evidence and, where they are read, the RGN's rates."""
    data = prepare_data(config, root, journal)
    done = Prepared(data, None, None, shards_lib.vocabulary(data.folder / "set" / SHARDS))
    if not data.summary["reports"]:
        journal.say("[evidence] no study has a report: labels are those of the data set")
        return done

    backend = config.extract.backend
    labeller = backends.make(backend, done.vocabulary).version

    def extract(folder: pathlib.Path) -> dict[str, Any]:
        # The journal's own line sums the stage up.
        return extract_lib.extract(done.reports, folder / "evidence.parquet", done.vocabulary, backend)

    inputs = _inputs("evidence", data=data.key, vocabulary=done.vocabulary.name, labeller=labeller)
    done = dataclasses.replace(done, evidence=stages.run(root, "evidence", inputs, extract, journal))
    if config.task != "rgn" and POLICIES[config.policy.name].rates != "rgn":
        return done
    return dataclasses.replace(done, rgn=_rates(config, done, root, journal))


def _rates(config: ml_collections.ConfigDict, done: Prepared, root: pathlib.Path, journal: Journal) -> Done:
    evidence = done.evidence
    assert evidence is not None  # prepare() calls this only for data with reports

    def work(folder: pathlib.Path) -> dict[str, Any]:
        path = evidence.folder / "evidence.parquet"
        return rgn.run(config.rgn, done.vocabulary, done.reports, path, folder, journal, evidence.key, rho)

    rho = config.policy.rho
    inputs = _inputs("rgn", evidence=evidence.key, config=config_lib.plain(config.rgn), rho=rho)
    return stages.run(root, "rgn", inputs, work, journal)


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
        done = made[name] = prepare(own, root, journal)
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
) -> Done:
    """Trains LU-ViT on what :func:`prepare` left, and :func:`prepare_further`."""
    settings = {k: v for k, v in config_lib.plain(config).items() if k in ("seed", "model", "policy", "train")}
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
        (folder / evaluate.RECORD).write_text(json.dumps(record, indent=1))
        return luvit.run(config, _parts(done, further), weights, folder, journal)

    return stages.run(root, "luvit", _inputs("luvit", **done.keys(), **mixed, **settings), work, journal)


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


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses settings that would only fail after the data has been built.

    Raises:
      ValueError: names the setting and what would be right.
    """
    if config.task not in ("luvit", "rgn"):
        raise ValueError(f"task {config.task!r} is unknown; expected luvit or rgn")
    PolicyConfig.of(config.policy)
    devices = jax.device_count()
    for name, train in (("train", config.train), ("rgn.train", config.rgn.train)):
        config_lib.choose("mesh", train.mesh, sharding.PRESETS)
        if train.batch_size % devices:
            raise ValueError(
                f"{name}.batch_size is {train.batch_size}; {devices} devices need a multiple of {devices}: "
                f"--config.{name}.batch_size={sharding.round_up(train.batch_size, devices)}"
            )
    _, patch = vit.parse_model(config.model.name)
    side = config.data.options.image_size
    if side % patch:
        raise ValueError(
            f"images of {side} pixels do not divide into the patches of {config.model.name}; set image_size="
        )
    for own in mixture.configs(config).values():
        make_source(own)
    name = config.policy.name
    if config.task == "luvit" and POLICIES[name].needs:
        require_columns(name, SIMULATED if make_source(config).simulated else ())


def run(config: ml_collections.ConfigDict, root: pathlib.Path, journal: Journal) -> dict[str, Done]:
    """Runs every stage that the config asks for, reusing what has been done with the same inputs.

    Args:
      config: of configs/luvit.py or configs/rgn.py.
      root: folder of the stages.
      journal: told what each stage does.

    Returns:
      Stage name -> what it left, in order.

    Raises:
      ValueError: a setting or the input data cannot be used; says which and what would be right.
      FileNotFoundError: a file or folder that the config names does not exist.
    """
    check(config)
    done = prepare(config, root, journal)
    chain = done.stages()
    if config.task == "rgn":
        if done.rgn is None:
            raise ValueError("no study has a report, so there is nothing for the RGN to read")
        return chain
    further = prepare_further(config, done, root, journal)
    for name, other in further.items():
        chain |= {f"{stage}:{name}": left for stage, left in other.stages().items()}
    trained = chain["luvit"] = train_luvit(config, done, root, journal, further)

    def score(folder: pathlib.Path) -> dict[str, Any]:
        took = {name: stage.seconds for name, stage in chain.items()}
        return evaluate.run(trained.folder, folder, "test", config_lib.plain(config.evaluate), journal, took)

    inputs = _inputs("evaluation", luvit=trained.key, evaluate=config_lib.plain(config.evaluate))
    chain["evaluation"] = stages.run(root, "evaluation", inputs, score, journal)
    return chain
