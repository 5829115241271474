"""A labelled split for evaluation: labels, strata and films, in the order of a model's findings.

A model may be scored on data of another vocabulary: findings are aligned by name, and those that one of the two lacks
are told, not dropped in silence.
"""

import csv
import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds

from repgls_jax import findings as findings_lib
from repgls_jax import sidecars
from repgls_jax.data import shards as shards_lib
from repgls_jax.data.build import SHARDS
from repgls_jax.results import strata
from repgls_jax.train import labels

MAX_GROUPS_BYTES = 256 * 2**20
_LONGEST = 40  # characters of a group's name
_STUDY = "study_id"

# group column -> study -> its group
Groups = dict[str, dict[str, str]]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a data set is.

    Attributes:
      shards: the folder "shards" of a build.
      evidence: evidence.parquet, or None for data whose reports have not been read.
    """

    shards: pathlib.Path
    evidence: pathlib.Path | None


def place(build: pathlib.Path, evidence: pathlib.Path | None = None) -> Place:
    """The data set of a build, the folder that data_prep/build.py writes, or of a run's stage "data", which has one.

    Raises:
      FileNotFoundError: there is no complete build.
    """
    folder = next((f for f in (build, build / "set") if (f / SHARDS).is_dir()), None)
    if folder is None:
        raise FileNotFoundError(f"{build} holds no folder '{SHARDS}'; expected a build of data_prep/build.py")
    return Place(folder / SHARDS, evidence)


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Which findings can be scored.

    Attributes:
      vocabulary: the c findings that model and data share, in the model's order.
      model: int [c], their places among the model's.
      data: int [c], their places among the data's.
      only_model, only_data: findings that cannot be scored, for the other lacks them.
    """

    vocabulary: findings_lib.Vocabulary
    model: np.ndarray
    data: np.ndarray
    only_model: tuple[str, ...]
    only_data: tuple[str, ...]

    def told(self) -> str:
        """What is not scored and why; "" where all is."""
        parts = [f"no labels in the data: {', '.join(self.only_model)}"] if self.only_model else []
        parts += [f"unknown to the model: {', '.join(self.only_data)}"] if self.only_data else []
        return "; ".join(parts)


def align(model: findings_lib.Vocabulary, data: findings_lib.Vocabulary) -> Alignment:
    """The findings that both know, by name.

    Raises:
      ValueError: there are none.
    """
    shared = [f for f in model.findings if f in data.findings]
    if not shared:
        raise ValueError(
            f"the model's findings [{', '.join(model.findings)}] and the data's [{', '.join(data.findings)}] have none "
            "in common; evaluate on data with labels of the model's findings"
        )
    same = len(shared) == len(model)
    vocabulary = model if same else findings_lib.Vocabulary(f"{model.name} in {data.name}", 1, tuple(shared))
    return Alignment(
        vocabulary,
        np.array([model.findings.index(f) for f in shared]),
        np.array([data.findings.index(f) for f in shared]),
        tuple(f for f in model.findings if f not in data.findings),
        tuple(f for f in data.findings if f not in model.findings),
    )


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A split, in the order of its examples and of an alignment's findings.

    Attributes:
      split: its name.
      examples: small fields of the shards: ``image_id``, ``study_id``, ``patient_id``, ``view``, ``sex``, ``age``, ...
      labels: int8 [n, c] of 0 and 1.
      mask: bool [n, c], True where a label counts.
      reference: what the labels are, in words.
      p: float32 [n, c], the certainty that the report's wording expresses.
      mentioned: bool [n, c], whether a report that has been read says anything of the finding.
      told: bool [n], whether the study has such a report.
    """

    split: str
    examples: dict[str, np.ndarray]
    labels: np.ndarray
    mask: np.ndarray
    reference: str
    p: np.ndarray
    mentioned: np.ndarray
    told: np.ndarray

    @property
    def patients(self) -> list[str]:
        """Patient ids [n]."""
        return list(self.examples["patient_id"])


def splits(shards: pathlib.Path) -> list[str]:
    """Names of the splits that the shards have.

    Raises:
      FileNotFoundError: there are no shards.
    """
    shards_lib.vocabulary(shards)
    return list(tfds.builder_from_directory(shards).info.splits)


def read(where: Place, split: str, alignment: Alignment) -> Labelled:
    """Labels of a split; images stay where they are.

    Raises:
      FileNotFoundError: shards or evidence are missing.
      ValueError: no such split, or evidence with other findings than the data.
    """
    vocabulary = shards_lib.vocabulary(where.shards)
    examples = shards_lib.examples(where.shards, split)
    evidence = where.evidence and sidecars.read(where.evidence, sidecars.EVIDENCE, vocabulary)
    made = labels.columns(examples, evidence or None, vocabulary)
    truth, mask, reference = labels.reference(made, examples["has_report"])
    told = labels.was_read(examples, evidence) if evidence else np.zeros(len(truth), bool)
    columns = alignment.data
    mentioned = (made["state"] != findings_lib.NOT_MENTIONED) & told[:, None]
    return Labelled(
        split=split,
        examples=examples,
        labels=truth[:, columns],
        mask=mask[:, columns],
        reference=reference,
        p=made["p"][:, columns],
        mentioned=mentioned[:, columns],
        told=told,
    )


def strata_of(labelled: Labelled, groups: Groups | None = None) -> strata.Strata:
    """The dimensions that the data knows: certainty of reports, view, sex, age, and the user's groups."""
    made: strata.Strata = {}
    if labelled.told.any():
        levels = strata.by_certainty(labelled.p, labelled.mentioned)
        made["what the report says"] = {name: of & labelled.told[:, None] for name, of in levels.items()}
    examples = labelled.examples
    made["view"] = strata.by_name(examples["view"].tolist())
    made["sex"] = strata.by_name(examples["sex"].tolist())
    made["age"] = strata.by_age(examples["age"])
    for column, of_study in (groups or {}).items():
        made[column] = strata.by_name([of_study.get(study, "") for study in examples["study_id"].tolist()])
    return made


def read_groups(path: pathlib.Path, studies: Sequence[str]) -> Groups:
    """Groups of studies from a CSV file with a column study_id and one for each way of grouping.

    Args:
      path: of the file, UTF-8.
      studies: ids of the evaluated studies; others are not kept.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is too large, has not these columns, gives a study two groups or knows none of the studies.
    """
    if not path.is_file():
        raise FileNotFoundError(f"groups {path} does not exist; expected a CSV file with the column {_STUDY}")
    if path.stat().st_size > MAX_GROUPS_BYTES:
        raise ValueError(f"groups {path} has {path.stat().st_size:,} bytes; expected {MAX_GROUPS_BYTES:,} at most")
    wanted = set(studies)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        columns = [name for name in rows.fieldnames or [] if name and name != _STUDY]
        if _STUDY not in (rows.fieldnames or []) or not columns:
            raise ValueError(f"groups {path} has the columns {rows.fieldnames}; expected {_STUDY} and one more")
        made: Groups = {name: {} for name in columns}
        for row in rows:
            study = row[_STUDY]
            if study not in wanted:
                continue
            for name in columns:
                value = (row[name] or "").strip()[:_LONGEST]
                if made[name].setdefault(study, value) != value:
                    raise ValueError(f"groups {path} gives a study two values of {name!r}, line {rows.line_num}")
    if not any(made.values()):
        raise ValueError(f"groups {path} has none of the {len(wanted):,} studies of the split; compare the ids")
    return made
