"""Which job of several processes this one is a part of: from flags, or from what the launcher left in the environment.

Nothing is joined here; :mod:`repgls_jax.job` does that. Where jax.distributed finds an address or a number by
itself (SLURM, Open MPI, TPU), it is left to it; what it leaves open or gets wrong is decided here, and no environment
that speaks of several processes ever ends in a lonely one.
"""

import dataclasses
import importlib.util
import pathlib
import re
from collections.abc import Mapping

_ADDRESS, _COUNT, _NUMBER, _DEVICES = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
    "JAX_LOCAL_DEVICE_IDS",
)
_ALONE = "or --processes=1 for a single one"


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to join; what is None is left to jax.distributed.

    Attributes:
      source: who says so, for messages.
      processes: how many there are; 0 for as many as jax.distributed finds, in the metadata of TPU hosts.
      coordinator: HOST:PORT of process 0.
      process: number of this one, 0 to processes - 1.
      local_devices: numbers of the GPUs that are this process's, among those it sees.
    """

    source: str
    processes: int
    coordinator: str | None = None
    process: int | None = None
    local_devices: tuple[int, ...] | None = None


def plan(
    env: Mapping[str, str],
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    local_devices: tuple[int, ...] | None = None,
    tpu: bool = False,
) -> Plan | None:
    """The job of this process, or None for a process of its own.

    Args:
      env: the environment.
      coordinator: flag, HOST:PORT of process 0; goes with ``processes`` and ``process``.
      processes: flag; alone it says how many the launcher's environment must have, 1 for a process of its own.
      process: flag, number of this process.
      local_devices: flag, GPUs of this process.
      tpu: whether this machine has TPUs, which may be a part of a slice.

    Raises:
      ValueError: flags or variables are incomplete or contradict each other.
    """
    if coordinator is not None or process is not None:
        return _explicit(
            "the flags", {"--coordinator": coordinator, "--processes": processes, "--process": process}, local_devices
        )
    if processes == 1:
        return None
    found = _from_variables(env) or _from_slurm(env) or _from_mpi(env) or _from_tpu(env, tpu)
    if found is None:
        if processes is not None:
            raise ValueError(
                f"--processes={processes}, but nothing says where process 0 is: give --coordinator=HOST:PORT and "
                "--process=I too, or start with srun, mpirun, launch/local.py or on a TPU slice"
            )
        return None
    if processes is not None and found.processes not in (0, processes):
        raise ValueError(f"--processes={processes}, but {found.source} speaks of {found.processes}")
    given = local_devices or _numbers(env.get(_DEVICES), _DEVICES) or found.local_devices
    found = dataclasses.replace(found, processes=found.processes or processes or 0, local_devices=given)
    # A launcher that counts one process has nothing to join; TPU hosts can only be asked.
    return None if found.processes == 1 else found


def has_tpu() -> bool:
    """Whether this machine has TPUs and the library for them. Devices are not touched."""
    chips = [*pathlib.Path("/dev").glob("accel[0-9]*"), *pathlib.Path("/dev/vfio").glob("[0-9]*")]
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def _explicit(source: str, given: Mapping[str, str | int | None], local_devices: tuple[int, ...] | None) -> Plan | None:
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise ValueError(f"{', '.join(given)} belong together; {', '.join(missing)} is missing")
    coordinator, processes, process = given.values()
    if not re.fullmatch(r".+:\d+", str(coordinator)):
        raise ValueError(f"coordinator {coordinator!r} of {source}; expected HOST:PORT of process 0")
    count, number = int(str(processes)), int(str(process))
    if not 0 <= number < count:
        raise ValueError(f"process {number} of {count} in {source}; expected 0 <= process < processes")
    return Plan(source, count, str(coordinator), number, local_devices)


def _from_variables(env: Mapping[str, str]) -> Plan | None:
    if _COUNT not in env and _NUMBER not in env:
        return None  # an address alone tells jax.distributed where, the launcher's variables tell the rest
    for name in (_COUNT, _NUMBER):
        _numbers(env.get(name), name)
    return _explicit("the environment", {name: env.get(name) for name in (_ADDRESS, _COUNT, _NUMBER)}, None)


def _from_slurm(env: Mapping[str, str]) -> Plan | None:
    count = max(_number(env, "SLURM_NTASKS"), _number(env, "SLURM_NNODES"))
    if count <= 1:
        return None
    if "SLURM_STEP_NODELIST" not in env or "SLURM_PROCID" not in env:
        raise ValueError(
            f"SLURM holds {count} tasks for this job, but this process was not started by srun; start it with srun, "
            f"as launch/slurm.sh does, {_ALONE}"
        )
    count = _number(env, "SLURM_NTASKS")
    here = _tasks_here(env)
    devices = _share(env, _number(env, "SLURM_LOCALID", 0), here) if here else None
    return Plan("SLURM", count, env.get(_ADDRESS), None, devices)


def _tasks_here(env: Mapping[str, str]) -> int:
    """Tasks on this node, from "2(x3),1"; 0 where the nodes differ, or nothing is said."""
    said = env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_TASKS_PER_NODE", ""))
    match = re.fullmatch(r"(\d+)(\(x\d+\))?", said)
    return int(match[1]) if match else 0


def _from_mpi(env: Mapping[str, str]) -> Plan | None:
    for source, size, rank in (
        ("Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
        ("PMI", "PMI_SIZE", "PMI_RANK"),
    ):
        count = _number(env, size)
        if count <= 1:
            continue
        # Open MPI 5 and the MPICH family do not say where process 0 is.
        if _ADDRESS not in env and "OMPI_MCA_orte_hnp_uri" not in env:
            raise ValueError(
                f"{source} started {count} processes but does not say where process 0 is; set "
                f"{_ADDRESS}=HOST:PORT for all of them (mpirun -x), {_ALONE}"
            )
        here = _number(env, "OMPI_COMM_WORLD_LOCAL_SIZE", 0)
        devices = _share(env, _number(env, "OMPI_COMM_WORLD_LOCAL_RANK", 0), here) if here else None
        return Plan(source, count, env.get(_ADDRESS), _number(env, rank, 0), devices)
    return None


def _from_tpu(env: Mapping[str, str], tpu: bool) -> Plan | None:
    hosts = [h for h in env.get("TPU_PROCESS_ADDRESSES", env.get("TPU_WORKER_HOSTNAMES", "")).split(",") if h]
    count = len(hosts) * _number(env, "MEGASCALE_NUM_SLICES")
    if count > 1:
        return Plan("the TPU slice", count, env.get(_ADDRESS))
    # Hosts of Cloud TPU know their slice from the metadata server, unless told not to ask it.
    if tpu and not hosts and "TPU_SKIP_MDS_QUERY" not in env and env.get("JAX_PLATFORMS", "tpu").startswith("tpu"):
        return Plan("the TPU slice", 0, env.get(_ADDRESS))
    return None


def _share(env: Mapping[str, str], local: int, here: int) -> tuple[int, ...] | None:
    """GPUs of the process ``local`` of ``here`` on this machine, numbered among those it sees; None if unknown.

    jax.distributed would take the GPU ``local``: one of all where a process has the whole machine, and one that is not
    there where the launcher shows each process only its own.
    """
    shown = len([d for d in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if d])
    node = _number(env, "SLURM_GPUS_ON_NODE", 0)
    seen = shown or node
    if seen == 0:
        return None
    # What is shown is the process's own where it is one, not all of the node's, or what SLURM was told to give a task.
    if shown and (shown == 1 or shown < node or str(shown) == env.get("SLURM_GPUS_PER_TASK", "").rpartition(":")[2]):
        return tuple(range(shown))
    if seen == 1:
        return (0,)
    if seen % here:
        raise ValueError(
            f"{here} processes share {seen} GPUs of this machine; choose a divisor of {seen}, or give --local_devices"
        )
    each = seen // here
    return tuple(range(local * each, (local + 1) * each))


def _number(env: Mapping[str, str], name: str, default: int = 1) -> int:
    value = env.get(name, "")
    if value and not value.isdecimal():
        raise ValueError(f"environment variable {name}={value!r}; expected a number")
    return int(value) if value else default


def _numbers(text: str | None, name: str) -> tuple[int, ...] | None:
    if not text:
        return None
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ValueError(f"{name}={text!r}; expected numbers separated by commas")
    return tuple(map(int, text.split(",")))
