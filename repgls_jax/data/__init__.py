"""Data sets: from raw files to image shards (TFDS, ArrayRecord, files of pixels) and from shards to batches.

  source     what a data set offers        phantom, table   the data sets
  films      reading a film                official, cells  the tables of data sets
  features   the shape of an example       builder, build   writing shards, reports and manifest
  ledger     what is known of each shard   parallel, beam   processes, or other machines, that write them
  shards     reading them                  pixels           the files that hold their images
  pipeline   batches                       mix              several data sets as one, and their order
  augment    random changes of films       meter            where the time of the input goes
  look       a page of what is in a build

Adding a data set is one :class:`~repgls_jax.data.source.Source` and one line in :data:`DATASETS`.
"""

import pathlib
import pkgutil
from collections.abc import Callable
from typing import Any

from repgls_jax.data.build import Engine as Engine
from repgls_jax.data.build import build as build_source
from repgls_jax.data.build import identity_of as identity_of
from repgls_jax.data.build import read_manifest as read_manifest
from repgls_jax.data.chexpert import ChexpertSource
from repgls_jax.data.mimic import MimicSource
from repgls_jax.data.nih import NihSource
from repgls_jax.data.openi import OpeniSource
from repgls_jax.data.phantom import PhantomSource
from repgls_jax.data.source import Source
from repgls_jax.data.table import TableSource

DATASETS: dict[str, Callable[..., Source]] = {
    "phantom": PhantomSource,
    "table": TableSource,
    "mimic_cxr": MimicSource,
    "chexpert": ChexpertSource,
    "nih": NihSource,
    "openi": OpeniSource,
}


def dataset(name: str) -> Callable[..., Source]:
    """The data set called ``name``, or the function that "package.module:function" names.

    Raises:
      ValueError: no such data set.
    """
    if name in DATASETS:
        return DATASETS[name]
    if ":" not in name:
        raise ValueError(
            f"data set {name!r} is unknown; expected one of {', '.join(DATASETS)}, or package.module:function"
        )
    return pkgutil.resolve_name(name)


def build(
    name: str,
    output: str | pathlib.Path,
    *,
    overwrite: bool = False,
    progress: bool = False,
    workers: int | None = None,
    engine: Engine | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Builds the data set ``name`` in the folder ``output`` unless it is there already.

    Args:
      name: key of :data:`DATASETS` or "package.module:function".
      output: folder to write; see :mod:`repgls_jax.data.build`.
      overwrite: replaces a build made from something else.
      progress: shows a progress bar.
      workers: processes; None for one per core.
      engine: makes the shards instead of processes of this machine.
      **options: of the data set, such as image_size, seed, count (phantom) or source, columns (table).

    Returns:
      The manifest; see :func:`repgls_jax.data.build.build`.
    """
    source = dataset(name)(**options)
    return build_source(
        source, pathlib.Path(output), overwrite=overwrite, progress=progress, workers=workers, engine=engine
    )
