"""Mesh and sharding presets: where parameters, optimizer state and batches live.

A preset is one record in :data:`PRESETS`: the mesh's shape, a rule (path, shape, mesh) -> PartitionSpec, and the
collectives that its compiled step may hold. The model code knows nothing of it: rules go by the parameter's path.

Every mesh has the same three axes, of which some have size 1: "data" and "fsdp" split the batch, "fsdp" also splits
parameters (Rajbhandari et al., SC 2020, arXiv 1910.02054, stage 3), "model" splits heads and hidden units (Shoeybi et
al., arXiv 1909.08053).
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "model")
BATCH = ("data", "fsdp")  # the axes over which a batch is split
SMALL = 2048  # elements; a smaller array costs less to hold whole than to gather
SCANNED = re.compile(r"(?:.*/)?blocks/.*")  # blocks stacked along a leading depth axis, which is never split
# Kernels of convolutions are small, and the compiler moves them about where they are split.
CONVOLUTION = re.compile(r"(?:.*/)?(embedding|conv_\d+|project|neighbours)/kernel")

Shape = tuple[int, ...]
Axes = tuple[str | None, ...]
Rule = Callable[[str, Shape, Mesh], P]

# The end of a parameter's path -> how the "model" axis splits it, a layer's own axes only. Queries, keys, values and
# hidden units are split by column, what reads them by row: one all-reduce an attention, one an MLP.
_WHOLE: Axes = ()
RULES: dict[str, Axes] = {
    r"(query|key|value)/kernel": (None, "model", None),  # [d, heads, d / heads]
    r"(query|key|value)/bias": ("model", None),
    r"out/kernel": ("model", None, None),  # [heads, d / heads, d]
    r"(up|gate)/kernel": (None, "model"),  # [d, hidden]
    r"(up|gate)/bias": ("model",),
    r"down/kernel": ("model", None),  # [hidden, d]
    r"(out|down)/bias": _WHOLE,
    r"(\w+_)?norm(_\d+)?/(scale|bias)": _WHOLE,
    r"(attention|mlp)_scale": _WHOLE,
    r"(embedding|conv_\d+|project|neighbours)/(kernel|bias)": _WHOLE,
    r"(words|state|cue|section)/embedding": _WHOLE,
    r"position|class_token|registers|queries|nothing": _WHOLE,
    r"(presence|uncertainty|third|rate|certainty|distance|features)/(kernel|bias)": _WHOLE,
    r"map_(steps|top)": _WHOLE,
}


def model_axes(path: str, ndim: int) -> Axes:
    """How :data:`RULES` would split the array at ``path`` over "model": an entry for each of its ``ndim`` axes.

    Raises:
      ValueError: no rule knows the path.
    """
    found = matching(path)
    if not found:
        raise ValueError(
            f"no sharding rule knows the parameter {path!r}; add it to RULES in {__name__}, or use dp or fsdp"
        )
    axes = RULES[found[0]]
    lead = int(SCANNED.fullmatch(path) is not None) if axes else ndim
    return (None,) * lead + axes


def matching(path: str) -> list[str]:
    """The patterns of :data:`RULES` that know the path."""
    return [pattern for pattern in RULES if re.fullmatch(rf"(?:.*/)?(?:{pattern})", path)]


def whole(path: str, shape: Shape, mesh: Mesh) -> P:
    """Every device holds the whole array."""
    del path, shape, mesh
    return P()


def over_fsdp(path: str, shape: Shape, mesh: Mesh, taken: Axes = ()) -> P:
    """The largest axis that "fsdp" divides, of those not ``taken``. Vectors, kernels of convolutions, and small
    or odd arrays stay as they are."""
    ways, depth_axes = mesh.shape["fsdp"], int(SCANNED.fullmatch(path) is not None)
    axes = list(taken or (None,) * len(shape))
    own = range(depth_axes, len(shape))
    free = [i for i in own if axes[i] is None and shape[i] % ways == 0]
    large = len(own) > 1 and math.prod(shape[depth_axes:]) >= SMALL
    if ways > 1 and free and large and not CONVOLUTION.fullmatch(path):
        axes[max(free, key=lambda i: shape[i])] = "fsdp"
    return P(*axes) if any(axes) else P()


def over_model(path: str, shape: Shape, mesh: Mesh) -> P:
    """As :data:`RULES` say. Where heads or hidden units do not divide, all arrays that have them stay whole."""
    axes = _dividing(path, shape, mesh)
    return P(*axes) if any(axes) else P()


def over_both(path: str, shape: Shape, mesh: Mesh) -> P:
    """Over "model" first, and what is left over "fsdp"."""
    return over_fsdp(path, shape, mesh, _dividing(path, shape, mesh))


def _dividing(path: str, shape: Shape, mesh: Mesh) -> Axes:
    ways = mesh.shape["model"]
    wanted = model_axes(path, len(shape))
    return tuple(a if ways > 1 and size % ways == 0 else None for a, size in zip(wanted, shape, strict=True))


@dataclasses.dataclass(frozen=True)
class Preset:
    """One way of laying a run over devices.

    Attributes:
      shape: (devices, devices that share a layer, slices) -> sizes of :data:`AXES`.
      rule: see the module.
      collectives: kinds of HLO instruction that the compiled step of LU-ViT may hold, besides none.
      splits_layers: whether the preset uses "model".
    """

    shape: Callable[[int, int, int], tuple[int, int, int]]
    rule: Rule
    collectives: frozenset[str]
    splits_layers: bool = False


_SUMS = frozenset({"all-reduce"})
_GATHERS = _SUMS | {"all-gather", "reduce-scatter"}

PRESETS: dict[str, Preset] = {
    "dp": Preset(lambda n, model, slices: (n, 1, 1), whole, _SUMS),
    "fsdp": Preset(lambda n, model, slices: (1, n, 1), over_fsdp, _GATHERS),
    "tp": Preset(lambda n, model, slices: (n // model, 1, model), over_model, _SUMS, splits_layers=True),
    "fsdp_tp": Preset(lambda n, model, slices: (1, n // model, model), over_both, _GATHERS, splits_layers=True),
    "hybrid": Preset(lambda n, model, slices: (slices, n // slices, 1), over_fsdp, _GATHERS),
}


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise ValueError(f"mesh preset {name!r} is unknown; expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def make_mesh(
    preset: str = "dp", devices: Sequence[Any] | None = None, model_parallel: int = 0, slices: int = 0
) -> Mesh:
    """The mesh of a preset, its axes laid along the physical links of the devices.

    Args:
      preset: key in :data:`PRESETS`.
      devices: all by default; may be those of a topology that is only described.
      model_parallel: devices that share a layer, for presets that split layers; 0 takes 2 where the number is even.
      slices: groups of devices with fast links within and slow ones between; 0 takes those that the devices name, or
        else the processes.

    Raises:
      ValueError: the preset is unknown, or the numbers do not fit the devices.
    """
    found = list(jax.devices() if devices is None else devices)
    chosen, n = _preset(preset), len(found)
    if model_parallel > 1 and not chosen.splits_layers:
        usable = [name for name, other in PRESETS.items() if other.splits_layers]
        raise ValueError(f"preset {preset!r} does not split layers over {model_parallel} devices; {usable} do")
    model = model_parallel or math.gcd(n, 2)
    slices = _slices(found, slices)
    for name, ways in (("model_parallel", model), ("slices", slices)):
        if n % ways:
            raise ValueError(f"{name} {ways} does not divide {n} devices; choose a divisor of {n}")
    return Mesh(_arranged(found, chosen.shape(n, model, slices), slices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slices(devices: list[Any], given: int) -> int:
    """The number of slices; one that is ``given`` must agree with what the devices say."""
    named = len({getattr(d, "slice_index", None) for d in devices})
    if named > 1 and given not in (0, named):
        raise ValueError(f"slices {given}: the devices are of {named} slices; leave it at 0")
    # A described topology of TPUs names no slice where there is one only; its processes share fast links.
    if given or devices[0].platform == "tpu" or getattr(devices[0], "slice_index", None) is not None:
        return given or named
    return len({d.process_index for d in devices})


def _arranged(devices: list[Any], sizes: tuple[int, int, int], slices: int) -> np.ndarray:
    """The devices as an array of ``sizes``; slow links between slices are crossed by one axis of the batch only."""
    if len({getattr(d, "slice_index", None) for d in devices}) == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    crossing = next((i for i in range(len(BATCH)) if sizes[i] % slices == 0), None)
    if crossing is None:
        shape = dict(zip(AXES, sizes, strict=True))
        raise ValueError(f"mesh {shape} would split layers across {slices} slices; lower model_parallel")
    outer = tuple(slices if i == crossing else 1 for i in range(len(AXES)))
    inner = tuple(size // ways for size, ways in zip(sizes, outer, strict=True))
    return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)


def path_of(keys: Any) -> str:
    """A key path of jax.tree_util as "encoder/block_0/mlp/up/kernel"."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def shard_state(state: Any, mesh: Mesh, preset: str) -> Any:
    """Shardings for every array of ``state`` (arrays or shapes), as a tree of NamedSharding.

    What belongs to a parameter (a moment, an average) ends in the parameter's path, however deep the optimizer has
    wrapped it, and has its shape: it takes its sharding. Everything else is held whole by every device.

    Args:
      state: a :class:`repgls_jax.train.state.TrainState`, or a tree of parameters.
      mesh: from :func:`make_mesh`.
      preset: key in :data:`PRESETS`.

    Raises:
      ValueError: the preset is unknown, or does not know a parameter.
    """
    rule = _preset(preset).rule
    params = jax.tree_util.tree_leaves_with_path(getattr(state, "params", state))
    known = {path_of(keys): leaf.shape for keys, leaf in params}

    def place(keys: Any, leaf: Any) -> NamedSharding:
        path = _parameter(path_of(keys), leaf.shape, known)
        return NamedSharding(mesh, rule(path, leaf.shape, mesh) if path else P())

    return jax.tree_util.tree_map_with_path(place, state)


def _parameter(path: str, shape: Shape, known: Mapping[str, Shape]) -> str | None:
    """The longest end of ``path`` that is a parameter of this shape."""
    parts = path.split("/")
    ends = ("/".join(parts[i:]) for i in range(len(parts)))
    return next((end for end in ends if known.get(end) == shape), None)


def constrain(mesh: Mesh) -> Callable[[Array], Array]:
    """For activations [b, ...] at the borders of blocks: split over the batch, whole otherwise.

    Without it the compiler may follow the split parameters instead of the batch, and move activations for it.
    """
    if mesh.size == 1:
        return lambda x: x
    sharding = batch_sharding(mesh)

    def split(x: Array) -> Array:
        # The one film that initialises a model is not a batch.
        return jax.lax.with_sharding_constraint(x, sharding) if x.shape[0] % batch_parts(mesh) == 0 else x

    return split


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Split along the first axis, whole along the others."""
    return NamedSharding(mesh, P(BATCH))


def batch_parts(mesh: Mesh) -> int:
    """Number of parts that a batch is split into; its size must be a multiple."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


@functools.cache
def host_part(mesh: Mesh) -> tuple[int, int]:
    """Which part of the global batch this process loads: (index, count).

    Processes that share a layer ("model" spans them) compute on the same examples and load the same part.

    Raises:
      ValueError: the mesh deals the batch out unevenly.
    """
    owners = np.vectorize(lambda d: d.process_index, otypes=[int])(mesh.devices).reshape(batch_parts(mesh), -1)
    return part_of(owners, jax.process_index())


def part_of(owners: np.ndarray, process: int) -> tuple[int, int]:
    """:func:`host_part` of ``process``, where ``owners`` [parts, devices of a part] int holds processes."""
    rows = {int(p): frozenset(np.nonzero((owners == p).any(1))[0].tolist()) for p in np.unique(owners)}
    distinct = sorted(set(rows.values()), key=min)
    if sum(map(len, distinct)) != len(owners) or len(set(map(len, distinct))) != 1:
        raise ValueError(
            f"the processes hold the parts {[sorted(s) for s in distinct]} of the batch, which overlap or are uneven; "
            "choose a model_parallel that divides the devices of a process, or is a multiple of them"
        )
    return distinct.index(rows[process]), len(distinct)


def round_up(size: int, devices: int) -> int:
    """The smallest multiple of ``devices`` that is at least ``size``: a batch must divide over them."""
    return -(-size // devices) * devices


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Array]:
    """This process's part of the global batch (:func:`host_part`), as arrays split along their first axis.

    Raises:
      ValueError: the batch does not divide over the devices.
    """
    local = batch_parts(mesh) // host_part(mesh)[1]
    size = len(next(iter(batch.values())))
    if size % local:
        raise ValueError(f"a batch of {size} does not divide over {local} devices; choose a multiple of {local}")
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def table(shapes: Any, shardings: Any) -> str:
    """A line for each array: path, shape, spec, bytes on a device; what could not be split over "model" says so."""
    rows, total = [], 0
    placed = jax.tree_util.tree_leaves_with_path(shardings)
    for (keys, sharding), leaf in zip(placed, jax.tree.leaves(shapes), strict=True):
        path, spec, ways = path_of(keys), sharding.spec, sharding.mesh.shape["model"]
        bytes_here = math.prod(sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        total += bytes_here
        wanted = model_axes(path, len(leaf.shape)) if ways > 1 and matching(path) else ()
        kept = [size for size, axis in zip(leaf.shape, wanted, strict=False) if axis and "model" not in spec]
        note = f"  {kept[0]} does not divide over model={ways}" if kept else ""
        rows.append((path, "x".join(map(str, leaf.shape)), ", ".join(map(str, spec)), f"{bytes_here:,}", note))
    rows.append(("total", "", "", f"{total:,}", ""))
    rows.insert(0, ("parameter", "shape", "split over", "bytes on a device", ""))
    wide = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        f"{a:<{wide[0]}}  {b:<{wide[1]}}  {c:<{wide[2]}}  {d:>{wide[3]}}{note}".rstrip() for a, b, c, d, note in rows
    )
