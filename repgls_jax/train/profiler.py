"""A window of steps under JAX's profiler, for TensorBoard's profile page or Perfetto.

The profiler is one for the whole process, and so is what is asked of it: a script asks once, and every training of the
process records those steps in a folder of its own.
"""

import dataclasses
import pathlib
from types import TracebackType

import jax

from repgls_jax import distributed
from repgls_jax.train.journal import Journal


@dataclasses.dataclass(frozen=True)
class Window:
    """Steps ``first`` to ``last``, counted from 1."""

    first: int
    last: int


_asked: Window | None = None


def ask(text: str) -> None:
    """Asks for the steps "FIRST:LAST" of every training in this process; "" for none.

    Raises:
      ValueError: that is no window of steps.
    """
    global _asked  # noqa: PLW0603 one profiler, one wish
    if not text:
        _asked = None
        return
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and 0 < int(first) <= int(last)):
        raise ValueError(f"profile={text!r}; expected the first and last step, such as 100:110")
    _asked = Window(int(first), int(last))


class Profiler:
    """Traces the window that was asked for into ``folder``, in the first process.

    The step is compiled before the first one, so that a window shows steps alone.
    """

    def __init__(self, folder: pathlib.Path, journal: Journal):
        self._folder, self._journal = folder, journal
        self._window = _asked if distributed.is_first() else None
        self._tracing = False

    def __enter__(self) -> "Profiler":
        """Nothing is traced yet."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Writes what was traced, when the run ends within the window."""
        self.stop()

    def begins(self, step: int) -> bool:
        """Whether tracing starts with this step: the caller waits for the one before, and calls :meth:`start`."""
        return self._window is not None and not self._tracing and self._window.first <= step <= self._window.last

    def ends(self, step: int) -> bool:
        """Whether this step is the last one traced: the caller waits for it, and calls :meth:`stop`."""
        return self._tracing and self._window is not None and step == self._window.last

    def start(self) -> None:
        """Starts tracing."""
        jax.profiler.start_trace(str(self._folder))
        self._tracing = True

    def stop(self) -> None:
        """Writes what was traced, if anything was."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing, self._window = False, None
            self._journal.say(f"  profile: {self._folder} (tensorboard --logdir={self._folder})")
