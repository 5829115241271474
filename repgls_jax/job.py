"""Joining the other processes of a job, and ending together with them.

Scripts enter :func:`launched` before anything touches a device. From then on jax.devices() are those of all processes,
and :mod:`repgls_jax.distributed` lets them wait for each other. A process that fails tells the others why, and all of
them end; one that dies without a word is missed by JAX's coordination service, which ends the others too. A process of
its own passes through.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import jax
from absl import flags
from jax.errors import JaxRuntimeError

from repgls_jax import cluster, distributed

HEARTBEAT = 100  # seconds without a sign of life after which the coordination service gives a process up
_FAILED = "repgls/failed"
_LOOK = 1.0  # seconds between two looks at whether another process has failed


def define_flags() -> None:
    """Defines the flags of :func:`launched`; for scripts, once."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0; by default what the launcher's environment says")
    flags.DEFINE_integer("processes", None, "processes of the job; 1 to run alone inside a launcher", lower_bound=1)
    flags.DEFINE_integer("process", None, "number of this process, from 0", lower_bound=0)
    flags.DEFINE_list("local_devices", None, "numbers of this process's GPUs among those it sees")
    flags.DEFINE_integer("join_timeout", 300, "seconds to wait for the other processes", lower_bound=1)


@contextlib.contextmanager
def launched(settings: Mapping[str, Any]) -> Iterator[None]:
    """Joins the job that flags and environment speak of, and ends with it; for a script's main.

    Args:
      settings: nested dicts of JSON values that must be the same in every process.
    """
    values = flags.FLAGS
    try:
        local = tuple(int(d) for d in values.local_devices) if values.local_devices else None
        plan = cluster.plan(os.environ, values.coordinator, values.processes, values.process, local, cluster.has_tpu())
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    if plan is None:
        if distributed.several():  # the devices know of hosts that the environment does not
            raise SystemExit(
                f"error: the devices are those of {jax.process_count()} processes, but this one has joined none; give "
                "--coordinator=HOST:PORT, --processes and --process"
            )
        yield
        return
    with Joined(plan, values.join_timeout):
        try:
            distributed.agree(settings)
        except ValueError as error:
            raise SystemExit(f"error: {error}") from None
        yield


class AgreedExit(SystemExit):
    """An end that all processes come to at the same point, with the same code: nobody has failed."""


class Joined:
    """The job, joined on entry and left on exit; a process that fails inside takes the others along."""

    def __init__(self, plan: cluster.Plan, timeout: float, heartbeat: int = HEARTBEAT):
        """``timeout``: seconds to wait for the others; ``heartbeat``: seconds of silence after which one is dead."""
        self._plan, self._timeout, self._heartbeat = plan, timeout, heartbeat
        self._watch: _Watch | None = None

    def __enter__(self) -> "Joined":
        """Joins.

        Raises:
          SystemExit: it was not possible; says why.
        """
        if jax.distributed.is_initialized():
            raise SystemExit("error: this process has joined a job already")
        _join(self._plan, self._timeout, self._heartbeat)
        self._watch = _Watch()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Leaves when all have come so far, or ends all of them at once."""
        assert self._watch is not None
        ended_well = (
            error is None or isinstance(error, AgreedExit) or (isinstance(error, SystemExit) and not error.code)
        )
        if ended_well:
            distributed.together("end")  # the watch still looks: others may yet fail
        self._watch.stop()
        if ended_well:
            jax.distributed.shutdown()
        elif error is not None:
            _fail(error)


def _join(plan: cluster.Plan, timeout: float, heartbeat: int) -> None:
    where = f"process {plan.process}" if plan.process is not None else "this process"
    count = f"{plan.processes} processes" if plan.processes else "all processes"
    at = plan.coordinator or "the address that the launcher gives"
    told = (
        f"error: {where} on {socket.gethostname()} waited {timeout:.0f} s for {count} of {plan.source}, process 0 "
        f"being at {at}; look for one that did not start, for another number of processes, and for a firewall. "
        "--join_timeout sets the seconds"
    )
    if plan.process == 0 and plan.coordinator is not None:
        _require_free(plan.coordinator)
    known = plan.coordinator is not None and plan.process is not None
    # The library ends a process that waits in vain by a signal and a stack; this comes first.
    alarm = threading.Timer(timeout, _end, (told,))
    alarm.daemon = True
    alarm.start()
    try:
        jax.distributed.initialize(
            plan.coordinator,
            plan.processes or None,
            plan.process,
            plan.local_devices,
            cluster_detection_method="deactivate" if known else None,
            initialization_timeout=round(timeout) + 60,
            heartbeat_timeout_seconds=heartbeat,
        )
    except (ValueError, RuntimeError, OSError) as error:
        raise SystemExit(
            f"error: {where} on {socket.gethostname()} could not join {count} of {plan.source}, process 0 being at "
            f"{at}: {error}"
        ) from None
    finally:
        alarm.cancel()
    # JAX catches SIGTERM to note it, and goes on: a job could not be ended while it prepares its data.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    found = jax.process_count()
    if found == plan.processes or (not plan.processes and found):
        return
    _end(
        f"error: {plan.source} speaks of {count}, but the devices are those of {found}; each would train alone. "
        "Has every process its own devices, and the same kind?"
    )


def _require_free(coordinator: str) -> None:
    """Says so where another process listens at the address already, which the library would not survive."""
    port = int(coordinator.rsplit(":", 1)[1])
    try:
        with socket.create_server(("", port)):
            pass
    except OSError as error:
        raise SystemExit(
            f"error: process 0 cannot listen at port {port} of {socket.gethostname()}: {error.strerror}; choose "
            "another for --coordinator"
        ) from None


def _end(text: str, code: int = 1) -> None:
    """Ends this process at once: a normal exit would wait for the others, who may wait for this one."""
    _say(text)
    os._exit(code)


def _say(text: str) -> None:
    if text:
        print(text, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()


def _fail(error: BaseException) -> None:
    """Tells the others and the user, and ends this process."""
    code, text = 1, ""
    if isinstance(error, SystemExit):
        code, text = (error.code, "") if isinstance(error.code, int) else (1, str(error.code))
    elif isinstance(error, KeyboardInterrupt):
        code, text = 130, "interrupted"
    else:
        traceback.print_exception(error)
    reason = text or f"{type(error).__name__}: {error}"
    try:
        distributed.store().key_value_set(
            _FAILED, json.dumps({"process": jax.process_index(), "reason": reason, "code": code})
        )
    except JaxRuntimeError:  # another was faster, or there is nobody to tell
        if _look() is not None:
            text = ""  # all processes that find the same fault say it once
    _say(text)  # before the others know, for this process may end with the first one
    _last()
    _end("", code)


def _look() -> dict[str, Any] | None:
    """What the first process that failed said; None where none did."""
    try:
        return json.loads(distributed.store().key_value_try_get(_FAILED))
    except JaxRuntimeError as error:
        if "NOT_FOUND" in str(error):
            return None
        raise


def _last() -> None:
    """Waits a little until all know, and the first process until they have ended: JAX aborts those that outlive it."""
    with contextlib.suppress(JaxRuntimeError):
        distributed.store().wait_at_barrier("repgls/ended", 10_000)
    time.sleep(2.0 if distributed.is_first() else 0.0)


class _Watch:
    """A thread that ends this process when another one fails, wherever this one is waiting."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(_LOOK):
            try:
                failed = _look()
            except JaxRuntimeError:  # the first process is gone, and JAX ends this one
                return
            if failed is not None:
                _last()
                _end(f"process {jax.process_index()} ends, for process {failed['process']} failed", failed["code"])
