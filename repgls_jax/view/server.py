"""The page's addresses, served by Starlette.

/                                   the page
/about                              networks, methods and splits, JSON
/film (POST, the file as the body)  what the networks say of a film, JSON
/set/SPLIT                          numbers of films, JSON
/set/SPLIT/NUMBER                   what the networks say of a film of the set, JSON
/set/SPLIT/NUMBER.png               the film, small
/set/SPLIT/NUMBER/report            its report, marked, as a page
/overlay/TOKEN/NETWORK/METHOD.png   a map of a finding over a film

There is no address of a file. Nothing is logged: not what is looked at, nor what it says.
"""

import importlib.resources
import pathlib
import secrets
import tempfile
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from repgls_jax.data.images import UnusableImageError
from repgls_jax.view import guard
from repgls_jax.view.desk import Desk, NotHereError

LIMIT = 64 * 2**20  # bytes of an upload
_POLICY = (
    "default-src 'none'; img-src 'self' blob:; connect-src 'self'; frame-src 'self'; style-src 'nonce-{0}'; "
    "script-src 'nonce-{0}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'"


class Guarded:
    """Refuses requests that are not the page's own, and puts the headers of :data:`guard.HEADERS` on every answer."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in guard.HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            guard.require_own(Headers(scope=scope), scope["method"])
        except guard.RefusedError as error:
            await _refusal(error.status, error.why)(scope, receive, headed)
            return
        await self._app(scope, receive, headed)


def _refusal(status: int, why: str) -> JSONResponse:
    return JSONResponse({"error": why}, status)


def make(desk: Desk, limit: int = LIMIT) -> ASGIApp:
    """The application.

    Args:
      desk: answers.
      limit: bytes of an upload.
    """
    template = importlib.resources.files("repgls_jax.view").joinpath("page.html").read_text(encoding="utf-8")

    async def page(request: Request) -> Response:
        nonce = secrets.token_urlsafe(18)
        return HTMLResponse(
            template.replace("NONCE", nonce), headers={"content-security-policy": _POLICY.format(nonce)}
        )

    async def about(request: Request) -> Response:
        return JSONResponse(desk.about() | {"limit": limit})

    async def film(request: Request) -> Response:
        with tempfile.TemporaryDirectory(prefix="repgls-view-") as folder:  # for its owner alone, and gone afterwards
            path = pathlib.Path(folder) / "film"
            with path.open("wb") as file:
                await guard.receive(request.stream(), request.headers.get("content-length"), file, limit)
            return JSONResponse(await run_in_threadpool(desk.upload, path))

    async def listed(request: Request) -> Response:
        start = request.query_params.get("start", "0")
        finding = request.query_params.get("finding", "")
        split = request.path_params["split"]
        return JSONResponse(await run_in_threadpool(desk.listed, split, int(start) if start.isdigit() else 0, finding))

    async def one(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(desk.film, *_place(request)))

    async def thumb(request: Request) -> Response:
        return Response(await run_in_threadpool(desk.thumb, *_place(request)), media_type="image/png")

    async def report(request: Request) -> Response:
        text = await run_in_threadpool(desk.report, *_place(request))
        return HTMLResponse(text, headers={"content-security-policy": _REPORT_POLICY})

    async def overlay(request: Request) -> Response:
        at = request.path_params
        finding = request.query_params.get("finding", "")
        drawn = await run_in_threadpool(desk.overlay, at["token"], at["network"], at["method"], finding)
        return Response(drawn, media_type="image/png")

    async def icon(request: Request) -> Response:
        return Response(status_code=204)  # browsers ask for one in any case

    app = Starlette(
        routes=[
            Route("/", page),
            Route("/favicon.ico", icon),
            Route("/about", about),
            Route("/film", film, methods=["POST"]),
            Route("/set/{split}", listed),
            Route("/set/{split}/{number:int}", one),
            Route("/set/{split}/{number:int}.png", thumb),
            Route("/set/{split}/{number:int}/report", report),
            Route("/overlay/{token}/{network:int}/{method}.png", overlay),
        ],
        exception_handlers={
            NotHereError: _said(404),
            UnusableImageError: _said(422),
            ValueError: _said(422),
            guard.RefusedError: _refused,
        },
    )
    return Guarded(app)


def _place(request: Request) -> tuple[str, int]:
    return request.path_params["split"], request.path_params["number"]


def _said(status: int) -> Callable[[Request, Exception], Awaitable[Response]]:
    """A handler that tells the page what an error says."""

    async def handle(request: Request, error: Exception) -> Response:
        return _refusal(status, str(error))

    return handle


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, guard.RefusedError)
    # What is left of the upload is not read: the connection ends instead.
    return JSONResponse({"error": error.why}, error.status, headers={"connection": "close"})
