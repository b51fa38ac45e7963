"""A threaded HTTP server that speaks the chat-completions protocol for an engine, or misbehaves as it is told."""

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from polysome.config import ConfigurationError, DataError
from polysome.inference.engine import Engine


@dataclass
class Misdeed:
    """What one request gets instead of its answer; `body` None: the connection ends without one."""

    status: int = 200
    body: str | None = "{}"
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0


@dataclass
class Served:
    """A running server.

    Attributes:
        misdeeds: for the next requests to POST routes, one each.
        requests: bodies that came, in order.
        keys: Authorization headers that came.
        at_once: most requests that were under way together.
        delay: seconds that every answer takes.
        owner: `owned_by` of the model.
    """

    engine: Engine
    url: str = ""
    owner: str = "polysome"
    delay: float = 0.0
    tells_usage: bool = True
    misdeeds: deque[Misdeed] = field(default_factory=deque)
    by_content: dict[str, Misdeed] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    at_once: int = 0


@contextmanager
def serve(engine: Engine) -> Iterator[Served]:
    """A server on a free port of this machine."""
    served = Served(engine)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(served))
    server.daemon_threads = True
    served.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(served: Served) -> type[BaseHTTPRequestHandler]:
    lock, engine_lock = threading.Lock(), threading.Lock()
    under_way = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            served.keys.append(self.headers.get("Authorization"))
            self._answer({"object": "list", "data": [{"id": "tiny", "object": "model", "owned_by": served.owner}]})

        def do_POST(self) -> None:
            nonlocal under_way
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                under_way += 1
                served.at_once = max(served.at_once, under_way)
                served.requests.append(body)
                served.keys.append(self.headers.get("Authorization"))
                misdeed = served.misdeeds.popleft() if served.misdeeds else None
            misdeed = misdeed or served.by_content.get(body["messages"][-1]["content"])
            try:
                time.sleep(served.delay)
                if misdeed:
                    self._misbehave(misdeed)
                else:
                    self._behave(body)
            except (BrokenPipeError, ConnectionResetError):
                pass  # The client gave up, as some tests want it to.
            finally:
                with lock:
                    under_way -= 1

        def _misbehave(self, misdeed: Misdeed) -> None:
            time.sleep(misdeed.delay)
            if misdeed.body is None:
                self.close_connection = True
                return
            self._write(misdeed.status, misdeed.body, misdeed.headers)

        def _behave(self, body: dict[str, Any]) -> None:
            try:
                if self.path.endswith("/score"):
                    with engine_lock:
                        (scores,) = served.engine.score([body["messages"]], body["choices"])
                    usage = {"prompt_tokens": scores.prompt_tokens}
                    self._answer({"sums": scores.sums, "tokens": scores.tokens, "usage": usage})
                elif body.get("stream"):
                    self._stream(body)
                else:
                    self._chat(body)
            except (ConfigurationError, DataError) as error:
                code = "unsupported_value" if isinstance(error, ConfigurationError) else "invalid_value"
                self._write(400, json.dumps({"error": {"message": error.what, "code": code, "param": None}}), {})

        def _options(self, body: dict[str, Any]) -> dict[str, Any]:
            options = {name: body[name] for name in ("temperature", "top_p", "seed", "stop") if name in body}
            return {"max_new_tokens": body["max_tokens"], **options}

        def _chat(self, body: dict[str, Any]) -> None:
            with engine_lock:
                (found,) = served.engine.generate([body["messages"]], **self._options(body))
            message = {"role": "assistant", "content": found.text}
            usage = {"prompt_tokens": found.prompt_tokens, "completion_tokens": found.completion_tokens}
            choice = {"index": 0, "message": message, "finish_reason": found.finish_reason}
            self._answer({"choices": [choice], **({"usage": usage} if served.tells_usage else {})})

        def _stream(self, body: dict[str, Any]) -> None:
            with engine_lock:
                pieces = list(served.engine.stream(body["messages"], **self._options(body)))
            events = [{"choices": [{"index": 0, "delta": {"role": "assistant"}}]}]
            events += [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
            events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            lines = [f"data: {json.dumps(event)}\n\n" for event in events]
            self._write(200, "".join([": a comment\n\n", *lines, "data: [DONE]\n\n"]), {})

        def _answer(self, content: Any) -> None:
            self._write(200, json.dumps(content), {})

        def _write(self, status: int, text: str, headers: dict[str, str]) -> None:
            data = text.encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    return Handler
