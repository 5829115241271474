"""The data sets that a run trains on: label columns of one, and of all under the first one's vocabulary."""

import dataclasses
import pathlib
from collections.abc import Sequence

import pyarrow as pa

from repgls_jax import findings as findings_lib
from repgls_jax import methods, policies
from repgls_jax.data import mix
from repgls_jax.data import shards as shards_lib
from repgls_jax.train import labels


@dataclasses.dataclass(frozen=True)
class Part:
    """One data set.

    Attributes:
      shards: folder of the image shards.
      vocabulary: order of its findings, the shards' own.
      evidence: side-car, or None for data without reports.
      rates: the RGN's rates, or None.
    """

    shards: pathlib.Path
    vocabulary: findings_lib.Vocabulary
    evidence: pa.Table | None
    rates: pa.Table | None


def columns(part: Part, split: str, policy: policies.PolicyConfig, seed: int) -> labels.Columns:
    """Label columns of a split in the data set's own vocabulary, with rates as the policy asks.

    Raises:
      ValueError: the policy needs columns or rates that the data set does not have.
    """
    examples = shards_lib.examples(part.shards, split)
    made = labels.columns(examples, part.evidence, part.vocabulary)
    return labels.with_rates(made, list(examples["study_id"]), part.rates, part.vocabulary, policy, seed)


def training(parts: Sequence[Part], policy: policies.PolicyConfig, seed: int) -> labels.Columns:
    """What the policy reads of the training splits, end to end, findings in the order of the first one's vocabulary.

    A finding that a data set does not know is not mentioned and not observed there, which keeps it out of the loss.
    Rates are permuted, where the policy does so, within each data set.

    Raises:
      ValueError: see :func:`columns`.
    """
    # Only what the policy reads is joined with the images.
    # Readers of several data sets would be taken for each other.
    reader = ("group",) if len(parts) == 1 and methods.METHODS[policy.name].groups else ()
    needed = ("state", "p", "observed", "rate", *methods.METHODS[policy.name].needs, *reader)
    aligned = []
    for part in parts:
        made = {name: values for name, values in columns(part, "train", policy, seed).items() if name in needed}
        aligned.append(mix.align(made, part.vocabulary, parts[0].vocabulary))
    return mix.concatenate(aligned)


def image_ids(parts: Sequence[Part]) -> list[str]:
    """Ids of the training images, in the order of the rows of :func:`training`."""
    return [name for part in parts for name in shards_lib.examples(part.shards, "train")["image_id"].tolist()]
