"""The whole model as one portable program: StableHLO by :mod:`jax.export`, with weights and preprocessing inside.

model.stablehlo   images [b, h, w, 1] -> (probability [b, c], rate [b, c]), b free; for CPU, CUDA and TPU
contract.json     what the images must be, the findings in order, thresholds where they have been chosen
load.py           runs it, importing nothing but JAX
"""

import contextlib
import dataclasses
import functools
import pathlib
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export

from repgls_jax import findings as findings_lib
from repgls_jax.exports import files, native
from repgls_jax.models import luvit

PROGRAM, CONTRACT = "model.stablehlo", "contract.json"
PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM_BYTES = 1 << 31  # the container's own limit


@dataclasses.dataclass(frozen=True)
class Program:
    """An exported program; the attributes are those of :class:`repgls_jax.trained.Trained`."""

    call: Callable[[Any], tuple[Array, Array]]
    vocabulary: findings_lib.Vocabulary
    input: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    thresholds: Mapping[str, Any] | None
    reference: Mapping[str, Any] | None
    source: Mapping[str, Any]
    where: str

    @property
    def size(self) -> int:
        """Pixels of a side of the images."""
        return self.input["size"]

    def forward(self, images: Any) -> tuple[Array, Array]:
        """As :meth:`repgls_jax.trained.Trained.forward`."""
        luvit.require_images(self.input, images, self.where)
        return self.call(images)


def write(folder: pathlib.Path, model: luvit.LUViT, params: Any, contract: Mapping[str, Any]) -> None:
    """Writes the form into an empty folder.

    Args:
      folder: exists.
      model: with attention "xla", which compiles for every platform.
      params: its parameters, held by the program as constants.
      contract: vocabulary {name, version, findings}, input, preprocessing, source; thresholds and reference or None.

    Raises:
      ValueError: the weights are too large for one program.
    """
    bytes_ = sum(np.asarray(value).nbytes for value in jax.tree.leaves(params))
    if bytes_ > PROGRAM_BYTES * 3 // 4:
        raise ValueError(
            f"the weights have {bytes_:,} bytes, and a program that holds them at most {PROGRAM_BYTES:,}; "
            "leave stablehlo out of the formats"
        )
    kept = jax.device_get(params)

    def predict(images: Array) -> tuple[Array, Array]:
        out: Any = model.apply({"params": kept}, images)
        return jax.nn.sigmoid(out["logits"]), out["rate"]

    told = contract["input"]
    shape = (*export.symbolic_shape("b"), told["size"], told["size"], 1)
    images = jax.ShapeDtypeStruct(shape, jnp.dtype(told["dtype"]))
    with _without_sources():
        made = export.export(jax.jit(predict), platforms=PLATFORMS)(images)
    (folder / PROGRAM).write_bytes(made.serialize())
    files.write_json(folder / CONTRACT, dict(contract))


@contextlib.contextmanager
def _without_sources() -> Iterator[None]:
    """Keeps the paths of source files, which tell of the machine, out of what is compiled."""
    name = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, name)
    jax.config.update(name, ".*")
    try:
        yield
    finally:
        jax.config.update(name, before)


def is_stablehlo(folder: pathlib.Path) -> bool:
    """Whether the folder holds this form."""
    return (folder / PROGRAM).is_file() and (folder / CONTRACT).is_file()


def load(folder: pathlib.Path) -> Program:
    """Reads the form.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is too large or damaged, or the program is not for the contract beside it or this machine.
    """
    told = files.read_json(folder / CONTRACT)
    path = folder / PROGRAM
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected a complete export, copy or make it again")
    if path.stat().st_size > PROGRAM_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; expected at most {PROGRAM_BYTES}")
    missing = [name for name in ("vocabulary", "input", "preprocessing", "source") if name not in told]
    if missing:
        raise ValueError(f"{folder / CONTRACT} lacks {', '.join(missing)}; make the export again")
    vocabulary = findings_lib.Vocabulary(
        told["vocabulary"]["name"], told["vocabulary"]["version"], tuple(told["vocabulary"]["findings"])
    )
    native.check(told.get("thresholds"), told.get("reference"), vocabulary.findings, folder)
    content = bytearray(path.read_bytes())
    try:
        program = export.deserialize(content)
    except (ValueError, TypeError, RuntimeError, AssertionError, LookupError, struct.error) as error:
        raise ValueError(f"{path} is not a program of jax.export ({type(error).__name__}); make it again") from None
    size, count = told["input"]["size"], len(vocabulary)
    takes, gives = program.in_avals[0], [tuple(out.shape[1:]) for out in program.out_avals]
    if tuple(takes.shape[1:]) != (size, size, 1) or takes.dtype != told["input"]["dtype"] or gives != [(count,)] * 2:
        raise ValueError(f"{path} takes {takes} and gives {gives}, which is not what {CONTRACT} says; make it again")
    kept: dict[str, Any] = {
        name: told.get(name) for name in ("input", "preprocessing", "thresholds", "reference", "source")
    }
    return Program(jax.jit(functools.partial(_call, program)), vocabulary, **kept, where=str(folder))


def _call(program: export.Exported, images: Array) -> tuple[Array, Array]:
    probability, rate = program.call(images)
    return probability, rate
