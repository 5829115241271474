"""A JSON client for one HTTP(S) endpoint: checked addresses, no proxy, no redirect, bounded answers, retries.

It is built on :mod:`http.client`, which follows no redirect and reads no proxy from the environment: either could
carry a report to another machine. Nothing that a server says gets into an error message, since servers echo prompts.
"""

import contextlib
import http.client
import json
import os
import random
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

from repgls_jax.extraction import addresses as addresses_lib
from repgls_jax.extraction.prompt import AnswerError

KEY = "REPGLS_SERVER_KEY"  # environment variable with the API key, for servers that want one

MAX_BODY = 8 * 2**20  # bytes of an answer; one with token probabilities has one or two MB
_CONNECT, _ANSWER = 10.0, 300.0  # seconds to wait for a connection, and for an answer
_TRIES, _PATIENCE = 8, 600.0  # tries of a request, and the seconds after which no new one begins
_LONGEST = 60.0  # seconds between two tries, at most

_AGAIN = frozenset((408, 425, 429))  # and 5xx
_ADVICE = {
    400: "it needs structured output (response_format json_schema) and a context that holds the prompt and the answer",
    401: f"put the API key into the environment variable {KEY}",
    403: f"put an API key that may use the model into the environment variable {KEY}",
    404: "give the address up to the version, as in http://localhost:8000/v1, and the model's name as served",
    413: "let the server take longer requests",
}
_ADVICE[422] = _ADVICE[400]


class Exhausted(Exception):
    """A request failed at every try; the message gives the last reason."""


class Endpoint:
    """Sends requests to one endpoint, from any number of threads.

    Each request has a connection of its own: beside the seconds that a language model takes, opening one costs
    nothing, and none can go stale.

    Attributes:
      url: without a slash at its end.
    """

    def __init__(self, url: str, anywhere: bool, back_off: float = 1.0) -> None:
        """Looks the host up; sends nothing yet.

        Args:
          url: as http://localhost:8000/v1.
          anywhere: allow addresses outside this machine and private networks.
          back_off: seconds before the second try; doubles from try to try.

        Raises:
          ValueError: the URL cannot be used, the host is unknown or its address is not allowed, or the API key
            cannot stand in a header.
        """
        self.url = url.rstrip("/")
        tls, self._host, self._port, self._path = _split(self.url)
        self._addresses = addresses_lib.resolve(self._host, self._port, anywhere)
        self._tls = ssl.create_default_context() if tls else None
        self._headers = {"Content-Type": "application/json", "Connection": "close", **_authorisation()}
        self._back_off = back_off
        self._stopping = threading.Event()
        self._open: set[http.client.HTTPConnection] = set()

    def ask(self, path: str, payload: Mapping[str, Any] | None = None, tries: int = _TRIES) -> bytes:
        """The body of the answer to a GET, or to a POST of a payload.

        Args:
          path: below the endpoint, as "models".
          payload: what to post as JSON; None to get.
          tries: how often a request is made that meets a lost connection, silence, HTTP 408, 425, 429 or 5xx. The
            pause between two grows exponentially and is drawn at random; a Retry-After of the server is waited for,
            up to a minute.

        Raises:
          ValueError: any other HTTP status: something is set up wrongly, and every report would meet it.
          AnswerError: the answer is longer than :data:`MAX_BODY`.
          Exhausted: every try failed, or :meth:`abort` was called.
        """
        # A lone surrogate (half a character) cannot be sent; it becomes one question mark, so that offsets still fit.
        body = None if payload is None else json.dumps(payload, ensure_ascii=False).encode("utf-8", "replace")
        started = time.monotonic()
        reason = ""
        for attempt in range(tries):
            asked_for = 0.0
            try:
                status, asked_for, answer = self._once(path, body)
            except (OSError, http.client.HTTPException) as error:
                reason = type(error).__name__
            else:
                if status == 200:
                    return answer
                if status not in _AGAIN and status < 500:
                    raise ValueError(self._refusal(path, status))
                reason = f"HTTP {status}"
            if attempt + 1 == tries or time.monotonic() - started > _PATIENCE:
                break
            pause = self._back_off * 2**attempt * random.uniform(0.5, 1.0)
            if self._stopping.wait(min(max(pause, asked_for), _LONGEST)):
                break
        raise Exhausted(reason)

    def abort(self) -> None:
        """Ends all requests in flight and refuses new ones; for good."""
        self._stopping.set()
        for connection in tuple(self._open):
            if connection.sock is not None:
                with contextlib.suppress(OSError):  # it may have ended by itself
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def _once(self, path: str, body: bytes | None) -> tuple[int, float, bytes]:
        """Status, seconds of Retry-After, and body (b"" unless the status is 200)."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_ANSWER)
        connection.auto_open = 0  # it must never look the host up by itself
        if self._tls is not None:
            connection.default_port = http.client.HTTPS_PORT  # the Host header leaves it out
        self._open.add(connection)
        try:
            raw = addresses_lib.connect(self._addresses, _CONNECT)
            connection.sock = raw
            raw.settimeout(_ANSWER)
            if self._tls is not None:
                connection.sock = self._tls.wrap_socket(raw, server_hostname=self._host)
            if self._stopping.is_set():
                raise ConnectionAbortedError
            connection.request("GET" if body is None else "POST", f"{self._path}/{path}", body, self._headers)
            with connection.getresponse() as response:
                return response.status, _retry_after(response), _body(response) if response.status == 200 else b""
        finally:
            self._open.discard(connection)
            connection.close()

    def _refusal(self, path: str, status: int) -> str:
        if 300 <= status < 400:
            advice = "a redirect is not followed, as it could lead to another machine; give the final address"
        else:
            advice = _ADVICE.get(status, "check the server's settings and its log")
        return f"{self.url} answered HTTP {status} to {path}; {advice}"


def _split(url: str) -> tuple[bool, str, int, str]:
    """TLS or not, host, port and path of an endpoint."""
    expected = "expected one like http://localhost:8000/v1, without user, query and fragment"
    if not (url.isascii() and url.isprintable()) or " " in url:
        raise ValueError(f"endpoint {url!r} holds characters that an address cannot have; {expected}")
    if "@" in url:  # what is before it may be a password: not repeated
        raise ValueError(f"endpoint holds a user or password; {expected}; put an API key into {KEY}")
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"endpoint {url!r} cannot be read ({error}); {expected}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"endpoint is {url!r}; {expected}")
    tls = parts.scheme == "https"
    standard = http.client.HTTPS_PORT if tls else http.client.HTTP_PORT
    return tls, parts.hostname, standard if port is None else port, parts.path


def _authorisation() -> dict[str, str]:
    key = os.environ.get(KEY, "")
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"the API key in {KEY} holds characters that a header cannot have; set it again")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _retry_after(response: http.client.HTTPResponse) -> float:
    """Seconds that the server asks to wait; 0 if it does not say, or gives a date."""
    value = response.headers.get("Retry-After", "").strip()
    return float(value) if value.isascii() and value.isdigit() else 0.0


def _body(response: http.client.HTTPResponse) -> bytes:
    body = response.read(MAX_BODY + 1)
    if len(body) > MAX_BODY:
        raise AnswerError(f"the answer is longer than {MAX_BODY} bytes")
    if response.length:  # a read with a bound does not complain of a connection that ended early
        raise http.client.IncompleteRead(b"", response.length)
    return body
