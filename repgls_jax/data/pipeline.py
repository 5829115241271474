"""Batches from image shards, for training and for evaluation.

The order of the data is a function of (seed, step) alone: not of the number of hosts, threads or worker processes. To
resume, pass the step; no iterator state is saved.
"""

import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grain
import numpy as np
from absl import flags

from repgls_jax.data.shards import Records

Batch = dict[str, np.ndarray]
Transform = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]
_RESERVED = ("image", "index", "valid")


class _Examples:
    """Images joined with the label columns by the index of the example."""

    def __init__(self, records: Records, columns: Mapping[str, np.ndarray]):
        self._records = records
        self._columns = {name: np.asarray(values) for name, values in columns.items()}
        for name, values in self._columns.items():
            if name in _RESERVED:
                raise ValueError(f"column name {name!r} is taken; choose another than {', '.join(_RESERVED)}")
            if values.ndim == 0 or len(values) != len(records):
                raise ValueError(
                    f"column {name!r} has the shape {values.shape} but the split has {len(records)} examples; "
                    "align columns with shards.examples(shards, split)"
                )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> dict[str, Any]:
        example = {"image": self._records[i]["image"], "index": np.int32(i)}
        return example | {name: values[i] for name, values in self._columns.items()}


class _Padded:
    """Examples, then blanks up to a multiple of the batch size, told apart by "valid"."""

    def __init__(self, examples: _Examples, batch_size: int):
        self._examples = examples
        self._length = -(-len(examples) // batch_size) * batch_size
        self._blank = {name: np.zeros_like(value) for name, value in examples[0].items()}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> dict[str, Any]:
        if i < len(self._examples):
            return self._examples[i] | {"valid": np.bool_(True)}
        return self._blank | {"index": np.int32(-1), "valid": np.bool_(False)}


def train_batches(
    shards: str | pathlib.Path,
    split: str,
    columns: Mapping[str, np.ndarray],
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    host_index: int = 0,
    host_count: int = 1,
    augment: Transform | None = None,
    threads: int = 2,
    workers: int = 0,
) -> Iterator[Batch]:
    """Endless batches, reshuffled every epoch; batches may straddle epochs, so that all have one size.

    Args:
      shards: the folder "shards" of a build.
      split: train, valid or test.
      columns: name -> [n, ...] array in the order of the split's examples (label states, rates, truth, ...).
      batch_size: over all hosts; host k gets rows k, k + hosts, ... of the global batch.
      seed: of order and augmentation, >= 0.
      start_step: batches to pass over; costs no reading.
      host_index: this host.
      host_count: number of hosts; divides ``batch_size``.
      augment: changes one example, given a generator of its own; see :class:`repgls_jax.data.augment.Augment`.
      threads: batches that are made at a time.
      workers: processes; 0 for threads alone.

    Returns:
      Iterator over dicts: image uint8 [b, h, w, 1], index int32 [b] (example within the split), each column [b, ...].

    Raises:
      ValueError: sizes or columns do not fit; raised by the call itself.
    """
    local = _local(batch_size, host_index, host_count)
    if start_step < 0 or seed < 0:
        raise ValueError(f"start_step is {start_step}, seed {seed}; expected 0 or more")
    data = grain.MapDataset.source(_Examples(Records(shards, split, ["image"]), columns)).seed(seed).shuffle().repeat()
    if augment is not None:
        data = data.random_map(augment)
    # Hosts are told apart after the random steps and steps after the batching: both leave the global batches alone.
    data = data[host_index::host_count].batch(local, drop_remainder=True)[start_step:]
    return _iterate(data, threads, workers)


def eval_batches(
    shards: str | pathlib.Path,
    split: str,
    columns: Mapping[str, np.ndarray],
    *,
    batch_size: int,
    host_index: int = 0,
    host_count: int = 1,
    threads: int = 2,
    workers: int = 0,
) -> Iterator[Batch]:
    """Every example once, in order; the last batch is filled up with blanks. All hosts get equally many batches.

    Arguments are those of :func:`train_batches`.

    Returns:
      Iterator over dicts: image uint8 [b, h, w, 1], index int32 [b], each column [b, ...], and valid bool [b]. Where
      valid is False the index is -1 and all else is zero.

    Raises:
      ValueError: sizes or columns do not fit; raised by the call itself.
    """
    local = _local(batch_size, host_index, host_count)
    examples = _Padded(_Examples(Records(shards, split, ["image"]), columns), batch_size)
    data = grain.MapDataset.source(examples)[host_index::host_count].batch(local, drop_remainder=True)
    return _iterate(data, threads, workers)


def _local(batch_size: int, host_index: int, host_count: int) -> int:
    if host_count < 1 or not 0 <= host_index < host_count:
        raise ValueError(
            f"host_index is {host_index} of host_count {host_count}; expected 0 <= host_index < host_count"
        )
    if batch_size < 1 or batch_size % host_count:
        raise ValueError(f"batch_size {batch_size} is not a positive multiple of the {host_count} hosts")
    return batch_size // host_count


def _iterate(data: "grain.MapDataset[Batch]", threads: int, workers: int) -> Iterator[Batch]:
    # A buffer counts batches, not examples; grain's default of 500 would hold gigabytes.
    stream = data.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * max(1, threads)))
    if workers > 0:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain hands absl's flags to its workers and fails where none were parsed
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    return iter(stream)
