"""The collectives of a compiled program: kind, how often, bytes, and the mesh axes that each runs over."""

import dataclasses
import math
import re

import numpy as np
from jax.sharding import Mesh

from repgls_jax.chips import Chip
from repgls_jax.dryrun import hlo

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
SLICES = "slices"  # the axis of transfers between slices, which leave the compiler's text as sends to the host


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
      kind: one of :data:`KINDS`.
      axes: names of the mesh axes whose devices take part, ("?",) where the text does not tell; or (SLICES,).
      group: devices that take part together.
      count: times it runs in one call of the program.
      operand: bytes that one chip puts in, each time.
      op_name: where in the program it comes from.
      links: links of a chip that can work for it, 0 across slices.
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    count: int
    operand: int
    op_name: str
    links: int

    @property
    def in_product(self) -> bool:
        """Whether it is part of a matrix product or convolution.

        The TPU compiler turns a gather or a reduction beside a product into steps of the product with permutes between
        ("collective matmul", Wang et al., ASPLOS 2023, doi 10.1145/3567955.3567959).
        """
        return self.op_name.endswith(("dot_general", "conv_general_dilated"))

    @property
    def sent(self) -> float:
        """Bytes that one chip sends over all its runs, by ring algorithms (Chan et al., 2007, doi 10.1002/cpe.1206)."""
        n = self.group
        share = {
            "all-reduce": 2 * (n - 1) / n,
            "all-gather": n - 1.0,
            "reduce-scatter": (n - 1) / n,
            "all-to-all": (n - 1) / n,
        }.get(self.kind, 1.0)
        return self.count * self.operand * share if n > 1 else 0.0

    def seconds(self, chip: Chip) -> float:
        """Time of all its runs if nothing else used the links."""
        return self.sent / (self.links * chip.link_bandwidth if self.links else chip.network or math.inf)


def find(module: hlo.Module, mesh: Mesh, chip: Chip | None = None) -> list[Collective]:
    """The collectives of ``module``, compiled for ``mesh``; asynchronous ones count once, those in loops each turn."""
    runs = module.runs()
    found = []
    for computation in module.computations.values():
        for instruction in computation.instructions.values() if runs[computation.name] else ():
            kind = _kind(instruction, computation, computation.name in module.fused)
            if kind is None:
                continue
            names = instruction.operands[:1] if instruction.opcode == "send" else instruction.operands
            operand = sum(hlo.size(computation.instructions[name].shape) for name in names)
            over, size, links = _reach(instruction, mesh, chip)
            origin = _origin(instruction, computation)
            found.append(Collective(kind, over, size, runs[computation.name], operand, origin, links))
    return found


def _reach(instruction: hlo.Instruction, mesh: Mesh, chip: Chip | None) -> tuple[tuple[str, ...], int, int]:
    """Axes, number of devices and links of a collective."""
    if instruction.opcode == "send":
        return (SLICES,), len({getattr(d, "slice_index", 0) for d in mesh.devices.flat}), 0
    group = members(instruction.attributes, mesh.size)
    if group is None:
        return ("?",), mesh.size, 1
    return axes(group, mesh), len(group), _links(group, mesh, chip)


def _kind(instruction: hlo.Instruction, computation: hlo.Computation, fused: bool) -> str | None:
    """The kind of collective that an instruction begins, or None."""
    if instruction.opcode == "send":
        transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
        return transfer[1].lower().replace("_", "-") if transfer else None
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    # The TPU compiler spreads a collective over several fusions; the later ones repeat it with a place in the chain.
    place = re.search(r'"async_collective_fusion_config":\{"flag_start":"(-?\d+)"', instruction.attributes)
    if fused and place and int(place[1]) >= 0:
        return None
    if kind == "all-reduce" and fused and computation.name.startswith("all-reduce-scatter"):
        return "reduce-scatter"
    return kind


def _origin(instruction: hlo.Instruction, computation: hlo.Computation) -> str:
    """The program's name for it, or the nearest that is known."""
    if instruction.op_name:
        return instruction.op_name
    inputs = [computation.instructions[name] for name in instruction.operands]
    return next((i.op_name for i in inputs if i.op_name), f"{computation.name}/{instruction.name}")


def members(attributes: str, devices: int) -> np.ndarray | None:
    """The first group of devices of a collective, by their place in the mesh, or None if the text does not tell."""
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
    if pairs:
        return _connected([tuple(int(n) for n in p.split(",")) for p in re.findall(r"\{([\d,]+)\}", pairs[1])])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return np.array([int(n) for n in listed[1].split(",")])
    if "replica_groups={}" in attributes:
        return np.arange(devices)
    if iota := re.search(rf"replica_groups=\[(\d+),(\d+)\]<={_IOTA}", attributes):
        return _iota(iota[3], iota[4]).reshape(int(iota[1]), int(iota[2]))[0]
    if named := re.search(rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_IOTA}\))? \{{([^}}]*)\}}", attributes):
        return _by_axes(named[1], _iota(named[2], named[3]) if named[2] else None, named[4])
    return None


def _iota(sizes: str, order: str | None) -> np.ndarray:
    """The device numbers of ``[4,2]T(1,0)``: counted in the first shape, then transposed."""
    shape = [int(n) for n in sizes.split(",")]
    grid = np.arange(math.prod(shape)).reshape(shape)
    return (grid.transpose([int(n) for n in order.split(",")]) if order else grid).reshape(-1)


def _by_axes(mesh: str, devices: np.ndarray | None, chosen: str) -> np.ndarray:
    """First group of ``mesh['x'=2,'y'=4] {'y'}``; an axis may be cut in pieces: ``'y':(2)2`` after 2, of size 2."""
    shape, picked = [], []
    for name, length in _axes(mesh).items():
        pieces = [(int(p), int(s)) for p, s in re.findall(rf"'{name}'?:\((\d+)\)(\d+)", chosen)]
        pieces = pieces or ([(1, length)] if f"'{name}'" in chosen else [])
        done = 1
        for before, size in sorted(pieces):
            shape += [before // done, size]
            picked += [False, True]
            done = before * size
        shape.append(length // done)
        picked.append(False)
    grid = (np.arange(math.prod(shape)) if devices is None else devices).reshape(shape)
    return grid[tuple(slice(None) if pick else 0 for pick in picked)].reshape(-1)


def _axes(mesh: str) -> dict[str, int]:
    return {name: int(length) for name, length in re.findall(r"'([^']+)'=(\d+)", mesh)}


def _connected(pairs: list[tuple[int, ...]]) -> np.ndarray:
    """The devices that the first pair reaches by way of other pairs."""
    reached = set(pairs[0]) if pairs else set()
    while more := {n for pair in pairs if reached & set(pair) for n in pair} - reached:
        reached |= more
    return np.array(sorted(reached))


def axes(group: np.ndarray, mesh: Mesh) -> tuple[str, ...]:
    """Names of the mesh axes along which the members of a group differ."""
    places = np.stack(np.unravel_index(group, mesh.devices.shape))
    return tuple(name for name, along in zip(mesh.axis_names, places, strict=True) if len(set(along.tolist())) > 1)


def _links(group: np.ndarray, mesh: Mesh, chip: Chip | None) -> int:
    """Links of a chip that a ring algorithm can use: two for a torus axis that closes, one for one that does not."""
    devices = mesh.devices.reshape(-1)
    if chip is None or not chip.ring or not hasattr(devices[0], "coords"):
        return 1
    everywhere = np.array([d.coords for d in devices])
    here = np.array([devices[i].coords for i in group])
    links = 0
    for axis in range(here.shape[1]):
        length, spanned = np.ptp(everywhere[:, axis]) + 1, len(set(here[:, axis].tolist()))
        if spanned > 1:
            links += 2 if spanned == length and length % chip.ring == 0 else 1
    return max(links, 1)
