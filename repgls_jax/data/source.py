"""What a data set has to offer: a Source of records, one per image, each read on its own.

A record is a plain dict with the fields of :mod:`repgls_jax.data.features` (image without its channel axis) and the
report text in ``report`` or in ``findings`` and ``impression``. It may also hold ``boxes``, a list of (finding, x0, y0,
x1, y1) in pixels of the film as it was read, and must then hold ``placement`` = (scale, left, top), which takes them to
the stored image: x * scale + left, y * scale + top. An image that cannot be used comes as a :class:`Quarantined`, so
that it is counted and explained instead of lost.
"""

import dataclasses
from typing import Any, Protocol

from repgls_jax.data.images import Bits
from repgls_jax.findings import Vocabulary

SPLITS = ("train", "valid", "test")
TEXT_FIELDS = ("findings", "impression", "report")
UNKNOWN_AGE = -1

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

    Records are asked for in any order, by several processes at a time: a source is pickled for each of them, and opens
    the files it needs when it is asked, not when it is made.

    Attributes:
      vocabulary: order of the axis c.
      image_size: side of the square images, in pixels.
      bits: of a pixel; images are uint8 for 8, uint16 for 16.
      simulated: whether records carry the phantom's known truth.
    """

    vocabulary: Vocabulary
    image_size: int
    bits: Bits
    simulated: bool

    def splits(self) -> dict[str, int]:
        """Images planned per split, before any is quarantined; keys are from :data:`SPLITS`."""
        ...

    def record(self, split: str, i: int) -> Record | Quarantined:
        """Image ``i`` of a split, 0 <= i < splits()[split]: always the same for the same parameters."""
        ...

    def parameters(self) -> dict[str, Any]:
        """Everything the records follow from, as JSON values: two equal answers mean equal records."""
        ...
