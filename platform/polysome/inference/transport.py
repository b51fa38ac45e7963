"""Transport: requests to an endpoint, sent again where that helps, within a budget, with a key that is never told."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

from polysome.config import ConfigurationError, DataError, PolysomeError, ResourceError
from polysome.inference.endpoint import Endpoint

ResultT = TypeVar("ResultT")

_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
_WRONG_SETTING = frozenset(
    {"unknown_parameter", "unsupported", "unsupported_parameter", "unsupported_value", "model_not_found"}
)
_HERE = frozenset({"localhost", "127.0.0.1", "::1"})
_CONNECT_SECONDS = 20.0
_MALFORMED = (ValueError, KeyError, IndexError, TypeError, AttributeError)
"""What reading an answer of another shape raises."""


@dataclass
class Spent:
    """What an engine used so far."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    """None without prices."""

    def __str__(self) -> str:
        tokens = f"{self.requests} requests, {self.prompt_tokens} prompt and {self.completion_tokens} completion tokens"
        return tokens if self.cost is None else f"{tokens}, a cost of {self.cost:.4g}"


class _Passing(Exception):
    """A failure that may pass."""

    def __init__(self, error: PolysomeError, wait: float | None = None) -> None:
        self.error, self.wait = error, wait


class Transport:
    """Sends JSON to one endpoint. Safe for several threads.

    Raises:
        ConfigurationError: the key in the environment cannot stand in a header.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._key = os.environ.get(endpoint.key_variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            # httpx would tell the key with the error.
            raise ConfigurationError(
                f"the key in {endpoint.key_variable} holds characters that no header may hold",
                where=endpoint.key_variable,
                fix="set it anew, without line breaks",
            )
        self._client = httpx.Client(
            timeout=httpx.Timeout(endpoint.timeout_seconds, connect=min(_CONNECT_SECONDS, endpoint.timeout_seconds)),
            limits=httpx.Limits(max_connections=endpoint.concurrency),
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            # A proxy of the environment does not lead to this machine.
            trust_env=httpx.URL(endpoint.url).host not in _HERE,
        )
        self.spent = Spent(cost=None if endpoint.budget.prices is None else 0.0)
        self._lock = threading.Lock()
        self._not_before = 0.0

    def require_budget(self) -> None:
        """Raise ResourceError, which names what was spent, unless a further request may be sent."""
        with self._lock:
            self._require_budget()

    def get(self, path: str) -> Any:
        """The JSON at a path; counts against no budget.

        Raises:
            ResourceError, ConfigurationError, DataError: as for `post`.
        """
        return self._patiently(lambda: self._content(self._send("GET", path, None)), counted=False)

    def post(self, path: str, body: dict[str, Any], read: Callable[[Any], object]) -> Any:
        """The JSON that the endpoint answers.

        Args:
            read: raises ValueError, KeyError, IndexError, TypeError or AttributeError where an answer is none.

        Raises:
            DataError: the endpoint refuses this request, or its answers are none.
            ConfigurationError: it refuses the key, or does not know the model, the path or a field.
            ResourceError: it does not answer, or the budget is spent.
        """

        def once() -> Any:
            content = self._content(self._send("POST", path, body))
            self._spend(content)
            try:
                read(content)
            except _MALFORMED as error:
                raise _Passing(self._no_answer(json.dumps(content))) from error
            return content

        return self._patiently(once)

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[Any]:
        """The events of a stream, each as JSON; a lost connection is opened anew only before the first one.

        Raises:
            DataError, ConfigurationError, ResourceError: as for `post`; or the stream breaks off.
        """
        if self._counts_tokens:
            body = {**body, "stream_options": {"include_usage": True}}
        response = self._patiently(lambda: self._send("POST", path, {**body, "stream": True}, stream=True))
        used = None
        try:
            for line in response.iter_lines():
                field, _, data = line.partition(":")
                if field != "data":
                    continue
                if data.strip() == "[DONE]":
                    break
                event = json.loads(data)
                if "error" in event:
                    raise ResourceError(
                        f"the endpoint ended its answer: {self._clean(str(event['error']))}",
                        where=self._endpoint.url,
                        fix="ask again later",
                    )
                used = event.get("usage") or used
                yield event
        except httpx.HTTPError as error:
            raise self._lost(error).error from error
        except _MALFORMED as error:
            raise self._no_answer(str(error)) from error
        finally:
            response.close()
        self._spend({"usage": used})

    @property
    def _counts_tokens(self) -> bool:
        return self._endpoint.budget.max_tokens is not None or self.spent.cost is not None

    def _patiently(self, once: Callable[[], ResultT], *, counted: bool = True) -> ResultT:
        """The result of the first attempt that does not fail in passing."""
        for attempt in range(1, self._endpoint.attempts + 1):
            self._begin(counted)
            try:
                return once()
            except _Passing as failure:
                if attempt == self._endpoint.attempts:
                    raise failure.error from failure.__cause__
                self._wait(attempt, failure)
        raise AssertionError("there is at least one attempt")

    def _begin(self, counted: bool) -> None:
        """Wait until the endpoint wants requests again, and count one that the budget allows."""
        with self._lock:
            pause = self._not_before - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        if counted:
            with self._lock:
                self._require_budget()
                self.spent.requests += 1

    def _require_budget(self) -> None:
        budget, spent = self._endpoint.budget, self.spent
        reached = (
            ("max_requests", budget.max_requests, spent.requests),
            ("max_tokens", budget.max_tokens, spent.prompt_tokens + spent.completion_tokens),
            ("max_cost", budget.max_cost, spent.cost),
        )
        for name, bound, used in reached:
            if bound is not None and used is not None and used >= bound:
                raise ResourceError(
                    f"the budget is spent ({name} {bound:g}): {spent}",
                    where=self._endpoint.url,
                    fix=f"raise budget.{name} and run again; recorded answers are not paid twice",
                )

    def _wait(self, attempt: int, failure: _Passing) -> None:
        wait = self._endpoint.backoff_seconds * 2 ** (attempt - 1) * random.uniform(0.5, 1)
        longest = self._endpoint.longest_wait_seconds
        if failure.wait is not None:
            if failure.wait > longest:
                raise ResourceError(
                    f"{failure.error.what}; it wants to be asked again in {failure.wait:.0f} s",
                    where=self._endpoint.url,
                    fix="run again then, or raise longest_wait_seconds; recorded answers are not asked again",
                ) from failure
            wait = failure.wait
            with self._lock:
                # All requests wait: the endpoint said so, not this one.
                self._not_before = max(self._not_before, time.monotonic() + wait)
        time.sleep(min(wait, longest))

    def _send(self, method: str, path: str, body: Any, *, stream: bool = False) -> httpx.Response:
        """A response with status 200."""
        request = self._client.build_request(method, self._endpoint.url + path, json=body)
        try:
            response = self._client.send(request, stream=stream)
            if response.status_code == 200:
                return response
            response.read()
            response.close()
        except httpx.HTTPError as error:
            raise self._lost(error) from error
        raise self._refused(response)

    def _content(self, response: httpx.Response) -> Any:
        try:
            return response.json()
        except ValueError as error:
            raise _Passing(self._no_answer(response.text)) from error

    def _spend(self, content: Any) -> None:
        usage: Any = content.get("usage") if isinstance(content, dict) else None
        try:
            prompt, completion = int(usage["prompt_tokens"]), int(usage.get("completion_tokens") or 0)
        except _MALFORMED as error:
            if self._counts_tokens:
                raise ConfigurationError(
                    "the endpoint does not tell how many tokens it used, so no budget of tokens or cost can be kept",
                    where=self._endpoint.url,
                    fix="set budget.max_requests instead",
                ) from error
            return
        with self._lock:
            spent, prices = self.spent, self._endpoint.budget.prices
            spent.prompt_tokens += prompt
            spent.completion_tokens += completion
            if prices is not None:
                spent.cost = (spent.cost or 0.0) + prompt * prices[0] + completion * prices[1]

    def _refused(self, response: httpx.Response) -> Exception:
        """The error of a status other than 200."""
        try:
            error = response.json()["error"]
            message, code = str(error["message"]), error.get("code")
        except _MALFORMED:
            message, code = response.text, None
        endpoint, status = self._endpoint, response.status_code
        what = f"the endpoint answers {status}: {self._clean(message) or response.reason_phrase}"
        if status in (401, 403):
            fix = f"set the environment variable {endpoint.key_variable} to a key that is valid there"
            return ConfigurationError(what, where=endpoint.url, fix=fix)
        if code == "insufficient_quota":
            return ResourceError(what, where=endpoint.url, fix="pay for more, and run again")
        if status in _AGAIN and response.headers.get("x-should-retry") != "false":
            failed = ResourceError(what, where=endpoint.url, fix="ask again later, or with a lower concurrency")
            return _Passing(failed, _retry_after(response.headers.get("retry-after")))
        if status >= 500 or status in _AGAIN:
            return ResourceError(what, where=endpoint.url, fix="ask again later, or for less at once")
        if status in (404, 405) or code in _WRONG_SETTING:
            return ConfigurationError(what, where=endpoint.url, fix="check url and model; remove what it does not know")
        return DataError(what, where=endpoint.url, fix="shorten or mend the question")

    def _lost(self, error: httpx.HTTPError) -> _Passing:
        what = (
            f"no answer within {self._endpoint.timeout_seconds:g} s"
            if isinstance(error, httpx.TimeoutException)
            else (f"the connection fails: {self._clean(str(error)) or type(error).__name__}")
        )
        fix = "check the address and that the server runs; or raise timeout_seconds"
        return _Passing(ResourceError(what, where=self._endpoint.url, fix=fix))

    def _no_answer(self, text: str) -> DataError:
        return DataError(
            f"the endpoint's answer is none: {self._clean(text)!r}",
            where=self._endpoint.url,
            fix="check that the address is that of an OpenAI-compatible API",
        )

    def _clean(self, text: str) -> str:
        """The beginning of what an endpoint says, in one line and without the key."""
        text = text.replace(self._key, "***") if self._key else text
        return " ".join(text.split())[:300]


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait by a `Retry-After` header: seconds or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
