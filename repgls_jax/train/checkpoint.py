"""Checkpoints of a run: written beside the training, whole or not at all; the newest and the best are kept.

The step is the data position: nothing of the input pipeline is stored. Each checkpoint also holds what is needed to use
the weights elsewhere (vocabulary, model, input contract) as JSON.
"""

import math
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

_STATE, _META = "state", "meta"


def _ranked(value: float) -> float:
    """A metric that is not defined ranks below every one that is."""
    return -math.inf if math.isnan(value) else value


class Checkpoints:
    """The checkpoints of one run, in one folder.

    Args:
      folder: created when missing.
      best: name of the metric whose maximum is kept besides the newest; None keeps the newest only.
    """

    def __init__(self, folder: pathlib.Path, best: str | None = None):
        policies: list[Any] = [keep.LatestN(2)]
        if best is not None:
            policies.append(keep.BestN(get_metric_fn=lambda m: _ranked(m[best]), reverse=False, n=1))
        self.folder = folder.absolute()
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
            ),
            item_handlers={_STATE: ocp.StandardCheckpointHandler(), _META: ocp.JsonCheckpointHandler()},
        )

    def save(self, step: int, state: Any, meta: dict[str, Any], metrics: dict[str, float] | None = None) -> None:
        """Starts writing; returns before the write is done. See :meth:`wait`."""
        args = ocp.args.Composite(**{_STATE: ocp.args.StandardSave(state), _META: ocp.args.JsonSave(meta)})
        self._manager.save(step, args=args, metrics=metrics)

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def restore(self, abstract: Any, step: int | None = None) -> Any:
        """The state saved at ``step`` (the newest by default).

        Args:
          abstract: tree of ShapeDtypeStruct with the shardings to restore into.
          step: of the checkpoint.

        Raises:
          FileNotFoundError: there is no such checkpoint.
        """
        step = self._found(step)
        return self._manager.restore(step, args=ocp.args.Composite(**{_STATE: ocp.args.StandardRestore(abstract)}))[
            _STATE
        ]

    def restore_params(self, mesh: jax.sharding.Mesh, step: int | None = None) -> Any:
        """The parameters alone, replicated over ``mesh``; raises FileNotFoundError when there is no checkpoint."""
        step = self._found(step)
        stored = self._manager.item_metadata(step)[_STATE]
        everywhere = NamedSharding(mesh, PartitionSpec())
        abstract = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=everywhere), stored)
        return self.restore(abstract, step)["params"]

    def meta(self, step: int | None = None) -> dict[str, Any]:
        """The JSON stored with a checkpoint; raises FileNotFoundError when there is none."""
        step = self._found(step)
        return self._manager.restore(step, args=ocp.args.Composite(**{_META: ocp.args.JsonRestore()}))[_META]

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the folder."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _found(self, step: int | None) -> int:
        steps = self._manager.all_steps()
        if step is None and steps:
            return max(steps)
        if step is None or step not in steps:
            wanted = "" if step is None else f" of step {step}"
            raise FileNotFoundError(
                f"no checkpoint{wanted} in {self.folder}; found steps {sorted(steps)}. "
                "Train first, or name another folder"
            )
        return step
