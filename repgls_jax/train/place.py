"""Where the checkpoints of a run are: in its folder, or in a bucket that a file in its folder names."""

import json
import pathlib

from etils import epath

POINTER = "checkpoints.json"


def of(folder: pathlib.Path) -> epath.Path:
    """The folder of the checkpoints of the run in ``folder``."""
    pointer = folder / POINTER
    return epath.Path(json.loads(pointer.read_text())["at"] if pointer.exists() else folder / "checkpoints")


def put(folder: pathlib.Path, address: str) -> None:
    """Makes the run in ``folder`` keep its checkpoints in a folder of its own at ``address``, such as gs://bucket/runs.

    Raises:
      ValueError: the run has begun with its checkpoints elsewhere, or the address cannot be reached.
    """
    wanted = f"{address.rstrip('/')}/{folder.name}"
    if (folder / POINTER).exists() or (folder / "checkpoints").exists():
        found = of(folder)
        if str(found) != wanted:
            raise ValueError(f"the run in {folder} has its checkpoints at {found}, not at {wanted}; leave them there")
        return
    try:
        epath.Path(wanted).exists()
    except (ImportError, KeyError) as error:
        raise ValueError(f"checkpoints cannot be kept at {address}: {error}; for gs:// pip install gcsfs") from None
    temporary = folder / f"{POINTER}.partial"
    temporary.write_text(json.dumps({"at": wanted}))
    temporary.replace(folder / POINTER)
