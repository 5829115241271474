"""Copies a complete build from elsewhere: a bucket (gs://, s3://) or a slow shared disk, to a disk of this machine.

Buckets are reached through etils.epath and fsspec, which need the bucket's own package (gcsfs for gs://) and no
TensorFlow; ArrayRecord and memory-mapped pixels can only be read from a disk. Files are checked against the manifest's
sizes and SHA-256 on the way. What is copied stays when a copy is interrupted, and of several processes of a machine
one copies while the others wait.
"""

import fcntl
import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable
from concurrent import futures
from typing import Any

from etils import epath

from repgls_jax.data import ledger, parallel
from repgls_jax.data.build import BOXES, FORMAT, MANIFEST, REPORTS, SHARDS

SCHEMES = ("gs", "s3", "az")
_LARGEST = 2**28  # bytes of a manifest or of TFDS's own files, far beyond what a build writes
_BLOCK = 2**20
_THREADS = 8
Count = Callable[[int], None]


def place(build: str) -> epath.Path:
    """A build's folder, or its address.

    Raises:
      ValueError: an address of a kind that cannot be read, or whose package is not installed.
    """
    scheme, separator, _ = build.partition("://")
    if separator and scheme not in SCHEMES:
        raise ValueError(f"{build}: cannot read {scheme}://; expected a folder or {'://, '.join(SCHEMES)}://")
    path = epath.Path(build) if separator else epath.Path(pathlib.Path(build).absolute())
    try:
        path.exists()
    except ImportError as error:
        raise ValueError(f"{build}: {error}; for gs:// pip install gcsfs") from None
    return path


def describe(build: str) -> tuple[dict[str, Any], str]:
    """The manifest of a build and its SHA-256, by which builds are told apart.

    Raises:
      FileNotFoundError: no complete build there.
      ValueError: not a manifest of this format.
    """
    text = _small(place(build) / MANIFEST)
    try:
        manifest = json.loads(text)
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{build}/{MANIFEST} is not of format {FORMAT}; build the data set again")
    return manifest, hashlib.sha256(text).hexdigest()


def fetch(build: str, target: pathlib.Path, reports: bool, tick: Count = lambda done: None) -> pathlib.Path:
    """Copies a build; returns ``target``, in which it is complete and its manifest is written last.

    Args:
      build: folder or address that holds manifest.json.
      target: folder on this machine, for this build alone; made where needed.
      reports: whether to copy the reports and boxes too, or the shards alone.
      tick: told the bytes of each file that is there.

    Raises:
      FileNotFoundError: no complete build there, or one of its files is missing.
      ValueError: ``build`` cannot be read, or names files outside its folder.
      OSError: a file is not what the manifest says, or the disk is full.
    """
    source, (manifest, _) = place(build), describe(build)
    text = _small(source / MANIFEST)
    target.mkdir(parents=True, exist_ok=True)
    with parallel.locked(target.with_name(f".{target.name}.lock"), fcntl.LOCK_EX):
        done = target / MANIFEST
        if done.exists() and done.read_bytes() == text:
            return target
        (target / SHARDS).mkdir(exist_ok=True)
        files = manifest["shards"]
        odd = [name for name in files if pathlib.PurePath(name).name != name]
        if odd:
            raise ValueError(f"{build}/{MANIFEST} names the files {odd[:3]}, which are not in its folder {SHARDS}")
        for left in (target / SHARDS).glob(".*"):  # of a copy that was killed
            left.unlink()
        _require_space(target, sum(about["bytes"] for about in files.values()))
        pool = futures.ThreadPoolExecutor(_THREADS)
        try:
            copies = [pool.submit(_copy, source / SHARDS / name, target / SHARDS / name, files[name]) for name in files]
            for copy in futures.as_completed(copies):
                tick(copy.result())
        finally:
            pool.shutdown(cancel_futures=True)
        small = [path for path in (source / SHARDS).iterdir() if path.suffix == ".json"]  # TFDS's own
        small += [source / name for name in (REPORTS, BOXES)] if reports else []
        for path in small:
            folder = target / SHARDS if path.suffix == ".json" else target
            _write(folder / path.name, target, path.read_bytes() if path.suffix != ".json" else _small(path))
        _write(done, target, text)
    return target


def _small(path: epath.Path) -> bytes:
    size = path.stat().length
    if size is None or size > _LARGEST:
        raise ValueError(f"{path} has {size} bytes; expected a small file")
    return path.read_bytes()


def _write(path: pathlib.Path, scratch: pathlib.Path, content: bytes) -> None:
    with ledger.whole(path, scratch) as temporary:
        temporary.write_bytes(content)


def _require_space(target: pathlib.Path, wanted: int) -> None:
    held = sum(path.stat().st_size for path in (target / SHARDS).iterdir())
    free = shutil.disk_usage(target).free
    if wanted - held > free:
        raise OSError(f"{target} has {free:,} bytes free and needs {wanted - held:,}; choose another disk")


def _copy(source: epath.Path, target: pathlib.Path, about: dict[str, Any]) -> int:
    """Copies one file unless it is there as it should be; returns its size."""
    size, wanted = about["bytes"], about["sha256"]
    if target.exists() and target.stat().st_size == size:
        with target.open("rb") as there:
            if hashlib.file_digest(there, "sha256").hexdigest() == wanted:
                return size
    digest, read = hashlib.sha256(), 0
    with ledger.whole(target, target.parent) as temporary:
        with source.open("rb") as given, temporary.open("wb") as made:
            while block := given.read(_BLOCK):
                read += len(block)
                if read > size:
                    break
                digest.update(block)
                made.write(block)
        if read != size or digest.hexdigest() != wanted:
            raise OSError(f"{source} is not the file that its manifest describes ({size:,} bytes); upload it again")
    return size
