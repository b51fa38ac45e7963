"""Server-sent events: JSON in `data:` lines as it comes, a comment in silence, an error event where it breaks."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from polysome.config import PolysomeError
from polysome.serving.metrics import name_break
from polysome.serving.protocol import ApiError, as_api_error, internal_error

log = logging.getLogger(__name__)

Event = dict[str, Any]

HEARTBEAT_SECONDS = 10.0
"""A stream in which nothing happens says so every so often, or proxies would end it."""

_HEARTBEAT = b": waiting\n\n"
_DONE = b"data: [DONE]\n\n"


async def event_stream(events: AsyncGenerator[Event | None, None], *, request_id: str) -> StreamingResponse:
    """The answer that streams `events`, each None as a heartbeat, and `[DONE]` after them.

    It is made when the first of them is there: what is raised before has a status of its own, what is raised later is
    told as an event, and ends the stream without `[DONE]`. When the client leaves, `events` is closed.
    """
    return _EventStream(await anext(events), events, request_id)


class _EventStream(StreamingResponse):
    def __init__(self, first: Event | None, rest: AsyncGenerator[Event | None, None], request_id: str) -> None:
        self._rest = rest
        super().__init__(
            _encoded(first, rest, request_id),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Cancelled while a piece is being sent, neither generator would hear of it.
        async with aclosing(self._rest):
            await super().__call__(scope, receive, send)


async def _encoded(
    first: Event | None, rest: AsyncGenerator[Event | None, None], request_id: str
) -> AsyncGenerator[bytes, None]:
    yield _line(first)
    try:
        async for event in rest:
            yield _line(event)
    except ApiError as error:
        yield _broken(error)
    except PolysomeError as error:
        yield _broken(as_api_error(error, request_id))
    except Exception:
        log.exception("request %s failed", request_id)
        yield _broken(internal_error(request_id))
    else:
        yield _DONE


def _broken(error: ApiError) -> bytes:
    name_break(error.status)
    return _line(error.body())


def _line(event: Event | None) -> bytes:
    if event is None:
        return _HEARTBEAT
    return f"data: {json.dumps(event, allow_nan=False, separators=(',', ':'))}\n\n".encode()
