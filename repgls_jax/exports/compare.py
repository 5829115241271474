"""Reads an export again in a process of its own, and compares what it computes with the checkpoint."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

TOLERANCE = 1e-5  # of any output, in float32
FILMS = 5
SEED = 0
_SECONDS = 1800
_SHOWN = 2000  # characters of what a failed process said


class DiffersError(Exception):
    """An export does not compute what the checkpoint does, or cannot be read again."""


def films(count: int, size: int, dtype: Any) -> np.ndarray:
    """Inputs of no patient: smooth random shapes with noise, over the whole range; [count, size, size, 1]."""
    rng = np.random.default_rng(SEED)
    coarse = rng.random((count, 8, 8))
    places = np.linspace(0, 7, size)
    low, share = np.minimum(places.astype(int), 6), places - np.minimum(places.astype(int), 6)
    rows = coarse[:, low] * (1 - share)[None, :, None] + coarse[:, low + 1] * share[None, :, None]
    smooth = rows[:, :, low] * (1 - share) + rows[:, :, low + 1] * share
    noisy = np.clip(smooth + 0.1 * rng.normal(size=smooth.shape), 0, 1)
    noisy[0], noisy[-1] = rng.random((size, size)), 0  # nothing but noise; nothing at all
    top = np.iinfo(dtype).max
    return np.rint(noisy * top).astype(dtype)[..., None]


def compare(
    command: Sequence[str],
    wanted: Mapping[str, np.ndarray],
    images: np.ndarray,
    batches: Sequence[int] = (FILMS,),
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """Runs ``command IMAGES.npy OUTPUT.npz`` for each size of batch, and compares the arrays it leaves.

    Args:
      command: that starts the process.
      wanted: name -> array [n, ...], what the checkpoint computes of ``images``.
      images: [n, h, w, 1].
      batches: numbers of films, up to n, taken from the end.
      tolerance: largest difference allowed.

    Returns:
      {"max_difference": {name: number}, "tolerance", "batches", "inputs"}, for the manifest.

    Raises:
      DiffersError: the process failed, left something else, or an output differs by more.
    """
    worst = dict.fromkeys(wanted, 0.0)
    with tempfile.TemporaryDirectory(prefix="repgls-export-") as folder:
        inputs, outputs = pathlib.Path(folder) / "images.npy", pathlib.Path(folder) / "outputs.npz"
        for size in batches:
            np.save(inputs, images[-size:])
            _run([*command, str(inputs), str(outputs)])
            with np.load(outputs, allow_pickle=False) as found:
                for name, value in wanted.items():
                    if name not in found or found[name].shape != value[-size:].shape:
                        raise DiffersError(f"{command[-1]} gives no {name} of shape {list(value[-size:].shape)}")
                    difference = np.abs(found[name].astype(np.float64) - value[-size:]).max()
                    # A NaN is larger than everything.
                    worst[name] = max(worst[name], float(np.nan_to_num(difference, nan=np.inf)))
            outputs.unlink()
    bad = {name: value for name, value in worst.items() if value > tolerance}
    if bad:
        raise DiffersError(
            f"{' '.join(command[-2:])} differs from the checkpoint: {bad}; expected at most {tolerance:g}"
        )
    told = {"films": len(images), "shape": list(images.shape[1:]), "dtype": images.dtype.name, "seed": SEED}
    return {"max_difference": worst, "tolerance": tolerance, "batches": list(batches), "inputs": told}


def versions(names: Sequence[str], python: str = sys.executable) -> dict[str, str]:
    """The versions that a fresh process finds of packages; those that are not installed are left out.

    A process of its own: importing torch beside JAX costs memory that the export needs.
    """
    code = (
        "import importlib.metadata as m, json, platform, sys\nfound = {'python': platform.python_version()}\n"
        "for name in sys.argv[1:]:\n    try:\n        found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError:\n        pass\nprint(json.dumps(found))"
    )
    done = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def _run(command: Sequence[str]) -> None:
    env = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise DiffersError(f"{command[-3]} took more than {_SECONDS} s for a few films") from None
    if done.returncode:
        raise DiffersError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr.strip()[-_SHOWN:]}")
