"""SIGTERM and SIGINT during training: the step is finished and saved, then the run ends; a second one ends it at once.

Clusters send SIGTERM before they take a machine away, often to some processes only. All processes of a run must stop
after the same step, for a checkpoint is written by all of them together.
"""

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from repgls_jax import distributed, job
from repgls_jax.train.journal import Journal

SIGNALS = (signal.SIGTERM, signal.SIGINT)
EVERY = 10  # steps between two questions to the other processes


class StoppedError(job.AgreedExit):
    """Training was asked to stop and has saved its state. Ends a script as the signal would have, without a traceback.

    Attributes:
      code: for the shell, by its convention: 143 for SIGTERM, 130 for SIGINT.
    """

    def __init__(self, number: int, step: int, steps: int):
        super().__init__(128 + number)
        self._said = (
            f"stopped by {signal.Signals(number).name} after step {step:,} of {steps:,}, which is saved. "
            "The same command goes on from there"
        )

    def __str__(self) -> str:
        """What to tell a person."""
        return self._said


class Stop:
    """Listens for signals while it is entered. Outside the main thread, where none arrive, it hears nothing.

    The second signal is seen by a thread of its own, for the main one may be deep in a compilation.
    """

    def __init__(self, mesh: Mesh, journal: Journal):
        self._mesh, self._journal = mesh, journal
        self._received = 0
        self._asked: jax.Array | None = None
        self._before: dict[int, Any] = {}
        over = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._everyone = over
        self._loudest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __enter__(self) -> "Stop":
        """Takes the signals over."""
        if threading.current_thread() is threading.main_thread():
            self._read, self._write = os.pipe()
            os.set_blocking(self._write, False)
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
            self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            threading.Thread(target=self._listen, daemon=True, name="signals").start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Gives them back."""
        if self._before:
            signal.set_wakeup_fd(self._wakeup)
            for number, handler in self._before.items():
                signal.signal(number, handler)
            os.close(self._write)  # ends the thread

    def asked(self, step: int) -> int:
        """The signal after which all processes stop at this step; 0 to go on. To be called after every step.

        Several processes look at each other's every :data:`EVERY` steps, and learn the answer one step later, so that
        no device waits for it.
        """
        if not distributed.several():
            return self._received
        answer = 0
        if self._asked is not None:
            answer, self._asked = int(self._asked), None
        if step % EVERY == 0:
            self._asked = self._ask()
        return answer

    def asked_last(self) -> int:
        """The same after the last step, waiting for all processes: what came too late for :meth:`asked`."""
        return self._received if not distributed.several() else int(self._ask())

    def _ask(self) -> jax.Array:
        mine = np.full(len(self._mesh.local_devices), self._received, np.int32)
        return self._loudest(jax.make_array_from_process_local_data(self._everyone, mine))

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._received = self._received or number

    def _listen(self) -> None:
        heard = 0
        while data := os.read(self._read, 1):
            number = data[0]
            if number not in self._before:
                continue
            heard += 1
            name = signal.Signals(number).name
            if heard > 1:
                print(f"{name} again: leaving at once", file=sys.stderr, flush=True)
                os._exit(128 + number)
            self._received = self._received or number
            self._journal.say(f"  {name}: finishing the step and saving it; once more to leave at once")
        os.close(self._read)
