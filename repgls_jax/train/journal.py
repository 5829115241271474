"""The journal of a run: what happened, for people (a stream) and for programs (JSON lines).

It carries numbers and names only; report text must never be handed to it.
"""

import json
import math
import pathlib
import sys
import time
from typing import Any, Protocol, TextIO


def finite(value: Any) -> Any:
    """``value`` with every NaN and infinity replaced by None, for strict JSON."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def duration(seconds: float) -> str:
    """Seconds as "7s", "3m05s" or "2h14m"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Board(Protocol):
    """Where scalars are also drawn, see :mod:`repgls_jax.train.board`."""

    def add(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Takes what was recorded of a step."""

    def close(self) -> None:
        """Writes what is left."""


class Journal:
    """Says things to a person and records them in a file.

    Args:
      path: JSON-lines file to append to; None records nothing.
      stream: where people read; None is silent (other hosts of a pod).

    Attributes:
      board: also told of what is recorded of a step; None by default.
    """

    def __init__(self, path: pathlib.Path | None = None, stream: TextIO | None = sys.stderr):
        self.path = path
        self.stream = stream
        self.board: Board | None = None

    def at(self, path: pathlib.Path) -> "Journal":
        """A journal that says to the same stream and records in another file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return Journal(path, self.stream)

    def say(self, text: str) -> None:
        """Prints one line for people."""
        if self.stream is not None:
            print(text, file=self.stream, flush=True)

    def record(self, kind: str, **values: Any) -> None:
        """Appends one JSON line: kind, wall time in seconds, and ``values`` (non-finite numbers become null)."""
        if self.path is None:
            return
        line = json.dumps({"kind": kind, "time": round(time.time(), 3), **finite(values)}, allow_nan=False)
        with self.path.open("a") as f:
            f.write(line + "\n")
        if self.board is not None and "step" in values:
            self.board.add(kind, values["step"], {name: value for name, value in values.items() if name != "step"})

    def read(self, kind: str) -> list[dict[str, Any]]:
        """The recorded lines of one kind. A last line cut short by a kill is left out."""
        if self.path is None or not self.path.exists():
            return []
        lines = self.path.read_text().splitlines(keepends=True)
        whole = [json.loads(line) for line in lines if line.endswith("\n")]
        return [entry for entry in whole if entry["kind"] == kind]

    def rewind(self, step: int) -> None:
        """Drops what was recorded after ``step``, so that a resumed run tells each step once."""
        if self.path is None or not self.path.exists():
            return
        lines = [line for line in self.path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        kept = [line for line in lines if json.loads(line).get("step", 0) <= step]
        temporary = self.path.with_name(self.path.name + ".partial")
        temporary.write_text("".join(kept))
        temporary.replace(self.path)


class Progress:
    """Says where a long loop stands: share, rate and time left, at most every ``every`` seconds."""

    def __init__(self, journal: Journal, label: str, start: int, total: int, unit: float, every: float = 10.0):
        """``unit``: things done in one step (images, studies), for the rate."""
        self.journal, self.label, self.total, self.unit, self.every = journal, label, total, unit, every
        self.start, self.began, self.said = start, time.monotonic(), time.monotonic()

    def update(self, step: int, detail: str = "") -> None:
        """To be called after each step; ``step`` counts steps done."""
        now = time.monotonic()
        if now - self.said < self.every and step != self.total:
            return
        self.said = now
        per_second = (step - self.start) / max(now - self.began, 1e-9)
        left = (self.total - step) / per_second if per_second else 0.0
        self.journal.say(
            f"  {self.label} {step}/{self.total} ({100 * step / self.total:.0f} %)  "
            f"{per_second * self.unit:.0f}/s  {duration(left)} left  {detail}"
        )
