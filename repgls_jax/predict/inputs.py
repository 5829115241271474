"""Films as files: finding them in folders, and reading many at a time into what a model takes."""

import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np

from repgls_jax.data import images, parallel
from repgls_jax.exports import reference

SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")
_BITS: dict[str, images.Bits] = {"uint8": 8, "uint16": 16}


class Film(NamedTuple):
    """One file.

    Attributes:
      path: as it was found.
      image: uint8 or uint16 [h, w, 1] as the model takes it, or None.
      said: why it could not be used, where there is no image; else what is odd about it, "" for nothing.
    """

    path: pathlib.Path
    image: np.ndarray | None
    said: str


def find(given: Sequence[str]) -> tuple[list[pathlib.Path], int]:
    """The files to read, each once, and how many in folders were left out for being something else.

    A file named is taken whatever it is called. Of a folder, and the folders in it, those with a name that ends in one
    of :data:`SUFFIXES` are taken, and those without an ending that begin as DICOM does; in the order of their names.

    Raises:
      FileNotFoundError: names everything that is not there.
      ValueError: nothing was given, or no film found.
    """
    missing = [name for name in given if not pathlib.Path(name).exists()]
    if missing:
        raise FileNotFoundError(f"no such file or folder: {', '.join(missing)}")
    found: dict[pathlib.Path, None] = {}
    left_out = 0
    for name in given:
        path = pathlib.Path(name)
        if not path.is_dir():
            found[path] = None
            continue
        for folder, folders, names in os.walk(path):
            folders.sort()
            for file in sorted(names):
                taken = _is_film(pathlib.Path(folder, file))
                left_out += not taken
                if taken:
                    found[pathlib.Path(folder, file)] = None
    if not found:
        raise ValueError(f"no film in {', '.join(given) or 'nothing'}; expected files ending in {', '.join(SUFFIXES)}")
    return list(found), left_out


def _is_film(path: pathlib.Path) -> bool:
    if path.suffix:
        return path.suffix.lower() in SUFFIXES
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def reader(contract: Mapping[str, Any], preprocessing: Mapping[str, Any], told: Any) -> Callable[[pathlib.Path], Film]:
    """What turns a file into a film for a model; may be called from several threads.

    Args:
      contract: the model's input.
      preprocessing: how films become images: fit, max_megapixels.
      told: how training films look, of :func:`repgls_jax.exports.reference.make`, or None.
    """
    size, bits = contract["size"], _BITS[contract["dtype"]]
    fit = preprocessing.get("fit", "pad")
    most = min(float(preprocessing.get("max_megapixels", images.PIL_MEGAPIXELS)), images.PIL_MEGAPIXELS)
    if fit not in images.FITS:
        raise ValueError(f"the model's preprocessing has fit {fit!r}; expected {' or '.join(images.FITS)}")

    def read(path: pathlib.Path) -> Film:
        try:
            image = images.read(path, size, most, bits, fit)[..., None]
        except images.UnusableImageError as error:
            return Film(path, None, str(error))
        return Film(path, image, "; ".join(reference.warnings(image, told)) if told else "")

    return read


def batches(
    paths: Sequence[pathlib.Path], read: Callable[[pathlib.Path], Film], size: int, workers: int = 0
) -> Iterator[list[Film]]:
    """The films in order, ``size`` at a time; the next ones are read while one is used.

    Args:
      paths: of the files.
      read: of :func:`reader`.
      size: of a batch.
      workers: threads; 0 for one a core.
    """
    with futures.ThreadPoolExecutor(workers or parallel.cores()) as pool:
        parts = (paths[i : i + size] for i in range(0, len(paths), size))
        waiting: list[list[futures.Future[Film]]] = []
        try:
            for part in parts:
                waiting.append([pool.submit(read, path) for path in part])
                if len(waiting) > 2:
                    yield [one.result() for one in waiting.pop(0)]
            while waiting:
                yield [one.result() for one in waiting.pop(0)]
        finally:
            pool.shutdown(cancel_futures=True)
