"""Where the time of the input goes: a few sums, added to once a batch."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

MAKING = ("read", "check", "augment", "join")  # in the threads that make batches
WAITING = ("wait", "transfer")  # in the loop that uses them


class Meter:
    """Seconds per stage. Threads share it; a copy in another process counts for itself, and its sums stay there."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys((*MAKING, *WAITING), 0.0)
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Pickles as an empty meter."""
        return Meter, ()

    def add(self, stage: str, seconds: float) -> None:
        """Adds to a stage of :data:`MAKING` or :data:`WAITING`."""
        with self._lock:
            self.seconds[stage] += seconds

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Adds the time that a block takes to a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - began)

    def waited(self) -> float:
        """Seconds that the loop waited for batches and handed them to the device."""
        return sum(self.seconds[stage] for stage in WAITING)

    def summary(self, elapsed: float) -> str:
        """One line for people: what the loop lost, and what the threads were busy with.

        Args:
          elapsed: seconds the loop took in all.
        """
        lost = ", ".join(f"{stage} {self.seconds[stage] / max(elapsed, 1e-9):.1%}" for stage in WAITING)
        busy = sum(self.seconds[stage] for stage in MAKING)
        if not busy:
            return f"input: {lost} of the time"
        shares = ", ".join(f"{stage} {self.seconds[stage] / busy:.0%}" for stage in MAKING)
        return f"input: {lost} of the time; {busy:.1f} s of making batches: {shares}"
