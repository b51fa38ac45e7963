"""Readiness: whether a replica generates tokens, asked of the pool once in a while however many ask the gateway."""

from __future__ import annotations

import asyncio
import time

from polysome.serving.calls import Overloaded
from polysome.serving.context import Context

_READY_SECONDS = 10.0
_FAILED_SECONDS = 1.0


class Readiness:
    """What the latest probe found. `/readyz` needs no key, and a probe may cost a token behind others' work."""

    def __init__(self, context: Context) -> None:
        self._context, self._probing = context, asyncio.Lock()
        self._until = 0.0
        self._failure: Exception | None = None

    async def require(self) -> None:
        """Return when a replica generated a token lately, or when so many wait for one that another is refused.

        Raises:
            Exception: none could, or not in time.
        """
        async with self._probing:
            if time.monotonic() >= self._until:
                self._failure = await self._probe()
                self._until = time.monotonic() + (_FAILED_SECONDS if self._failure else _READY_SECONDS)
            if self._failure is not None:
                raise self._failure.with_traceback(None)

    async def _probe(self) -> Exception | None:
        context = self._context
        try:
            await context.within(await context.target(None), context.pool.ready())
        except Overloaded:
            return None
        except Exception as error:
            return error
        return None
