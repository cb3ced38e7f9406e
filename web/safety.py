"""What stands between the server and other people's pages, addresses and text.

A page elsewhere can make a browser send requests here (cross-site request forgery), or point a name of its own at
127.0.0.1 to read the answers (DNS rebinding). So a server on a loopback address answers only to names of this
machine; a request that changes something must come from a page of this server, by its Origin and Sec-Fetch-Site
headers where the browser sends them and always by a CSRF token; and no page runs a script or a style but the
server's own files (Content-Security-Policy), whatever the text in it. Where a token is asked for, everything but
the style sheets and scripts is behind it, and no answer is kept by a cache.
"""

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode, urlsplit

from fastapi import HTTPException, Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .settings import Settings, is_loopback

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
OPEN = "/static/"
"""What needs no token."""
ENTER = "/enter"
EMBED = "/embed/"
LONGEST_BODY = 1 << 20
"""Bytes of a request's body."""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " base-uri 'none'; form-action 'self'; frame-ancestors {}"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


class Refusal(HTTPException):
    """A request that is not answered; the detail says why and what to do."""


class Guard:
    """ASGI middleware: refuses what may come from elsewhere, asks for the token, and adds the headers."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._add_headers(MutableHeaders(scope=message), scope["path"])
            await send(message)

        refusal = self._refuse(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, send_guarded)
            return
        await self._app(scope, _bounded(receive), send_guarded)

    def _refuse(self, scope: Scope, headers: Headers) -> Response | None:
        host = headers.get("host", "")
        if self._settings.loopback and not is_loopback(urlsplit(f"//{host}").hostname or ""):
            return _plain(421, f"this server answers only to names of its machine, and was called {host!a}")
        if scope["method"] not in SAFE_METHODS and (reason := _foreign(headers, host)) is not None:
            return _plain(403, reason)
        if int(headers.get("content-length") or 0) > LONGEST_BODY:
            return _plain(413, f"the request has more than {LONGEST_BODY:,} bytes")
        if self._settings.token is None or scope["path"].startswith(OPEN) or scope["path"] == ENTER:
            return None
        return self._ask_token(scope, headers)

    def _ask_token(self, scope: Scope, headers: Headers) -> Response | None:
        assert self._settings.token is not None
        bearer = headers.get("authorization", "").removeprefix("Bearer ").strip()
        if _same(bearer, self._settings.token) or _same(_cookie(headers, self._settings), _pass_of(self._settings)):
            return None
        given = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        if scope["method"] == "GET" and _same(given.pop("token", ""), self._settings.token):
            return let_in(self._settings, scope["path"] + (f"?{urlencode(given)}" if given else ""))
        if "text/html" in headers.get("accept", "") and scope["method"] == "GET":
            target = scope["path"] + (f"?{urlencode(given)}" if given else "")
            return RedirectResponse(f"{ENTER}?{urlencode({'to': target})}", 303)
        return _plain(401, "a token is wanted: the header 'Authorization: Bearer TOKEN'")

    def _add_headers(self, headers: MutableHeaders, path: str) -> None:
        embedded = path.startswith(EMBED)
        headers["Content-Security-Policy"] = _POLICY.format("*" if embedded else "'none'")
        headers.update(_HEADERS)
        if not embedded:
            headers["X-Frame-Options"] = "DENY"
            headers["Cross-Origin-Resource-Policy"] = "same-origin"
        if self._settings.token is not None and not path.startswith(OPEN):
            headers["Cache-Control"] = "no-store"
        else:
            headers.setdefault("Cache-Control", "no-cache")


def _foreign(headers: Headers, host: str) -> str | None:
    """Why a request that changes something is not from a page of this server; None where nothing says so."""
    if (site := headers.get("sec-fetch-site")) not in (None, "same-origin", "none"):
        return f"this request comes from another site ({site!a}); open the page here and send it from there"
    if (origin := headers.get("origin")) is not None and urlsplit(origin).netloc != host:
        return f"this request comes from {origin!a}; open the page here and send it from there"
    return None


def _bounded(receive: Receive) -> Receive:
    """Receive at most LONGEST_BODY bytes, whatever the headers promised."""
    read = 0

    async def receive_bounded() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > LONGEST_BODY:
            raise Refusal(413, f"the request has more than {LONGEST_BODY:,} bytes")
        return message

    return receive_bounded


def _plain(status: int, text: str) -> Response:
    return PlainTextResponse(text + "\n", status)


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


def _pass_of(settings: Settings) -> str:
    """What the cookie holds in place of the token itself."""
    return hmac.new((settings.token or "").encode(), b"neuronaut serve", hashlib.sha256).hexdigest()


def _cookie_name(settings: Settings) -> str:
    # Browsers send a cookie to every port of a host.
    return f"neuronaut-{settings.port}"


def _cookie(headers: Headers, settings: Settings) -> str:
    pairs = (part.strip().partition("=") for part in headers.get("cookie", "").split(";"))
    return next((value for name, _, value in pairs if name == _cookie_name(settings)), "")


def let_in(settings: Settings, target: str) -> Response:
    """Remember that a browser has shown the token, and send it to a page of this server."""
    own = target if target.startswith("/") and not target.startswith(("//", "/\\")) else "/"
    response = RedirectResponse(own, 303)
    response.set_cookie(_cookie_name(settings), _pass_of(settings), httponly=True, samesite="lax", path="/")
    return response


def is_token(settings: Settings, text: str) -> bool:
    """Whether a text is the server's token."""
    return settings.token is not None and _same(text, settings.token)


def new_csrf() -> str:
    """A CSRF token, for as long as a server runs."""
    return secrets.token_urlsafe(24)


async def check_csrf(request: Request) -> None:
    """Refuse a request that changes something without the CSRF token, as header `X-CSRF-Token` or form field `csrf`.

    One that shows the server's token in `Authorization` needs none: no page elsewhere can make a browser send that.
    """
    if request.method in SAFE_METHODS:
        return
    settings: Settings = request.app.state.settings
    if is_token(settings, request.headers.get("authorization", "").removeprefix("Bearer ").strip()):
        return
    given = request.headers.get("x-csrf-token") or (await read_form(request)).get("csrf", "")
    if not _same(given, request.app.state.csrf):
        raise Refusal(403, "the form is of an earlier run of the server, or of none; load the page again and resend it")


async def read_form(request: Request) -> Mapping[str, str]:
    """The fields of a form that was sent, for `Depends`; the last of each name."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/x-www-form-urlencoded":
        return {}
    return dict(parse_qsl((await request.body()).decode("utf-8", "replace"), keep_blank_values=True))
