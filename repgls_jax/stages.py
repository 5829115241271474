"""Stages: pieces of work that leave one folder behind, done once for the same inputs.

A stage's folder is named after the hash of its inputs. Its ``stage.json`` is written last, so that a folder without one
is unfinished: the work is done again there, and resumes if it can.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from repgls_jax.train.journal import Journal, duration, finite

MARKER = "stage.json"


@dataclasses.dataclass(frozen=True)
class Done:
    """A finished stage.

    Attributes:
      folder: what it left.
      key: hash of its inputs; part of the inputs of the stages that follow.
      summary: what it said of its work.
      seconds: the work took.
      reused: whether it had been done before.
    """

    folder: pathlib.Path
    key: str
    summary: dict[str, Any]
    seconds: float
    reused: bool


def key_of(inputs: dict[str, Any]) -> str:
    """Hash of JSON-serialisable inputs: 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]


def run(
    root: pathlib.Path,
    name: str,
    inputs: dict[str, Any],
    work: Callable[[pathlib.Path], dict[str, Any]],
    journal: Journal,
) -> Done:
    """Does ``work`` in the stage's folder unless that has been done with the same inputs.

    Args:
      root: of the folders.
      name: of the stage.
      inputs: everything that the result depends on, JSON-serialisable.
      work: given the folder, does the work and returns a JSON-serialisable summary.
      journal: told what happens.
    """
    key = key_of(inputs)
    folder = root / f"{name}-{key}"
    root.mkdir(parents=True, exist_ok=True)
    with _alone(root / f".{name}-{key}.lock", name, journal):
        return _run(folder, key, name, inputs, work, journal)


@contextlib.contextmanager
def _alone(path: pathlib.Path, name: str, journal: Journal) -> Iterator[None]:
    """Holds the stage's lock, which the system lets go of when the process ends, however it ends."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            journal.say(f"[{name}] another process does this stage; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(
    folder: pathlib.Path,
    key: str,
    name: str,
    inputs: dict[str, Any],
    work: Callable[[pathlib.Path], dict[str, Any]],
    journal: Journal,
) -> Done:
    marker = folder / MARKER
    if marker.exists():
        stored = json.loads(marker.read_text())
        journal.say(f"[{name}] reused {folder}  {_brief(stored['summary'])}")
        return Done(folder, key, stored["summary"], stored["seconds"], True)
    resumed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    journal.say(f"[{name}] {'continuing' if resumed else 'working'} in {folder}")
    began = time.monotonic()
    summary = work(folder)
    seconds = round(time.monotonic() - began, 2)
    temporary = marker.with_name(MARKER + ".partial")
    temporary.write_text(
        json.dumps(finite({"name": name, "inputs": inputs, "summary": summary, "seconds": seconds}), indent=1)
    )
    temporary.replace(marker)
    journal.say(f"[{name}] done in {duration(seconds)}  {_brief(summary)}")
    return Done(folder, key, summary, seconds, False)


def _brief(summary: dict[str, Any]) -> str:
    shown = {k: v for k, v in summary.items() if isinstance(v, int | float | str)}
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
