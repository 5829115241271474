"""Small files of an export, read with a limit, and hashes of all of them."""

import hashlib
import json
import pathlib
from typing import Any

JSON_BYTES = 1 << 22  # a config of hundreds of findings has some 100 kB


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is larger than :data:`JSON_BYTES`, or no JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected a complete export, copy or make it again")
    size = path.stat().st_size
    if size > JSON_BYTES:
        raise ValueError(f"{path} has {size} bytes; expected at most {JSON_BYTES}")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value


def write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
    """Writes a JSON object; what is not a finite number is refused with ValueError."""
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def digest(path: pathlib.Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listed(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Every file below ``folder``, by its name with "/": {"bytes": size, "sha256": hash}."""
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": digest(p)} for p in found}
