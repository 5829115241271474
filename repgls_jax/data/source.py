"""What a data set has to offer: a Source of records, one per image, split by split.

A record is a plain dict with the fields of :mod:`repgls_jax.data.features` (image without its channel axis) and the
report text in ``report`` or in ``findings`` and ``impression``. An image that cannot be used comes as a
:class:`Quarantined`, so that it is counted and explained instead of lost.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

from repgls_jax.findings import Vocabulary

SPLITS = ("train", "valid", "test")
TEXT_FIELDS = ("findings", "impression", "report")

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Quarantined:
    """An image that was left out.

    Attributes:
      item: id or path of the image, as the data set spells it.
      reason: why, in words; never holds report text.
    """

    item: str
    reason: str


class Source(Protocol):
    """A data set, before it is written as shards.

    Attributes:
      vocabulary: order of the axis c.
      image_size: side of the square images, in pixels.
      simulated: whether records carry the phantom's known truth.
    """

    vocabulary: Vocabulary
    image_size: int
    simulated: bool

    def splits(self) -> dict[str, int]:
        """Images planned per split, before any is quarantined; keys are from :data:`SPLITS`."""
        ...

    def records(self, split: str) -> Iterator[Record | Quarantined]:
        """The records of a split, always in the same order."""
        ...

    def parameters(self) -> dict[str, Any]:
        """Everything the records follow from, as JSON values: two equal answers mean equal records."""
        ...

    def close(self) -> None:
        """Lets go of worker processes; called when the build is over, however it ended."""
        ...
