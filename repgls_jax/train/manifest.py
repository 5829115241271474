"""The manifest of a checkpoint: sizes and CRC-32 of its files, so that damage is found before anything is restored.

Orbax's array files carry checksums of their indices, not of the values: a flipped bit of a weight would be restored as
it stands. The manifest is written inside the folder before the folder gets its final name, so that a finished
checkpoint has one, and it holds what was measured at that step, which the choice of the best checkpoint needs.
"""

import concurrent.futures
import json
import os
import zlib
from collections.abc import Iterator
from typing import Any

from etils import epath

from repgls_jax.train.journal import finite

NAME = "manifest.json"
_PIECE = 64 << 20  # bytes: a large file is read by several threads
_BLOCK = 1 << 20
# Orbax writes these after the manifest. The first must be JSON; the second says nothing on a local disk.
_METADATA, _COMMITTED = "_CHECKPOINT_METADATA", "commit_success.txt"


class DamagedError(ValueError):
    """A checkpoint is not what was written."""


def remote(folder: epath.Path) -> bool:
    """Whether a folder is an object store's, which keeps checksums of its own and charges for reading."""
    return "://" in str(folder)


def write(folder: epath.Path, content: dict[str, Any]) -> None:
    """Writes the manifest of the files in ``folder``, beside ``content``, which must be JSON but for NaN.

    Files of a local folder are read once, by several threads; of a remote one only the sizes are kept.

    Raises:
      OSError: a file cannot be read, or the disk is full.
    """
    whole = {**finite(content), "files": _measured(folder)}
    (folder / NAME).write_text(json.dumps({**whole, "crc32": _own(whole)}, indent=1, allow_nan=False))


def read(folder: epath.Path) -> dict[str, Any] | None:
    """The manifest, or None for a checkpoint made before there were any.

    Raises:
      DamagedError: the manifest itself is damaged.
    """
    try:
        text = (folder / NAME).read_text()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        text = ""
    try:
        whole = json.loads(text)
        told = whole.pop("crc32")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise DamagedError(f"{NAME} cannot be read") from None
    if told != _own(whole):
        raise DamagedError(f"{NAME} is not what was written")
    return whole


def check(folder: epath.Path, manifest: dict[str, Any]) -> None:
    """Compares the files with the manifest: reads every byte of a local folder.

    Raises:
      DamagedError: files are missing, or of another size or content; names the first few.
    """
    found = _measured(folder)
    faults = []
    for name, told in manifest["files"].items():
        if name not in found:
            faults.append(f"{name} is missing")
        elif found[name]["size"] != told["size"]:
            faults.append(f"{name} has {found[name]['size']:,} bytes instead of {told['size']:,}")
        elif found[name]["crc32"] != told["crc32"]:
            faults.append(f"{name} has other content than was written")
    try:
        json.loads((folder / _METADATA).read_text())
    except (OSError, ValueError):
        faults.append(f"{_METADATA} cannot be read")
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise DamagedError("; ".join(faults[:3]) + more)


def size(manifest: dict[str, Any]) -> int:
    """Bytes of the files."""
    return sum(told["size"] for told in manifest["files"].values())


def _own(whole: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(whole, sort_keys=True).encode())


def _measured(folder: epath.Path) -> dict[str, dict[str, Any]]:
    """Path within the folder -> size in bytes, and CRC-32 of each piece (None: remote)."""
    names = sorted(n for n in _walk(folder) if n not in (NAME, _METADATA, _COMMITTED))
    sizes = {name: (folder / name).stat().length for name in names}
    if remote(folder):
        return {name: {"size": size, "crc32": None} for name, size in sizes.items()}
    pieces = [(name, start) for name in names for start in range(0, sizes[name], _PIECE)]
    made: dict[str, dict[str, Any]] = {name: {"size": sizes[name], "crc32": []} for name in names}
    with concurrent.futures.ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        for (name, _), crc in zip(pieces, pool.map(lambda p: _crc(folder / p[0], p[1]), pieces), strict=True):
            made[name]["crc32"].append(crc)
    return made


def _crc(path: epath.Path, start: int) -> int:
    """CRC-32 of one piece, read block by block; both reading and summing let other threads run."""
    crc, left = 0, _PIECE
    with path.open("rb") as f:
        f.seek(start)
        while left and (block := f.read(min(_BLOCK, left))):
            crc = zlib.crc32(block, crc)
            left -= len(block)
    return crc


def _walk(folder: epath.Path, prefix: str = "") -> Iterator[str]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _walk(path, f"{prefix}{path.name}/")
        else:
            yield prefix + path.name
