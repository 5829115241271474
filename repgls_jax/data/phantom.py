"""The phantom as a source: simulated studies."""

import dataclasses
import hashlib
import importlib.resources
from typing import Any

from repgls_jax import findings as findings_lib
from repgls_jax.data.images import Bits
from repgls_jax.data.source import SPLITS, UNKNOWN_AGE, Record
from repgls_jax.phantom import PhantomConfig, generate
from repgls_jax.phantom import population as population_lib


class PhantomSource:
    """Studies 0 to count - 1 of a phantom, in that order within each split."""

    simulated = True
    bits: Bits = 8
    vocabulary = findings_lib.CHEXPERT

    def __init__(self, *, count: int = 2000, **config: Any):
        """Describes the data set; nothing is made yet.

        Args:
          count: studies over all splits.
          **config: fields of :class:`repgls_jax.phantom.PhantomConfig`.

        Raises:
          ValueError: a field is unknown or out of range, or a split would be empty.
        """
        known = [field.name for field in dataclasses.fields(PhantomConfig)]
        unknown = [name for name in config if name not in known]
        if unknown:
            raise ValueError(f"the phantom has no field {', '.join(unknown)}; expected count, {', '.join(known)}")
        if count < 1:
            raise ValueError(f"count is {count}; expected 1 or more")
        # JSON knows no tuples, and the config must be hashable.
        hashable: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
        self._config = PhantomConfig(**hashable)
        self._count = count
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

    def record(self, split: str, i: int) -> Record:
        """Study ``i`` of a split, in the order of the studies' index; nobody has a sex or an age."""
        return generate(self._config, self._indices[split][i]) | {"sex": "", "age": UNKNOWN_AGE}

    def parameters(self) -> dict[str, Any]:
        """The phantom's configuration, the number of studies, and a hash of the code that draws them."""
        return {"count": self._count, "config": dataclasses.asdict(self._config), "code_sha256": _code_hash()}


def _code_hash() -> str:
    """Changes with the phantom's code, so that films of an older one are not taken for those of this one."""
    digest = hashlib.sha256()
    files = [f for f in importlib.resources.files("repgls_jax.phantom").iterdir() if f.name.endswith((".py", ".json"))]
    for file in sorted(files, key=lambda f: f.name):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
