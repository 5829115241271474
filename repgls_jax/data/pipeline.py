"""Batches from image shards, for training and for evaluation.

The order of the data is a function of (seed, step) alone: not of the number of hosts, threads or worker processes. To
resume, pass the step; no iterator state is saved. Grain runs and prefetches; a batch is ordered, read, augmented and
joined with its labels as a whole, since a step of Python for each image would take longer than the image.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import jax
import numpy as np
from absl import flags

from repgls_jax.data import mix
from repgls_jax.data.meter import Meter
from repgls_jax.data.shards import Images

Batch = dict[str, np.ndarray]
_ENDLESS = 2**40  # batches
_RESERVED = ("image", "index", "valid")


class Augmentation(Protocol):
    """Random changes of images, see :class:`repgls_jax.data.augment.Augment`."""

    @property
    def draws(self) -> int:
        """How many random numbers an image takes."""
        ...

    def __call__(self, images: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Changed images, uint8 or uint16 [b, h, w, 1] as given; ``draws`` is float64 [b, draws] in [-1, 1)."""
        ...


@dataclasses.dataclass(frozen=True)
class _Maker:
    """Makes this host's part of a batch from the batch's number."""

    images: mix.Joined
    columns: dict[str, np.ndarray]
    batch_size: int  # over all hosts
    host_index: int
    host_count: int
    meter: Meter
    seed: int = 0
    augment: Augmentation | None = None

    def __post_init__(self) -> None:
        for name, values in self.columns.items():
            if name in _RESERVED:
                raise ValueError(f"column name {name!r} is taken; choose another than {', '.join(_RESERVED)}")
            if values.ndim == 0 or len(values) != len(self.images):
                raise ValueError(
                    f"column {name!r} has the shape {values.shape} but the split has {len(self.images)} examples; "
                    "align columns with shards.examples(shards, split)"
                )

    def train(self, order: mix.Order, step: int) -> Batch:
        """Images, augmented, with their columns."""
        first = self.host_index * self.batch_size // self.host_count
        indices = order.batch(step, self.batch_size)[first:][: self.batch_size // self.host_count]
        made = self._joined(indices)
        if self.augment is not None:
            with self.meter.measure("augment"):
                # Numbers for the whole batch on each host: an image's are the same whichever host it is on.
                draws = np.random.default_rng((self.seed, step)).uniform(
                    -1.0, 1.0, (len(indices) * self.host_count, self.augment.draws)
                )
                made["image"] = self.augment(made["image"], draws[self.host_index * len(indices) :][: len(indices)])
        return made

    def evaluate(self, step: int) -> Batch:
        """Images with their columns; numbers past the end are blanks."""
        local = self.batch_size // self.host_count
        indices = np.arange(local) + (step * self.batch_size + self.host_index * local)
        valid = indices < len(self.images)
        read = self._joined(indices[valid])
        made = {name: np.zeros((len(indices), *values.shape[1:]), values.dtype) for name, values in read.items()}
        made["index"][:] = -1
        for name, values in read.items():
            made[name][: len(values)] = values
        return made | {"valid": valid}

    def _joined(self, indices: np.ndarray) -> Batch:
        made = {"image": self.images.read(indices, self.meter), "index": indices.astype(np.int32)}
        with self.meter.measure("join"):
            return made | {name: values[indices] for name, values in self.columns.items()}


def train_batches(
    shards: str | pathlib.Path | Sequence[str | pathlib.Path] | mix.Joined,
    split: str,
    columns: Mapping[str, np.ndarray],
    *,
    batch_size: int,
    seed: int,
    weights: Sequence[float] = (),
    start_step: int = 0,
    host_index: int = 0,
    host_count: int = 1,
    augment: Augmentation | None = None,
    threads: int = 2,
    workers: int = 0,
    meter: Meter | None = None,
) -> Iterator[Batch]:
    """Endless batches, reshuffled every epoch; batches may straddle epochs, so that all have one size.

    Args:
      shards: the folder "shards" of a build, or of several builds to mix, see :mod:`repgls_jax.data.mix`; or images
        that are open.
      split: train, valid or test.
      columns: name -> [n, ...] array in the order of the split's examples (label states, rates, truth, ...); of several
        builds, those of the first, then those of the second, and so on.
      batch_size: over all hosts; host k gets the k-th block of the global batch, so that what is drawn for a row of it
        on the devices (dropout, labels) is the same for any number of hosts.
      seed: of order and augmentation, >= 0.
      weights: of several builds, how often images of each are drawn; by their number of images if not given.
      start_step: batches to pass over; costs no reading.
      host_index: this host.
      host_count: number of hosts; divides ``batch_size``.
      augment: changes images; see :class:`repgls_jax.data.augment.Augment`.
      threads: batches that are made at a time.
      workers: processes; 0 for threads alone.
      meter: told where the time goes; what worker processes do, it is not told.

    Returns:
      Iterator over dicts: image uint8 or uint16 [b, h, w, 1], index int32 [b] (example within the split, of several
      builds within all of them: see :meth:`repgls_jax.data.mix.Joined.part`), each column [b, ...].

    Raises:
      ValueError: sizes, columns or weights do not fit; raised by the call itself.
      FileNotFoundError: no shards there; raised by the call itself.
      DamagedShardError: a file is not what was written; its size by the call itself, its content when it is read.
    """
    _check(batch_size, host_index, host_count)
    if start_step < 0 or seed < 0:
        raise ValueError(f"start_step is {start_step}, seed {seed}; expected 0 or more")
    images = _open(shards, split)
    maker = _Maker(images, _arrays(columns), batch_size, host_index, host_count, meter or Meter(), seed, augment)
    make = functools.partial(maker.train, mix.Order(images.lengths, weights, seed))
    return _iterate(grain.MapDataset.range(start_step, _ENDLESS).map(make), threads, workers)


def eval_batches(
    shards: str | pathlib.Path | Sequence[str | pathlib.Path] | mix.Joined,
    split: str,
    columns: Mapping[str, np.ndarray],
    *,
    batch_size: int,
    host_index: int = 0,
    host_count: int = 1,
    threads: int = 2,
    workers: int = 0,
    meter: Meter | None = None,
) -> Iterator[Batch]:
    """Every example once, in order; the last batch is filled up with blanks. All hosts get equally many batches.

    Arguments are those of :func:`train_batches`.

    Returns:
      Iterator over dicts: image uint8 or uint16 [b, h, w, 1], index int32 [b], each column [b, ...], and valid bool
      [b]. Where valid is False the index is -1 and all else is zero.

    Raises:
      See :func:`train_batches`.
    """
    _check(batch_size, host_index, host_count)
    images = _open(shards, split)
    maker = _Maker(images, _arrays(columns), batch_size, host_index, host_count, meter or Meter())
    return _iterate(grain.MapDataset.range(-(-len(images) // batch_size)).map(maker.evaluate), threads, workers)


def _open(shards: str | pathlib.Path | Sequence[str | pathlib.Path] | mix.Joined, split: str) -> mix.Joined:
    if isinstance(shards, mix.Joined):
        return shards
    folders = [shards] if isinstance(shards, str | pathlib.Path) else shards
    return mix.Joined([Images(folder, split) for folder in folders])


def _arrays(columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(values) for name, values in columns.items()}


def _check(batch_size: int, host_index: int, host_count: int) -> None:
    if host_count < 1 or not 0 <= host_index < host_count:
        raise ValueError(
            f"host_index is {host_index} of host_count {host_count}; expected 0 <= host_index < host_count"
        )
    if batch_size < 1 or batch_size % host_count:
        raise ValueError(f"batch_size {batch_size} is not a positive multiple of the {host_count} hosts")


def _iterate(data: "grain.MapDataset[Batch]", threads: int, workers: int) -> Iterator[Batch]:
    # A buffer counts batches, not examples; grain's default of 500 would hold gigabytes.
    stream = data.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * max(1, threads)))
    if workers > 0:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain hands absl's flags to its workers and fails where none were parsed
        stream = stream.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2), worker_init_fn=_leave_devices
        )
    return iter(stream)


def _leave_devices(worker: int, workers: int) -> None:
    """Keeps a worker process, which augments on the CPU, from claiming the accelerators of its parent."""
    del worker, workers
    jax.config.update("jax_platforms", "cpu")
