"""The phantom as a source: simulated studies, made on all cores."""

import dataclasses
import functools
import hashlib
import importlib.resources
import itertools
import multiprocessing
from collections.abc import Iterator
from concurrent import futures
from typing import Any

from repgls_jax import findings as findings_lib
from repgls_jax.data import parallel
from repgls_jax.data.source import SPLITS, Quarantined, Record
from repgls_jax.phantom import PhantomConfig, generate
from repgls_jax.phantom import population as population_lib

_CHUNK = 8  # studies per task: a film takes milliseconds, a task costs some too


class PhantomSource:
    """Studies 0 to count - 1 of a phantom, in that order within each split."""

    simulated = True
    vocabulary = findings_lib.CHEXPERT

    def __init__(self, *, count: int = 2000, workers: int | None = None, **config: Any):
        """Describes the data set; nothing is made yet.

        Args:
          count: studies over all splits.
          workers: processes; None for one per core, 0 or 1 for none. Records do not depend on it.
          **config: fields of :class:`repgls_jax.phantom.PhantomConfig`.

        Raises:
          ValueError: a field is unknown or out of range, or a split would be empty.
        """
        known = [field.name for field in dataclasses.fields(PhantomConfig)]
        unknown = [name for name in config if name not in known]
        if unknown:
            raise ValueError(
                f"the phantom has no field {', '.join(unknown)}; expected count, workers, {', '.join(known)}"
            )
        if count < 1 or (workers is not None and workers < 0):
            raise ValueError(f"count is {count}, workers {workers}; expected count >= 1 and workers >= 0")
        # JSON knows no tuples, and the config must be hashable.
        hashable: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
        self._config = PhantomConfig(**hashable)
        self._count = count
        self._workers = parallel.cores() if workers is None else workers
        self._pool: futures.ProcessPoolExecutor | None = None
        self.image_size = self._config.image_size
        self._indices: dict[str, list[int]] = {split: [] for split in SPLITS}
        for index in range(count):
            patient, _ = population_lib.patient_of(index)
            self._indices[population_lib.split_of(self._config, patient)].append(index)
        empty = [split for split, indices in self._indices.items() if not indices]
        if empty:
            raise ValueError(f"with count={count} the phantom has no study for {', '.join(empty)}; raise count")

    def splits(self) -> dict[str, int]:
        """Studies per split."""
        return {split: len(indices) for split, indices in self._indices.items()}

    def records(self, split: str) -> Iterator[Record | Quarantined]:
        """The studies of a split in the order of their index."""
        make = functools.partial(_studies, self._config)
        chunks = _chunks(self._indices[split])
        if self._workers <= 1:
            yield from itertools.chain.from_iterable(map(make, chunks))
            return
        if self._pool is None:
            # One pool for all splits, since each worker imports the main script anew. Not fork: the caller may hold
            # JAX's threads.
            context = multiprocessing.get_context("forkserver")
            self._pool = futures.ProcessPoolExecutor(self._workers, mp_context=context)
        studies = parallel.ordered(self._pool, make, chunks, ahead=4 * self._workers)
        yield from itertools.chain.from_iterable(studies)

    def parameters(self) -> dict[str, Any]:
        """The phantom's configuration, the number of studies, and a hash of the code that draws them."""
        return {"count": self._count, "config": dataclasses.asdict(self._config), "code_sha256": _code_hash()}

    def close(self) -> None:
        """Ends the worker processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _code_hash() -> str:
    """Changes with the phantom's code, so that films of an older one are not taken for those of this one."""
    digest = hashlib.sha256()
    files = [f for f in importlib.resources.files("repgls_jax.phantom").iterdir() if f.name.endswith((".py", ".json"))]
    for file in sorted(files, key=lambda f: f.name):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _chunks(indices: list[int]) -> list[list[int]]:
    return [indices[i : i + _CHUNK] for i in range(0, len(indices), _CHUNK)]


def _studies(config: PhantomConfig, indices: list[int]) -> list[Record]:
    return [generate(config, index) for index in indices]
