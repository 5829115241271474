"""A loss that is not a number: noticed without holding the devices up, and told with the batch that it came from."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from repgls_jax import distributed
from repgls_jax.train.journal import Journal, finite

RECORD = "diverged.json"  # beside the journal


class DivergedError(RuntimeError):
    """The loss, its gradient or the state is not a number."""


@dataclasses.dataclass(frozen=True)
class Done:
    """A step that was dispatched and not yet looked at.

    Attributes:
      step: its number.
      scalars: what it reports, still on the devices.
      index: [b] int, the examples of this process's part of the batch; None where the data has no numbers.
    """

    step: int
    scalars: dict[str, jax.Array]
    index: np.ndarray | None


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """Whether no floating-point array of a tree holds NaN or infinity; scalar bool."""
    arrays = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in arrays])) if arrays else jnp.bool_(True)


def note(done: Done, folder: pathlib.Path, log: Journal, identify: Callable[[np.ndarray], list[str]] | None) -> str:
    """Fetches, records and checks the scalars of a step; returns a few words about it.

    Raises:
      DivergedError: they are not finite; ``folder`` then holds :data:`RECORD`.
    """
    values = {name: float(value) for name, value in done.scalars.items()}
    log.record("train", step=done.step, **values)
    if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
        fail(done, values, folder, log, identify, "the loss", values["loss"])
    return f"loss {values['loss']:.4f}"


def fail(
    done: Done,
    values: dict[str, float],
    folder: pathlib.Path,
    log: Journal,
    identify: Callable[[np.ndarray], list[str]] | None,
    what: str,
    found: float,
) -> None:
    """Writes :data:`RECORD` and raises.

    Raises:
      DivergedError: always; names the step.
    """
    record: dict[str, Any] = {"step": done.step, "scalars": finite(values)}
    index = done.index
    if index is not None and distributed.several():
        index = distributed.gather(index)
    kept = ""
    if log.path is not None:
        if index is not None:
            record["index"] = np.unique(index).tolist()
        if index is not None and identify is not None:
            record["image_id"] = identify(np.unique(index))
        (folder / RECORD).write_text(json.dumps(record, indent=1, allow_nan=False))
        kept = f". Its batch is in {folder / RECORD}"
    raise DivergedError(
        f"{what} at step {done.step} is {found}, its gradient's norm {values['grad_norm']}{kept}. Lower the learning "
        "rate, or for negative rates lengthen the policy's warmup or lower its margin_cap. The last checkpoint is from "
        "before"
    )
