"""Compiling a step ahead of time and reading what the compiler says of it."""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from jax.errors import JaxRuntimeError
from jax.sharding import Mesh

from repgls_jax.chips import Chip
from repgls_jax.dryrun import collectives, hlo, traffic
from repgls_jax.train import sharding

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_NEEDED = re.compile(r"(?:Used|required[^(]*\() ?([\d.]+)([KMGT])")


class DoesNotFitError(ValueError):
    """The compiler found no way to run the program in the chip's memory; ``needed`` is what it asked for, bytes."""

    def __init__(self, needed: int, reason: str):
        super().__init__(reason)
        self.needed = needed


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one chip.

    Attributes:
      arguments: parameters, optimizer state and batch.
      outputs: the new state and scalars.
      aliased: of the outputs, what takes the place of arguments.
      temporaries: activations, gradients, buffers.
      code: the program itself.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int

    @property
    def peak(self) -> int:
        """What the program needs at most, if all temporaries were alive together with all else."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the compiler made of one step.

    Attributes:
      name: of the step.
      seconds: that tracing and compiling took, by the clock.
      cpu_seconds: the same of all processor cores.
      memory: of one chip.
      counted_flops: operations by ``cost_analysis()``, bodies of loops counted once.
      counted_bytes: the same of bytes accessed, on-chip memory included.
      moved: bytes between one chip and its memory, see :mod:`repgls_jax.dryrun.traffic`.
      cycles: of a chip, see :func:`repgls_jax.dryrun.hlo.cycles`.
      collectives: of the step.
      unknown: loops whose turns could not be told, and which count as one.
    """

    name: str
    seconds: float
    cpu_seconds: float
    memory: Memory
    counted_flops: float
    counted_bytes: float
    moved: int
    cycles: int
    collectives: tuple[collectives.Collective, ...]
    unknown: tuple[str, ...]


def compile_step(name: str, function: Any, arguments: Sequence[Any], mesh: Mesh, chip: Chip | None) -> Measured:
    """Compiles the jitted ``function`` for the shapes ``arguments``, whose shardings say where.

    Raises:
      DoesNotFitError: the program does not fit in the chip's memory.
    """
    began, worked = time.monotonic(), time.process_time()
    try:
        compiled = function.lower(*arguments).compile()
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise _does_not_fit(str(error)) from None
    seconds, cpu_seconds = time.monotonic() - began, time.process_time() - worked
    stats, cost = compiled.memory_analysis(), compiled.cost_analysis()
    module = hlo.parse(compiled.as_text())
    found = collectives.find(module, mesh, chip)
    memory = Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )
    moved = traffic.bytes_moved(module)
    return Measured(
        name,
        seconds,
        cpu_seconds,
        memory,
        cost.get("flops", math.nan),
        cost.get("bytes accessed", math.nan),
        moved,
        hlo.cycles(module),
        tuple(found),
        tuple(sorted(module.unknown)),
    )


def _does_not_fit(message: str) -> DoesNotFitError:
    needed = _NEEDED.search(message)
    size = round(float(needed[1]) * _UNITS[needed[2]]) if needed else 0
    return DoesNotFitError(size, next(line for line in message.splitlines() if "RESOURCE_EXHAUSTED" in line))


# How a compiler may bring together the few numbers of a batch that a method remembers or compares.
GATHERING = frozenset({"all-gather", "all-to-all", "collective-permute"})


def faults(measured: Measured, preset: str, hbm_bytes: int | None, gathers: bool = False) -> list[str]:
    """What is wrong with a compiled step: it does not fit, or holds a collective that its preset should not have.

    Args:
      measured: the step.
      preset: of the mesh.
      hbm_bytes: of a chip; None where it is not known.
      gathers: whether the method exchanges rows of the batch, see :class:`repgls_jax.methods.Method`.
    """
    problems = []
    if hbm_bytes is not None and measured.memory.peak > hbm_bytes:
        problems.append(
            f"{measured.name} needs {measured.memory.peak:,} bytes on a chip that has {hbm_bytes:,}: lower the batch, "
            "raise accumulate, set remat=full or choose a preset that splits the state"
        )
    allowed = sharding.PRESETS[preset].collectives | (GATHERING if gathers else frozenset())
    if any(collectives.SLICES in one.axes for one in measured.collectives):
        # The compiler adds over slices in three parts: scatter the sum within, exchange the parts between, gather them.
        allowed |= {"reduce-scatter", "all-gather"}
    for collective in measured.collectives:
        if collective.kind in allowed or (collective.in_product and collective.kind == "collective-permute"):
            continue
        problems.append(
            f"{measured.name} has {collective.kind} over {'+'.join(collective.axes)}, {collective.count} times "
            f"{collective.operand:,} bytes a chip, which preset {preset!r} should not have "
            f"(only {', '.join(sorted(allowed))}); it comes from {collective.op_name}"
        )
    return problems


@dataclasses.dataclass(frozen=True)
class Largest:
    """The largest batch that fits: ``size`` (0 for none), what was ``tried`` (batch -> peak bytes, None if refused)."""

    size: int
    tried: dict[int, int | None]


def largest_batch(peak: Callable[[int], int], unit: int, hbm_bytes: int, start: int = 8) -> Largest:
    """A batch whose peak memory is at most ``hbm_bytes``, the largest to about 10 %, mostly in three compilations.

    Memory is nearly affine in the batch: two small ones give the line, a third, at its end, is compiled to be sure.
    What is tiny stays on the chip and gives too flat a line: a step is to eight times the batch at most.

    Args:
      peak: batch -> bytes; raises DoesNotFitError.
      unit: what a batch must be a multiple of.
      hbm_bytes: of the chip.
      start: units in the first batch tried.
    """
    tried: dict[int, int | None] = {}

    def fits(units: int) -> bool:
        try:
            tried[units * unit] = peak(units * unit)
        except DoesNotFitError:
            tried[units * unit] = None
        used = tried[units * unit]
        return used is not None and used <= hbm_bytes

    while not fits(start):
        if start == 1:
            return Largest(0, tried)
        start //= 2
    good, refused = [start], math.inf
    following = 2 * start
    for _ in range(8):
        if following <= good[-1] or following >= refused:
            break
        if fits(following):
            good.append(following)
            last, before = tried[good[-1] * unit] or 0, tried[good[-2] * unit] or 0
            slope = max((last - before) / (good[-1] - good[-2]), 1.0)
            end = good[-1] + (hbm_bytes - last) / slope
            following = _round(int(min(end, 8 * good[-1], refused - 1)))
            if following < 1.05 * good[-1]:  # not worth minutes of compiling
                break
        else:
            refused = following
            following = _round(int(0.92 * following))
    return Largest(good[-1] * unit, tried)


def _round(units: int) -> int:
    """Down to a multiple of 8, which chips lay out without waste."""
    return units // 8 * 8 if units >= 16 else units
