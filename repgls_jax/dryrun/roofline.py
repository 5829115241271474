"""How long a step would take at best: the times of arithmetic, memory and links, each alone, at the chip's peak.

Williams, Waterman and Patterson, Communications of the ACM 2009 (doi 10.1145/1498765.1498785), with a third roof for
the links. If all three overlap perfectly a step takes the longest of them; if nothing overlaps, their sum. A real step
is somewhere above the first, and these peaks are never reached: the numbers rank choices, they promise nothing.
"""

import dataclasses
from collections.abc import Sequence

from repgls_jax.chips import Chip
from repgls_jax.dryrun.collectives import Collective


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one step, and what follows from them.

    Attributes:
      compute: arithmetic at the peak, recomputation included.
      memory: traffic with the chip's memory.
      links: collectives within a slice and between slices, one after another.
      images: of a step, over all chips.
      useful: the model's operations in a step and chip (:func:`repgls_jax.dryrun.flops.training`), a second's share
        of the peak being model FLOP utilisation (Chowdhery et al., PaLM, arXiv 2204.02311, appendix B).
      peak: of a chip, operations a second.
    """

    compute: float
    memory: float
    links: float
    images: int
    useful: float
    peak: float

    @property
    def bound(self) -> str:
        """What takes longest: "compute", "memory" or "links"."""
        return max(("compute", "memory", "links"), key=lambda name: getattr(self, name))

    @property
    def shortest(self) -> float:
        """Seconds of a step in which everything overlaps."""
        return max(self.compute, self.memory, self.links)

    @property
    def longest(self) -> float:
        """Seconds of a step in which nothing overlaps."""
        return self.compute + self.memory + self.links

    def mfu(self, seconds: float) -> float:
        """Model FLOP utilisation of a step that takes ``seconds``, in [0, 1]."""
        return self.useful / seconds / self.peak


def estimate(
    chip: Chip, executed: float, useful: float, moved: float, collectives: Sequence[Collective], images: int
) -> Roofline:
    """The roofline of one step.

    Args:
      chip: that it would run on.
      executed: operations of one chip.
      useful: operations of one chip that the model needs.
      moved: bytes between one chip and its memory.
      collectives: of the program.
      images: of a step, over all chips.
    """
    return Roofline(
        compute=executed / chip.flops,
        memory=moved / chip.hbm_bandwidth,
        links=sum(c.seconds(chip) for c in collectives),
        images=images,
        useful=useful,
        peak=chip.flops,
    )
