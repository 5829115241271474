"""Stages: pieces of work that leave one folder behind, done once for the same inputs.

A stage's folder is named after the hash of its inputs. Its ``stage.json`` is written last, so that a folder without one
is unfinished: the work is done again there, and resumes if it can.

Of several processes (:mod:`repgls_jax.distributed`) the first keeps the folder: it alone takes the lock and writes the
marker. The work is its own too, while the others wait, unless the stage is one that all processes do together.
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

from repgls_jax import distributed
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
    everywhere: bool = False,
) -> Done:
    """Does ``work`` in the stage's folder unless that has been done with the same inputs.

    Args:
      root: of the folders.
      name: of the stage.
      inputs: everything that the result depends on, JSON-serialisable.
      work: given the folder, does the work and returns a JSON-serialisable summary.
      journal: told what happens.
      everywhere: all processes do the work together, and the first one's summary counts; else the first does it alone.

    Raises:
      ValueError: not all processes see the folder that the first one has made.
    """
    key = key_of(inputs)
    folder = root / f"{name}-{key}"
    if not distributed.is_first():
        return _follow(folder, key, name, work, everywhere)
    root.mkdir(parents=True, exist_ok=True)
    with _alone(root / f".{name}-{key}.lock", name, journal):
        return _run(folder, key, name, inputs, work, journal, everywhere)


def _follow(
    folder: pathlib.Path, key: str, name: str, work: Callable[[pathlib.Path], dict[str, Any]], everywhere: bool
) -> Done:
    """What the other processes do meanwhile: :func:`_run` without the files."""
    reused = distributed.from_first(f"{name} is there", lambda: None)
    if everywhere and not reused:
        work(folder)
        distributed.together(f"{name} done")
    stored = distributed.from_first(name, lambda: None)
    distributed.require_shared(folder / MARKER)
    return Done(folder, key, stored["summary"], stored["seconds"], reused)


@contextlib.contextmanager
def _alone(path: pathlib.Path, name: str, journal: Journal) -> Iterator[None]:
    """Holds the stage's lock, which the system lets go of when the process ends, however it ends."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            journal.say(f"[{name}] another process does this stage; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise ValueError(
                f"{path.parent} cannot hold locks ({error.strerror}); mount its file system with them (Lustre: flock), "
                "or choose another --workdir"
            ) from None
        yield


def _run(
    folder: pathlib.Path,
    key: str,
    name: str,
    inputs: dict[str, Any],
    work: Callable[[pathlib.Path], dict[str, Any]],
    journal: Journal,
    everywhere: bool,
) -> Done:
    marker = folder / MARKER
    reused = distributed.from_first(f"{name} is there", marker.exists)
    if reused:
        stored = json.loads(marker.read_text())
        summary, seconds = stored["summary"], stored["seconds"]
        journal.say(f"[{name}] reused {folder}  {_brief(summary)}")
    else:
        journal.say(f"[{name}] {'continuing' if folder.exists() else 'working'} in {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        summary = work(folder)
        if everywhere:
            distributed.together(f"{name} done")
        seconds = round(time.monotonic() - began, 2)
        temporary = marker.with_name(MARKER + ".partial")
        temporary.write_text(
            json.dumps(finite({"name": name, "inputs": inputs, "summary": summary, "seconds": seconds}), indent=1)
        )
        temporary.replace(marker)
        journal.say(f"[{name}] done in {duration(seconds)}  {_brief(summary)}")
    distributed.from_first(name, lambda: {"summary": finite(summary), "seconds": seconds})
    distributed.require_shared(marker)
    return Done(folder, key, summary, seconds, reused)


def _brief(summary: dict[str, Any]) -> str:
    shown = {k: v for k, v in summary.items() if isinstance(v, int | float | str)}
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
