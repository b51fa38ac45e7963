"""Access: every request passes here first; what the table of routes does not name is refused, and so is who may not.

`Guard` is plain ASGI: answers pass through piece by piece as they come, and bodies are counted as they are read.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from starlette import types as asgi
from starlette.responses import JSONResponse

from polysome.config import ConfigurationError
from polysome.serving.checks import is_loopback
from polysome.serving.config import Limits, ServeConfig
from polysome.serving.keys import SCOPES, KeyRing, Scope
from polysome.serving.protocol import ApiError
from polysome.serving.routes import Route, routes_at

log = logging.getLogger(__name__)

Reason = Literal["key", "scope", "rate", "concurrency", "body", "expired"]
"""Why a request was refused: no valid key, or one without the scope; the key's bounds; the body's size or delay."""

_REASONS: dict[str, Reason] = {
    "invalid_api_key": "key",
    "insufficient_scope": "scope",
    "rate_limit_exceeded": "rate",
    "concurrency_limit_exceeded": "concurrency",
    "body_too_large": "body",
    "timeout": "expired",
}

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

_HEADERS = {
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    b"img-src 'self' data:; frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
}
"""Of every answer that does not set its own; nothing ever allows another origin to read one."""


@dataclass(frozen=True)
class Caller:
    """Who asks; routers find it as `request.state.caller`."""

    key_id: str
    """Empty where the server has no keys."""
    team: str
    scopes: frozenset[Scope]
    """All of them where the key's is `admin`."""


@dataclass
class _Use:
    """What one key uses of this gateway."""

    left: float
    """Requests that it may send now, of those of a minute; grows with time."""
    counted: float
    """When `left` was so many, in seconds of `time.monotonic`."""
    running: int = 0


@dataclass
class Access:
    """Who may ask, and how much at a time.

    Args:
        limits: bounds of bodies, and of each key.
        keys: None asks for no key.
        local_only: without keys, answer this machine alone, and only under a name that means it: a page of the web that
            a browser here has open could otherwise ask under a name of its own.
        body_seconds: in which a body must have come; None: whenever.
    """

    limits: Limits
    keys: KeyRing | None = None
    local_only: bool = False
    body_seconds: float | None = None
    _uses: dict[str, _Use] = field(default_factory=dict)

    @classmethod
    def of(cls, config: ServeConfig) -> Access:
        """As a served model is configured: with keys, or for this machine alone.

        Raises:
            ConfigurationError: the file of keys cannot be used.
        """
        return cls(
            config.limits,
            KeyRing(config.keys) if config.keys else None,
            local_only=config.keys is None,
            body_seconds=config.request_timeout_seconds,
        )

    def caller(self, connection: asgi.Scope) -> Caller:
        """Who sends a request.

        Raises:
            ApiError: 401 without a valid key; 403 from elsewhere where there are no keys; 503 when they cannot be read.
        """
        if self.keys is None:
            if self.local_only and not _is_local(connection):
                raise ApiError(
                    403,
                    "this server has no API keys and answers its own machine alone; `polysome keys create` makes one",
                    code="local_only",
                )
            return Caller("", "", SCOPES)
        given = _header(connection, b"authorization")
        scheme, _, text = given.partition(" ")
        try:
            key = self.keys.find(text.strip()) if scheme.lower() == "bearer" else None
        except ConfigurationError as error:
            log.error("nobody is let in: %s", error)
            raise ApiError(
                503,
                "the keys cannot be read; tell the operators",
                code="unavailable",
                headers={"retry-after": "5"},
            ) from error
        if key is None:
            raise ApiError(
                401,
                f"{'the API key is not valid' if given else 'an API key is needed'}; send Authorization: Bearer omk_…",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return Caller(key.id, key.team, SCOPES if "admin" in key.scopes else frozenset(key.scopes))

    @contextlib.contextmanager
    def running(self, caller: Caller) -> Iterator[None]:
        """Count a request of a caller while the block lasts.

        Raises:
            ApiError: 429, it is beyond what one key may ask.
        """
        now, rate, most = time.monotonic(), self.limits.requests_per_minute, self.limits.requests_at_once
        use = self._uses.setdefault(caller.key_id, _Use(rate or 0, now))
        if most is not None and use.running >= most:
            raise ApiError(
                429,
                f"{most} requests of this key are running, which is its limit",
                code="concurrency_limit_exceeded",
                headers={"retry-after": "1"},
            )
        if rate is not None:
            use.left, use.counted = min(rate, use.left + (now - use.counted) * rate / 60), now
            if use.left < 1:
                seconds = math.ceil((1 - use.left) * 60 / rate)
                raise ApiError(
                    429,
                    f"this key may send {rate} requests a minute; ask again in {seconds} s",
                    code="rate_limit_exceeded",
                    headers={"retry-after": str(seconds)},
                )
            use.left -= 1
        use.running += 1
        try:
            yield
        finally:
            use.running -= 1


class Guard:
    """ASGI middleware in front of every route.

    It answers what it refuses in the API's error shape, gives `request.state.caller` and a plain `x-request-id` to what
    it passes on, adds security headers, and logs one line a request, with a body's length and hash and never its text.

    Args:
        app: what it stands before.
        access: who may ask.
        rejected: told of every refusal why.
    """

    def __init__(self, app: asgi.ASGIApp, access: Access, rejected: Callable[[Reason], None] | None = None) -> None:
        self._app, self._access, self._rejected = app, access, rejected

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        visit = _Visit(scope, receive, send)
        try:
            await visit.serve(self._app, self._access)
        except ApiError as error:
            reason = _REASONS.get(error.code)
            if reason and self._rejected:
                self._rejected(reason)
            await visit.refuse(error)
        except Exception:
            # It becomes an answer further out.
            visit.status = visit.status or 500
            raise
        finally:
            visit.tell()


class _Visit:
    """One request, from its coming to the end of its answer."""

    def __init__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._began = time.monotonic()
        given = _header(scope, b"x-request-id")
        self._own_id = not _REQUEST_ID.fullmatch(given)
        self._id = uuid.uuid4().hex if self._own_id else given
        self._route: Route | None = None
        self._caller: Caller | None = None
        self._limit, self._size, self._hash = 0, 0, hashlib.sha256()
        self._body_seconds: float | None = None
        self._whole = False
        self._cut_off: ApiError | None = None
        self.status = 0
        """Of the answer; 0 before it begins."""

    async def serve(self, app: asgi.ASGIApp, access: Access) -> None:
        """Pass the request on, or raise ApiError."""
        scope = self._scope
        if self._own_id:
            # In place, as all changes of the scope here: handlers further out see the same request.
            scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"x-request-id"]
            scope["headers"].append((b"x-request-id", self._id.encode()))
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        routes = routes_at(path)
        route = self._route = routes.get("GET" if scope["method"] == "HEAD" else scope["method"])
        if route is not None and route.scope is None:
            await self._pass_on(app, access, access.limits.body_bytes)
            return
        caller = self._caller = access.caller(scope)
        if not routes:
            raise ApiError(404, f"no route {path}", code="not_found")
        if route is None:
            allowed = {"allow": ", ".join(sorted(routes))}
            raise ApiError(405, f"{scope['method']} is not allowed here", code="method_not_allowed", headers=allowed)
        if route.scope not in caller.scopes:
            raise ApiError(403, f"this key lacks the scope {route.scope!r}", code="insufficient_scope")
        scope.setdefault("state", {})["caller"] = caller
        with access.running(caller):
            await self._pass_on(app, access, access.limits.batch_bytes if route.batch else access.limits.body_bytes)

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error, unless an answer has begun."""
        self._cut_off = None
        if not self.status:
            answer = JSONResponse(error.body(), status_code=error.status, headers=error.headers)
            await answer(self._scope, self._receive, self._sending)

    def tell(self) -> None:
        """The request's line in the log. 499: the client left before anything was answered."""
        caller = self._caller or Caller("", "", frozenset())
        log.info(
            "%s %s %d %.3fs key=%s team=%s request=%s body=%d sha256=%s",
            self._scope["method"],
            self._route.path if self._route else "-",
            self.status or 499,
            time.monotonic() - self._began,
            caller.key_id or "-",
            caller.team or "-",
            self._id,
            self._size,
            self._hash.hexdigest()[:16],
        )

    async def _pass_on(self, app: asgi.ASGIApp, access: Access, limit: int) -> None:
        self._limit, self._body_seconds = limit, access.body_seconds
        told = _header(self._scope, b"content-length")
        if told.isdecimal() and (len(told) > 18 or int(told) > limit):
            raise self._too_large()
        try:
            await app(self._scope, self._receiving, self._sending)
        except Exception:
            # What fails because its body was cut off has been told why.
            if self._cut_off is None:
                raise
        if self._cut_off is not None:
            raise self._cut_off

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._limit} bytes", code="body_too_large")

    def _too_slow(self) -> ApiError:
        told = f"the body did not come within {self._body_seconds:g} s"
        return ApiError(408, told, code="timeout", headers={"x-should-retry": "false"})

    async def _receiving(self) -> asgi.Message:
        """The next part of the body; beyond the limit, or after its time, the client seems to have left."""
        if self._cut_off is not None:
            return {"type": "http.disconnect"}
        # Of a body that is whole nothing more comes but that the client leaves.
        timed = self._body_seconds is not None and not self._whole
        left = self._began + (self._body_seconds or 0.0) - time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, left) if timed else None):
                message = await self._receive()
        except TimeoutError:
            self._cut_off = self._too_slow()
            return {"type": "http.disconnect"}
        if message["type"] == "http.request":
            piece = message.get("body", b"")
            self._whole = not message.get("more_body", False)
            self._size += len(piece)
            self._hash.update(piece)
            if self._size > self._limit:
                self._cut_off = self._too_large()
                return {"type": "http.disconnect"}
        return message

    async def _sending(self, message: asgi.Message) -> None:
        if self._cut_off is not None:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", []))
            own = {name.lower() for name, _ in headers}
            headers += [pair for pair in _HEADERS.items() if pair[0] not in own]
            if self._route is None or self._route.scope is not None:
                headers += [(b"cache-control", b"no-store")] if b"cache-control" not in own else []
            if self._own_id:
                # One that came with the request is told by Serve's proxy, and known to who sent it.
                headers.append((b"x-request-id", self._id.encode()))
            message = {**message, "headers": headers}
        await self._send(message)


def _header(connection: asgi.Scope, name: bytes) -> str:
    """The value of a header; empty where it is missing, or there more than once."""
    found = [value for key, value in connection["headers"] if key == name]
    return found[0].decode("latin-1") if len(found) == 1 else ""


def _is_local(connection: asgi.Scope) -> bool:
    """Whether a request comes from this machine and asks for it by a name or address that means itself."""
    client, server = connection.get("client"), connection.get("server")
    if not client or not (is_loopback(client[0]) or (server and client[0] == server[0])):
        return False
    try:
        name = urlsplit(f"//{_header(connection, b'host')}").hostname
    except ValueError:
        return False
    return name is not None and is_loopback(name)
