"""ASGI applications served over HTTP on this machine, and a proxy that hands each request to the next of them."""

import contextlib
import itertools
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import uvicorn


def hear_interrupts() -> None:
    """In a child before it begins (`preexec_fn`): let Ctrl-C end it, also where the tests run with SIGINT ignored, as
    shells do for what they start in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def round_robin(upstreams: list[str]) -> Any:
    """An ASGI application that hands each request to the next server."""
    turns = itertools.cycle(upstreams)

    async def proxy(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        url = next(turns) + scope["raw_path"].decode() + ("?" + scope["query_string"].decode()).rstrip("?")
        async with (
            httpx.AsyncClient(trust_env=False, timeout=30) as client,
            client.stream(scope["method"], url, content=body, headers=scope["headers"]) as answer,
        ):
            await send({"type": "http.response.start", "status": answer.status_code, "headers": answer.headers.raw})
            async for piece in answer.aiter_raw():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    return proxy


@contextlib.contextmanager
def served(app: Any, port: int = 0) -> Iterator[str]:
    """The application over HTTP on this machine; gives its URL."""
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
