"""What is refused before anything is read: other hosts, other sites, and uploads of other types or sizes.

The page has no password. It is for who sits at this machine, so it listens on the loopback interface alone, and answers
only what a browser asks in its own name: a site elsewhere could make a browser send requests here, by a name that it
lets point to 127.0.0.1 (DNS rebinding), or by a form.
"""

import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, BinaryIO

Scope = dict[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]

HEAD = 132  # bytes that tell the type of a file
NAMES = ("localhost", "127.0.0.1", "[::1]")
HEADERS = {
    "cache-control": "no-store",  # films and reports stay out of the browser's disk cache
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class RefusedError(Exception):
    """A request that is not answered: the status, and a sentence that says why."""

    def __init__(self, status: int, why: str):
        super().__init__(why)
        self.status, self.why = status, why


def require_loopback(host: str) -> str:
    """``host`` as an address to listen on.

    Raises:
      ValueError: it is not this machine's loopback interface.
    """
    if host == "localhost":
        return "127.0.0.1"
    try:
        local = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        local = False
    if not local:
        raise ValueError(
            f"--host={host} is not this machine's own 127.0.0.1: the page shows films and reports to whoever can reach "
            "it and asks nobody who they are; from another machine use a tunnel, ssh -L 8000:127.0.0.1:8000"
        )
    return host.strip("[]")


def require_own(headers: Mapping[str, str], method: str) -> None:
    """Refuses a request that the page itself did not make.

    Raises:
      RefusedError: the Host header names another host, or a request that changes something comes from another site.
    """
    host = headers.get("host", "")
    if _name(host) not in NAMES:
        raise RefusedError(421, "This page answers at localhost and 127.0.0.1 only.")
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
    if origin is not None and origin != f"http://{host}":
        raise RefusedError(403, "This request comes from another site.")
    if method not in ("GET", "HEAD") and site not in ("none", "same-origin"):
        raise RefusedError(403, "This request comes from another site.")


def _name(host: str) -> str:
    """The host without its port."""
    name, _, port = host.rpartition(":")
    return name if name and port.isdigit() else host


def kind(head: bytes) -> str | None:
    """ "PNG", "JPEG" or "DICOM" by the first :data:`HEAD` bytes of a file, None for anything else."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    return "DICOM" if head[128:132] == b"DICM" else None


async def receive(stream: AsyncIterator[bytes], length: str | None, out: BinaryIO, limit: int) -> int:
    """Writes an upload to a file as it comes, and stops at what cannot be a film.

    Args:
      stream: its parts.
      length: the header content-length, or None.
      out: file to write to.
      limit: bytes that a film may have.

    Returns:
      Bytes written.

    Raises:
      RefusedError: 413 for a larger upload, by its header before anything is read or when the limit is passed; 415 for
        what does not begin as PNG, JPEG or DICOM do, as soon as it has begun; 400 for an empty one.
    """
    large = f"The file is larger than {limit / 2**20:.0f} MB."
    if length is not None and (not length.isdigit() or int(length) > limit):
        raise RefusedError(413, large)
    head, written = b"", 0
    known = False
    async for part in stream:
        written += len(part)
        if written > limit:
            raise RefusedError(413, large)
        if not known:
            head += part
            if len(head) < HEAD:
                continue
            known, part = _require_kind(head), head
        out.write(part)
    if not written:
        raise RefusedError(400, "The upload is empty.")
    if not known:
        _require_kind(head)
        out.write(head)
    return written


def _require_kind(head: bytes) -> bool:
    if kind(head[:HEAD]) is None:
        raise RefusedError(415, "The file is neither a PNG, nor a JPEG, nor a DICOM film.")
    return True
