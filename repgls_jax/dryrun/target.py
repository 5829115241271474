"""The devices to compile for: this machine's, simulated ones, or those of a TPU topology that nobody here has."""

import dataclasses
import importlib.util
import os
from typing import Any

import jax
from jax.errors import JaxRuntimeError
from jax.experimental import topologies

from repgls_jax import chips

INSTALL = 'pip install "jax[tpu]=={version}"'
_SIMULATE = "--xla_force_host_platform_device_count"


@dataclasses.dataclass(frozen=True)
class Target:
    """What to compile for.

    Attributes:
      name: for people.
      devices: real, simulated, or only described.
      chip: what one of them can do; None where it is not known, as of a CPU.
      slices: groups of devices joined by the data centre's network.
    """

    name: str
    devices: tuple[Any, ...]
    chip: chips.Chip | None
    slices: int = 1


def topology(name: str, slices: int = 1) -> Target:
    """TPUs of a topology such as "v5e:16x16", ``slices`` times, as the TPU compiler in libtpu describes them.

    The process is bound to its CPU from then on, for its own arrays: libtpu would otherwise look for a TPU.

    Raises:
      ValueError: libtpu is not installed, or knows no such topology.
    """
    generation, separator, _ = name.partition(":")
    known = [key for key, chip in chips.CHIPS.items() if chip.ring]
    if not separator or generation not in known:
        raise ValueError(f"topology {name!r}: expected GENERATION:SHAPE with {', '.join(known)}, such as v5e:16x16")
    if importlib.util.find_spec("libtpu") is None:
        command = INSTALL.format(version=jax.__version__)
        raise ValueError(
            f"topology {name!r} needs the TPU compiler, which runs on any Linux machine; install it with: {command}"
        )
    jax.config.update("jax_platforms", "cpu")
    # On a machine that is no TPU host libtpu would wait for the cloud's metadata server, and warn of its absence.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{generation}-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # it guards a TPU against two owners, and there is none
    # A v4 chip is two cores that JAX shows as one device; the other generations are one device a chip by themselves.
    options: dict[str, Any] = {"chip_config_name": "megacore"} if generation == "v4" else {}
    if slices > 1:
        options["num_slices"] = slices
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except JaxRuntimeError as error:
        raise ValueError(f"topology {name!r}: libtpu says {str(error).splitlines()[0]}") from None
    label = name if slices == 1 else f"{slices} x {name}"
    return Target(label, tuple(described.devices), chips.CHIPS[generation], slices)


def simulated(count: int) -> Target:
    """``count`` devices made of this machine's CPU; to be asked for before JAX has looked at its devices.

    Raises:
      ValueError: JAX has already made fewer.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _SIMULATE not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_SIMULATE}={count}".strip()
    jax.config.update("jax_platforms", "cpu")
    devices = jax.devices()
    if len(devices) < count:
        raise ValueError(
            f"{count} simulated devices: JAX made {len(devices)}; XLA_FLAGS is {os.environ['XLA_FLAGS']!r}"
        )
    return Target(f"{count} simulated devices", tuple(devices[:count]), None)


def here() -> Target:
    """The devices of this machine."""
    devices = jax.devices()
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    chip = chips.of(devices[0].device_kind)
    limit = (devices[0].memory_stats() or {}).get("bytes_limit", 0)
    if chip is not None and limit:  # a GPU's pool is a part of its memory, XLA_PYTHON_CLIENT_MEM_FRACTION
        chip = dataclasses.replace(chip, hbm_bytes=min(chip.hbm_bytes, limit))
    return Target(f"{len(devices)} x {devices[0].device_kind}", tuple(devices), chip, slices)
