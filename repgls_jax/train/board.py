"""Scalars for TensorBoard, where tensorboardX is installed (extra "tb"); the journal holds the same either way."""

import importlib.util
import math
import pathlib
from typing import Any


class Board:
    """Writes scalars of one run to event files.

    Args:
      folder: of the event files.
      start: step that the run goes on from; what was written after it is hidden.
    """

    def __init__(self, folder: pathlib.Path, start: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=start + 1)

    def add(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Adds every finite number of ``values`` as ``kind/name``."""
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


def available() -> bool:
    """Whether tensorboardX is installed."""
    return importlib.util.find_spec("tensorboardX") is not None
