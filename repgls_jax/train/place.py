"""Where the checkpoints of a run are: in its folder, or in a bucket that a file in its folder names."""

import json
import pathlib
import shutil
import tempfile

from etils import epath

from repgls_jax import distributed

POINTER = "checkpoints.json"
TOKEN = "run.json"  # beside checkpoints elsewhere: says whose they are


def require_renames(root: pathlib.Path) -> None:
    """Refuses a work directory in which folders cannot be renamed, as in many mounted buckets: no checkpoint could end.

    Raises:
      ValueError: names the folder and what would do.
    """
    root.mkdir(parents=True, exist_ok=True)
    trial = pathlib.Path(tempfile.mkdtemp(prefix=".trial-", dir=root))
    try:
        (trial / "a" / "b").mkdir(parents=True)
        (trial / "a").rename(trial / "c")
    except OSError as error:
        raise ValueError(
            f"in {root} folders cannot be renamed ({error.strerror}), which every checkpoint needs; choose a "
            "--workdir on a disk, NFS, or a mounted bucket with a hierarchical namespace"
        ) from None
    finally:
        shutil.rmtree(trial, ignore_errors=True)


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
    if _is_folder(wanted):
        pathlib.Path(wanted).mkdir(parents=True, exist_ok=True)
        (pathlib.Path(wanted) / TOKEN).write_text(json.dumps({"run": folder.name}))
    temporary = folder / f"{POINTER}.partial"
    temporary.write_text(json.dumps({"at": wanted}))
    temporary.replace(folder / POINTER)


def require_shared(folder: pathlib.Path) -> None:
    """Refuses checkpoints elsewhere that this process does not see as process 0 does; after :func:`put`.

    Raises:
      ValueError: names the host and the file.
    """
    distributed.require_shared(folder / POINTER)
    kept = str(of(folder))
    if _is_folder(kept):
        distributed.require_shared(pathlib.Path(kept) / TOKEN)


def _is_folder(address: str) -> bool:
    return "://" not in address
