"""What several processes that train one network do together: agree, wait for each other, and let the first one work.

Every process runs the same program on jax.devices(), which are those of all of them (:mod:`repgls_jax.job`); what only
one may do (files, building data) is done by the first through :func:`from_first`. In a process of its own all of this
costs nothing.
"""

import hashlib
import importlib.metadata
import itertools
import json
import pathlib
import platform
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax._src import distributed as coordination
from jax.errors import JaxRuntimeError
from jax.experimental import multihost_utils

from repgls_jax.train.journal import Journal

SEEN = 60.0  # seconds that a file may take to show on other hosts; network file systems cache folders for up to 60
_PACKAGES = ("repgls-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")

_turns = itertools.count()  # every process takes the same turns, being the same program


def store() -> Any:
    """The coordination service's store, which needs no devices and waits for days; JAX has no public name for it."""
    return coordination.global_state.client


def _get(key: str) -> str:
    """A value, when it is there. Waits in short turns, so that Ctrl-C is heard."""
    while True:
        try:
            return store().blocking_key_value_get(key, 2000)
        except JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def several() -> bool:
    """Whether this process is one of several."""
    return count() > 1


def count() -> int:
    """Number of processes."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return jax.process_index() == 0


def journal() -> Journal:
    """The user's journal in the first process; in the others one that says and records nothing."""
    return Journal() if is_first() else _Silent()


class _Silent(Journal):
    def __init__(self) -> None:
        super().__init__(None, None)

    def at(self, path: pathlib.Path) -> "_Silent":
        del path
        return self


def from_first(name: str, work: Callable[[], Any]) -> Any:
    """The result of ``work``, which the first process does while the others wait, however long it takes.

    Args:
      name: of the work, for messages.
      work: returns JSON values.

    Raises:
      RuntimeError: the processes are not at the same point of the program.
    """
    if not several():
        return work()
    key = f"repgls/first/{next(_turns)}"
    if is_first():
        store().key_value_set(key, json.dumps({"name": name, "value": work()}))
    made = json.loads(_get(key))
    if made["name"] != name:
        raise RuntimeError(f"process {jax.process_index()} is at {name!r}, process 0 at {made['name']!r}")
    return made["value"]


def together(name: str) -> None:
    """Returns when every process has come here."""
    if not several():
        return
    key = f"repgls/together/{next(_turns)}"
    store().key_value_set(f"{key}/{jax.process_index()}", name)
    if is_first():
        for process in range(jax.process_count()):
            _get(f"{key}/{process}")
    from_first(name, lambda: None)


def agree(settings: Mapping[str, Any]) -> None:
    """Refuses processes that would not run the same program.

    Args:
      settings: nested dicts of JSON values.

    Raises:
      ValueError: settings or versions of packages differ from those of process 0; names them.
    """
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES} | {"python": platform.python_version()}
    mine = {**_flat(settings), **_flat(versions, "version of ")}
    theirs = from_first("settings", lambda: mine)
    differ = [
        f"{name} is {mine.get(name)!r} here, {theirs.get(name)!r} there"
        for name in sorted({*mine, *theirs})
        if mine.get(name) != theirs.get(name)
    ]
    if differ:
        raise ValueError(
            f"process {jax.process_index()} on {socket.gethostname()} differs from process 0: {'; '.join(differ)}. "
            "Start all processes with the same command and the same installation"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested names joined by dots."""
    made: dict[str, Any] = {}
    for name, value in json.loads(json.dumps(values)).items():
        made |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return made


def require_shared(path: pathlib.Path, within: float | None = None) -> None:
    """Refuses a file that this process does not see as process 0 does.

    Args:
      path: of a small file.
      within: seconds that it may take to show; :data:`SEEN` by default.

    Raises:
      ValueError: it is not there, or another; names the host.
    """
    if not several():
        return
    wanted = from_first(path.name, lambda: _digest(path))
    until = time.monotonic() + (SEEN if within is None else within)
    while (found := _digest(path)) != wanted:
        if time.monotonic() > until:
            said = "another file than process 0 has" if found else "not there, but process 0 has it"
            raise ValueError(
                f"on {socket.gethostname()}, process {jax.process_index()}, {path} is {said}; the work directory must "
                "be one folder that all hosts see (NFS, Filestore)"
            )
        time.sleep(0.2)


def _digest(path: pathlib.Path) -> str:
    """SHA-256 of a file; "" where there is none."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


def compile_together(function: Any, *args: Any) -> None:
    """Compiles a jitted function for ``args`` in every process before any of them runs it.

    The CPU's collectives give up on a process that comes half a minute late, which on busy machines a compilation does.
    """
    if several():
        function.lower(*args).compile()  # the call that follows finds it
        together("compiled")


def gather(tree: Any) -> Any:
    """Arrays that are spread over the devices of all processes, as whole numpy arrays in each of them."""
    return multihost_utils.process_allgather(tree, tiled=True)
