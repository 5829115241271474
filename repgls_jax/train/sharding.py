"""Mesh and sharding presets: where parameters and batches live.

A preset is one function (shape, mesh) -> PartitionSpec in :data:`PRESETS`. The model code knows nothing of it.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def replicate(shape: tuple[int, ...], mesh: Mesh) -> P:
    """Every device holds the whole array."""
    del shape, mesh
    return P()


def largest_axis(shape: tuple[int, ...], mesh: Mesh) -> P:
    """The largest axis that divides evenly is split over the devices; small or odd arrays are replicated."""
    devices = mesh.shape["data"]
    fitting = [i for i, size in enumerate(shape) if size % devices == 0 and size >= devices]
    if len(shape) < 2 or not fitting:
        return P()
    split = max(fitting, key=lambda i: shape[i])
    return P(*("data" if i == split else None for i in range(len(shape))))


PRESETS: dict[str, Callable[[tuple[int, ...], Mesh], P]] = {"dp": replicate, "fsdp": largest_axis}


def make_mesh(devices: list[Any] | None = None) -> Mesh:
    """A mesh with one axis, "data", over all devices (or those given). One device is a mesh of one."""
    devices = devices or jax.devices()
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def shard_state(state: Any, mesh: Mesh, preset: str) -> Any:
    """Shardings for every array of ``state`` (arrays or shapes), as a tree of NamedSharding.

    Raises:
      ValueError: the preset is unknown.
    """
    if preset not in PRESETS:
        raise ValueError(f"mesh preset {preset!r} is unknown; expected one of {', '.join(PRESETS)}")
    return jax.tree.map(lambda x: NamedSharding(mesh, PRESETS[preset](x.shape, mesh)), state)


def round_up(size: int, devices: int) -> int:
    """The smallest multiple of ``devices`` that is at least ``size``: a batch must divide over them."""
    return -(-size // devices) * devices


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A host's part of the global batch, as arrays split over "data" along their first axis.

    Raises:
      ValueError: the batch does not divide over the devices.
    """
    local = len(mesh.local_devices)
    size = len(next(iter(batch.values())))
    if size % local:
        raise ValueError(f"a batch of {size} does not divide over {local} devices; choose a multiple of {local}")
    sharding = NamedSharding(mesh, P("data"))
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}
