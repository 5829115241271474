"""Stages: pieces of work that leave one folder behind, done once for the same inputs.

A stage's folder is named after the hash of its inputs. Its ``stage.json`` is written last, so that a folder without one
is unfinished: the work is done again there, and resumes if it can.
"""

import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Callable
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
