"""What accelerators can do, for estimates: memory, arithmetic, links. Every figure names its source.

Peaks are dense bfloat16 with float32 accumulation. Bandwidths of links are one way: what a chip can send in a second
while it receives as much. Marketing figures that count both ways, or sparsity, are halved here.
"""

import dataclasses

_GB = 10**9
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator as JAX counts devices.

    Attributes:
      name: as its maker calls it.
      kinds: ``device_kind`` strings of JAX that mean it.
      hbm_bytes: memory that a program can have, bytes. Of TPUs it is what libtpu 0.0.42 names when a program asks for
        more, which is a little less than the sheet says.
      flops: peak bfloat16 operations a second, a multiply-add counting two.
      hbm_bandwidth: bytes a second between memory and chip.
      links: direct links to other chips; of an NVLink switch 1.
      link_bandwidth: bytes a second that one link sends, one way.
      ring: a torus axis closes into a ring when its length is a multiple of this; 0 where links go through a switch.
      clock: of a TPU's core, cycles a second; 0 where it is not used.
      network: bytes a second and chip that leave the slice or the host, one way; 0 where it is not the chip's to say.
      source: of the figures.
    """

    name: str
    kinds: tuple[str, ...]
    hbm_bytes: int
    flops: float
    hbm_bandwidth: float
    links: int
    link_bandwidth: float
    ring: int
    clock: float
    network: float
    source: str


def _nvidia(name: str, kinds: tuple[str, ...], gigabytes: int, flops: float, hbm: float, link: float) -> Chip:
    source = f"NVIDIA {name.split()[0]} data sheet (dense, one way)"
    return Chip(name, kinds, gigabytes * _GB, flops, hbm, 1, link, 0, 0.0, 0.0, source)


# Name -> chip. TPUs are named as topologies are: "v5e:4x4". Their clocks are the peaks divided by what the matrix units
# of the same pages do in a cycle; v6e's is XProf's (utilization_viewer.cc).
CHIPS: dict[str, Chip] = {
    "v4": Chip(
        name="TPU v4",
        kinds=("TPU v4",),
        hbm_bytes=round(30.75 * _GIB),
        flops=275e12,
        hbm_bandwidth=1200e9,
        links=6,
        link_bandwidth=45e9,
        ring=4,
        clock=1.05e9,
        network=3.1e9,
        source="Cloud TPU docs, page 'TPU v4' (peak, HBM); JAX scaling book, 'How to Think About TPUs' (links, DCN)",
    ),
    "v5e": Chip(
        name="TPU v5e",
        kinds=("TPU v5 lite", "TPU v5e"),
        hbm_bytes=round(15.75 * _GIB),
        flops=197e12,
        hbm_bandwidth=819e9,
        links=4,
        link_bandwidth=50e9,
        ring=16,
        clock=1.5e9,
        network=3.1e9,
        source="Cloud TPU docs, page 'TPU v5e' (ICI 400 GB/s both ways over 4 ports; 6.4 Tb/s a pod of 256 chips)",
    ),
    "v5p": Chip(
        name="TPU v5p",
        kinds=("TPU v5", "TPU v5p"),
        hbm_bytes=round(95.74 * _GIB),
        flops=459e12,
        hbm_bandwidth=2765e9,
        links=6,
        link_bandwidth=100e9,
        ring=4,
        clock=1.75e9,
        network=6.25e9,
        source="Cloud TPU docs, page 'TPU v5p' (ICI 1200 GB/s both ways over 6 ports; network 50 Gb/s a chip)",
    ),
    "v6e": Chip(
        name="TPU v6e",
        kinds=("TPU v6 lite", "TPU v6e"),
        hbm_bytes=round(31.25 * _GIB),
        flops=918e12,
        hbm_bandwidth=1638e9,
        links=4,
        link_bandwidth=100e9,
        ring=16,
        clock=1.75e9,
        network=12.5e9,
        source="Cloud TPU docs, page 'TPU v6e' (ICI 800 GB/s both ways over 4 ports; 25.6 Tb/s a pod of 256 chips)",
    ),
    "A100-40GB": _nvidia("A100 SXM 40 GB", ("NVIDIA A100-SXM4-40GB",), 40, 312e12, 1555e9, 300e9),
    "A100-80GB": _nvidia("A100 SXM 80 GB", ("NVIDIA A100-SXM4-80GB",), 80, 312e12, 2039e9, 300e9),
    "H100": _nvidia("H100 SXM", ("NVIDIA H100 80GB HBM3", "NVIDIA H100 SXM5"), 80, 989e12, 3350e9, 450e9),
    "H200": _nvidia("H200 SXM", ("NVIDIA H200",), 141, 989e12, 4800e9, 450e9),
    "L4": _nvidia("L4", ("NVIDIA L4",), 24, 121e12, 300e9, 32e9),  # no NVLink: PCIe 4.0 x16
}


def of(device_kind: str) -> Chip | None:
    """The chip that JAX calls ``device_kind`` ("TPU v5 lite"); None for one that is not listed, or a CPU."""
    return next((chip for chip in CHIPS.values() if device_kind in chip.kinds), None)
