"""Checkpoints of a run: written beside the training, whole or not at all; the newest two and the best are kept.

The step is the data position: nothing of the input pipeline is stored. Each checkpoint also holds what is needed to use
the weights elsewhere (vocabulary, model, input contract) as JSON, and a manifest (:mod:`repgls_jax.train.manifest`)
with its metrics and the checksums of its files. A checkpoint is checked before it is used; a damaged one is moved
aside, never deleted, and the one before it is used instead.
"""

import contextlib
import errno
import math
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import tree as trees
from orbax.checkpoint.checkpoint_managers import preservation_policy

from repgls_jax import distributed
from repgls_jax.train import manifest
from repgls_jax.train.journal import Journal
from repgls_jax.train.manifest import DamagedError
from repgls_jax.train.state import TrainState

_STATE, _META = "state", "meta"
_REMOVED = "removed"  # a checkpoint is moved here before its files go, so that no half of one looks finished
_ASIDE = "damaged-"  # and the step; a checkpoint that was not what had been written
_UNFINISHED = ".orbax-checkpoint-tmp"
_SLICE = 1 << 20  # bytes; copies of an array are written in parts by several devices, but not in smaller ones
_NAMED = 8  # differences that an error names
Which = int | str


class DiskFullError(OSError):
    """A checkpoint could not be written for lack of space."""


class Checkpoints(preservation_policy.PreservationPolicy):
    """The checkpoints of one run, in one folder. Every process of a run makes one, and calls the same methods.

    Args:
      folder: local, or remote such as gs://bucket/run. Created when missing, if it is written to.
      best: name of the metric whose maximum is kept besides the newest two. None opens the folder for reading only:
        nothing is written, moved or deleted, so that a run under way can be looked at.
      journal: told of damage.
    """

    def __init__(self, folder: epath.PathLike, best: str | None = None, journal: Journal | None = None):
        self.folder = located(folder)
        self._best = best
        self._journal = journal or Journal(None, None)
        self._checked: set[int] = set()
        self._saving: dict[str, Any] = {}
        self._start()

    def _start(self) -> None:
        """Opens the folder as it is now."""
        if self._best is not None and distributed.is_first():
            (self.folder / _REMOVED).rmtree(missing_ok=True)
        self._manifests: dict[int, dict[str, Any] | None] = {}
        reads = {"read_only": True, "create": False, "save_interval_steps": 0, "enable_async_checkpointing": False}
        writes = {
            "preservation_policy": self,
            "cleanup_tmp_directories": True,
            "todelete_subdir": None if manifest.remote(self.folder) else _REMOVED,
            "async_options": ocp.AsyncOptions(post_finalization_callback=self._seal),
        }
        chosen: dict[str, Any] = reads if self._best is None else writes
        # Metadata is not read ahead: the library would stop at a damaged file.
        options = ocp.CheckpointManagerOptions(lightweight_initialize=True, **chosen)
        arrays = ocp.type_handlers.create_type_handler_registry(
            (jax.Array, ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_SLICE)),
            (np.ndarray, ocp.type_handlers.NumpyHandler()),
        )
        handlers: dict[str, Any] = {
            _STATE: ocp.PyTreeCheckpointHandler(type_handler_registry=arrays),
            _META: ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def save(self, step: int, state: Any, meta: dict[str, Any], metrics: dict[str, float] | None = None) -> None:
        """Starts writing; returns before the write is done, see :meth:`wait`.

        Raises:
          DiskFullError: this checkpoint or the one before found no space; those before are whole.
          ValueError: there is one of this step already, or the folder is open for reading only.
        """
        if self._best is None:
            raise ValueError(f"{self.folder} is open for reading; name the metric that decides to write to it")
        args = ocp.args.Composite(**{_STATE: ocp.args.PyTreeSave(state), _META: ocp.args.JsonSave(meta)})
        with self._space():
            self._manager.wait_until_finished()  # the manifest of the one before is written by then
            self._saving = {"version": 1, "step": step, "best": self._best, "metrics": metrics or {}}
            self._manifests[step] = self._saving
            self._manager.save(step, args=args, force=True)  # the caller has decided; nothing is left out silently

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, sound or not, or None."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Step of the checkpoint with the highest metric, the newer of two equal; None when none has metrics."""
        ranked = [(_score(self._manifest(step)), step) for step in self._manager.all_steps()]
        return max(((s, step) for s, step in ranked if s is not None), default=(0.0, None))[1]

    def metrics(self, step: int) -> dict[str, float | None]:
        """What was measured at a checkpoint; None for what was not a number; {} where nothing was."""
        return (self._manifest(step) or {}).get("metrics", {})

    def choose(self, which: Which = "latest") -> int | None:
        """The step of a checkpoint that is sound, every byte checked; None when the folder has no checkpoint at all.

        Damaged ones on the way are told of, and moved aside by a run that writes.

        Args:
          which: a step, which must be sound itself; "latest"; or "best", which falls back on the newest.

        Raises:
          DamagedError: there are checkpoints, and all are damaged, or the one asked for is.
          FileNotFoundError: there is no checkpoint of that step.
        """
        if isinstance(which, str) and which not in ("latest", "best"):
            raise ValueError(f'which={which!r}; expected "latest", "best" or a step')
        if isinstance(which, int) and which not in self._manager.all_steps():
            raise self._missing(which)
        if self._best is None or not distributed.several():
            return self._first_sound(which)

        def work() -> dict[str, Any]:
            try:
                return {"step": self._first_sound(which)}
            except DamagedError as error:
                return {"error": str(error)}

        found = distributed.from_first("choice of a checkpoint", work)
        if "error" in found:
            raise DamagedError(found["error"])
        self._start()  # the first process may have moved some
        self._checked.add(found["step"])
        return found["step"]

    def restore(self, abstract: Any, which: Which = "latest") -> Any:
        """The state of a checkpoint, exact on any mesh.

        Args:
          abstract: TrainState or nested dict of ShapeDtypeStruct with the shardings to restore into.
          which: see :meth:`choose`.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          DamagedError: see :meth:`choose`.
          ValueError: the checkpoint is of another network or optimizer; names what differs.
        """
        step = self._found(which)
        wanted = abstract
        if isinstance(abstract, TrainState):  # a part that is None need not be stored
            wanted = {name: part for name, part in vars(abstract).items() if part is not None}
        self._require_same(step, wanted)
        read = self._read(step, wanted)
        return abstract.replace(**read) if isinstance(abstract, TrainState) else read

    def restore_params(self, mesh: jax.sharding.Mesh, which: Which = "latest") -> Any:
        """The weights to use, replicated over ``mesh``: the moving average where the run kept one.

        Raises:
          FileNotFoundError, DamagedError: see :meth:`choose`.
        """
        step = self._found(which)
        stored = self._stored(step)
        name = "ema" if stored.get("ema") is not None else "params"
        everywhere = NamedSharding(mesh, PartitionSpec())
        return self._read(step, {name: _shapes(stored[name], everywhere)})[name]

    def meta(self, which: Which = "latest") -> dict[str, Any]:
        """The JSON stored with a checkpoint; raises as :meth:`choose` does, or FileNotFoundError when there is none."""
        step = self._found(which)
        return self._manager.restore(step, args=ocp.args.Composite(**{_META: ocp.args.JsonRestore()}))[_META]

    def wait(self) -> None:
        """Returns when everything saved is on disk; raises as :meth:`save` does."""
        with self._space():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the folder; raises as :meth:`save` does."""
        with self._space():
            self._manager.close()
        if self._best is not None and distributed.is_first():
            (self.folder / _REMOVED).rmtree(missing_ok=True)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Orbax's question after each save: the newest two, the best, and what has no manifest stay."""
        del context
        steps = sorted(info.step for info in checkpoints)
        scores = {step: _score(self._manifest(step)) for step in steps}
        best = max(((s, step) for step, s in scores.items() if s is not None), default=(0.0, None))[1]
        kept = {*steps[-2:], best, *(step for step in steps if self._manifest(step) is None)}
        return [info.step in kept for info in checkpoints]

    def _seal(self) -> None:
        """Called by Orbax in the first process when all is written, right before the folder gets its final name."""
        (self.folder / _REMOVED).rmtree(missing_ok=True)
        step = self._saving["step"]
        unfinished = [p for p in self.folder.iterdir() if p.name.startswith(f"{step}{_UNFINISHED}")]
        # Object stores have no rename: there the folder has its final name, and a file that says it is complete.
        manifest.write(unfinished[0] if unfinished else self.folder / str(step), self._saving)

    def _manifest(self, step: int) -> dict[str, Any] | None:
        if step not in self._manifests:
            try:
                self._manifests[step] = manifest.read(self.folder / str(step))
            except DamagedError:
                self._manifests[step] = {}  # known to be damaged, and of no rank
        return self._manifests[step]

    def _first_sound(self, which: Which) -> int | None:
        steps = sorted(self._manager.all_steps(), reverse=True)
        if isinstance(which, int):
            candidates = [which]
        else:
            best = self.best() if which == "best" else None
            candidates = sorted(steps, key=lambda step: step != best)  # stable: the newest first after the best
        damaged: dict[int, str] = {}
        for step in candidates:
            try:
                self._check(step)
            except DamagedError as error:
                damaged[step] = str(error)
                continue
            # Moved only now: where none is sound, all stay as they are.
            for bad, why in damaged.items():
                moved = self._aside(bad)
                self._journal.say(f"  checkpoint of step {bad} is damaged: {why}{moved}. Using that of step {step}")
                self._journal.record("damaged", checkpoint=bad, why=why, used=step)
            return step
        aside = [p.name for p in self.folder.iterdir() if p.name.startswith(_ASIDE)] if self.folder.exists() else []
        if damaged or aside:
            listed = "".join(f"\n  step {bad}: {why}" for bad, why in damaged.items()) + "\n  ".join(["", *aside])
            raise DamagedError(
                f"no checkpoint in {self.folder} that could be used is sound:{listed}\nTraining does not start over "
                "in silence: bring the files back from a copy, take another folder, or delete this one to begin anew"
            )
        return None

    def _check(self, step: int) -> None:
        if step in self._checked:
            return
        began, folder = time.monotonic(), self.folder / str(step)
        told = manifest.read(folder)
        if told is None:
            self._try(step)
            self._journal.say(f"  checkpoint of step {step} has no manifest: its values could not be checked")
        else:
            manifest.check(folder, told)
            seconds, read = time.monotonic() - began, manifest.size(told)
            self._journal.record("checked", checkpoint=step, bytes=read, seconds=round(seconds, 3))
            if seconds > 1:
                self._journal.say(f"  checkpoint of step {step} checked: {read / 1e9:.1f} GB in {seconds:.0f} s")
        self._checked.add(step)

    def _try(self, step: int) -> None:
        """Reads a checkpoint without a manifest, for what can be noticed that way."""
        try:
            self._manager.restore(step, args=ocp.args.Composite(**{_META: ocp.args.JsonRestore()}))
            wanted = _shapes(self._stored(step))
            if not distributed.several():
                self._read(step, wanted, jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted))
        except (ValueError, KeyError, OSError) as error:
            raise DamagedError(f"it cannot be read ({str(error).strip().splitlines()[0][:200]})") from error

    def _aside(self, step: int) -> str:
        """Moves a damaged checkpoint out of the way of the run; returns words about it."""
        if self._best is None:
            return ""
        taken = {p.name for p in self.folder.iterdir()}
        names = (f"{_ASIDE}{step}" + (f"-{i}" if i > 1 else "") for i in range(1, len(taken) + 2))
        name = next(n for n in names if n not in taken)
        (self.folder / str(step)).rename(self.folder / name)
        if not distributed.several():
            self._start()
        return f"; moved to {name}"

    def _stored(self, step: int) -> dict[str, Any]:
        """The tree of a checkpoint's state, with shape and dtype of every array."""
        found = self._manager.item_metadata(step)[_STATE]
        if found is None:
            raise DamagedError("the description of its arrays is missing")
        return found.tree

    def _read(self, step: int, wanted: Any, args: Any = None) -> Any:
        how = args or ocp.checkpoint_utils.construct_restore_args(wanted)
        restore = ocp.args.PyTreeRestore(item=wanted, restore_args=how, partial_restore=True)
        return self._manager.restore(step, args=ocp.args.Composite(**{_STATE: restore}))[_STATE]

    def _require_same(self, step: int, wanted: Any) -> None:
        here, stored = trees.to_flat_dict(wanted), trees.to_flat_dict(self._stored(step))
        where = f"the checkpoint of step {step} in {self.folder}"
        averaged = [any(path[0] == "ema" for path in paths) for paths in (here, stored)]
        if averaged == [True, False]:
            raise ValueError(f"{where} keeps no moving average of the weights; set train.ema=0, or take another folder")
        if averaged == [False, True]:
            raise ValueError(
                f"{where} keeps a moving average of the weights; set train.ema to the decay it was made with, or take "
                "another folder"
            )
        found = {path: "is only in the checkpoint" for path in stored if path not in here}
        found |= {path: "is not in the checkpoint" for path in here if path not in stored}
        for path, value in here.items():
            kept = stored.get(path, value)
            ours, theirs = (f"{np.dtype(v.dtype).name}{list(v.shape)}" for v in (value, kept))
            if ours != theirs:
                found[path] = f"is {ours} here and {theirs} in the checkpoint"
        # Parameters first; the optimizer's moments follow theirs.
        differ = [f"{'/'.join(path)} {found[path]}" for path in sorted(found, key=lambda path: path[0] != "params")]
        if differ:
            more = f"; and {len(differ) - _NAMED} more" if len(differ) > _NAMED else ""
            raise ValueError(
                f"{where} is of another network or optimizer: {'; '.join(differ[:_NAMED])}{more}. "
                "Use the settings it was made with, or take another folder"
            )

    def _found(self, which: Which) -> int:
        step = self.choose(which)
        if step is None:
            raise self._missing(which)
        return step

    def _missing(self, which: Which) -> FileNotFoundError:
        wanted = f" of step {which}" if isinstance(which, int) else ""
        return FileNotFoundError(
            f"no checkpoint{wanted} in {self.folder}; found steps {sorted(self._manager.all_steps())}. "
            "Train first, or name another folder"
        )

    @contextlib.contextmanager
    def _space(self) -> Iterator[None]:
        """Says what to do when a disk is full; the error may come from a thread of a save before."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            if not _full(error):
                raise
            raise DiskFullError(
                f"no space left for a checkpoint in {self.folder}. The checkpoints before it are whole: make room "
                "(old runs, other checkpoints), then give the same command again to go on from the newest"
            ) from error


def located(folder: epath.PathLike) -> epath.Path:
    """The folder as an absolute path; an address such as gs://bucket/run stays as it is."""
    path = epath.Path(folder)
    return path if manifest.remote(path) else epath.Path(os.path.abspath(path))  # noqa: PTH100 epath's own may mangle


def _score(told: dict[str, Any] | None) -> float | None:
    """The metric that decides; a metric that is not defined ranks below every one that is."""
    if not told or told["best"] not in told["metrics"]:
        return None
    value = told["metrics"][told["best"]]
    return -math.inf if value is None or math.isnan(value) else value


def _shapes(stored: Any, sharding: NamedSharding | None = None) -> Any:
    return jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=sharding), stored)


def _full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is of a full disk; TensorStore tells it in words only."""
    if error is None:
        return False
    words = ("No space left on device", "Disk quota exceeded")
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(w in str(error) for w in words):
        return True
    return _full(error.__cause__) or _full(error.__context__)
