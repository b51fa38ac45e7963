"""The HTTP API's requests and errors: frozen models that refuse unknown fields, and OpenAI's error shape."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import Field, ValidationError, WrapValidator, model_validator

from polysome.config import Config, ConfigurationError, DataError, PolysomeError, ResourceError
from polysome.inference.engine import Pool, Prompt
from polysome.serving.calls import Expired, Overloaded

log = logging.getLogger(__name__)

_SERVERS = re.compile(r".*[/\\].*|-.*|[A-Z][A-Z0-9_]+(, [A-Z0-9_]+)*", re.DOTALL)


def _told_as(what: str) -> WrapValidator:
    """One finding about a field of several kinds, in place of one for each kind."""

    def check(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"must be {what}") from None

    return WrapValidator(check)


_Text = Annotated[str, Field(min_length=1)]
_TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31, strict=True)]], Field(min_length=1)]
Texts = Annotated[
    _Text | Annotated[list[_Text], Field(min_length=1)] | _TokenIds | Annotated[list[_TokenIds], Field(min_length=1)],
    _told_as("a text, a list of texts, a list of token ids, or a list of such lists, none of them empty"),
]
"""One text or several, each as text or as the model's token ids."""

_StopString = Annotated[str, Field(min_length=1, max_length=64)]


class Message(Config):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(min_length=1)]


class StreamOptions(Config):
    """What a streamed answer tells besides the answer."""

    include_usage: bool = False
    """A last event, without choices, tells the tokens."""


class _Generated(Config):
    """What completions and chat completions have in common."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.0
    """0 is greedy, and the default."""
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Makes sampled answers repeatable; answer i of `n` is drawn from seed + i."""
    n: Annotated[int, Field(ge=1)] = 1
    """Answers to each prompt."""
    stop: Annotated[
        _StopString | Annotated[list[_StopString], Field(max_length=4)] | None,
        _told_as("a text of 1 to 64 characters, or at most 4 of them"),
    ] = None
    """An answer ends before the first of these."""
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=256)] | None = None
    """The caller's own name for its user; not used."""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as it is asked of an engine."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def usage_in_stream(self) -> bool:
        """Whether the stream's last event tells the tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> _Generated:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self


class ChatRequest(_Generated):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """Newer name of `max_tokens`; at most one of the two."""
    logprobs: bool = False
    """Tell the log-likelihood of every generated token, the turn end included."""
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    """Tell also the likeliest tokens in each place."""

    @model_validator(mode="after")
    def _whole(self) -> ChatRequest:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("give max_tokens or max_completion_tokens, not both")
        if self.messages[-1].role != "user":
            raise ValueError(f"the last message must be the user's, not the {self.messages[-1].role}'s")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self


class CompletionRequest(_Generated):
    """`POST /v1/completions`."""

    prompt: Texts
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """0, with `echo`, generates nothing: the prompt alone is told, with its log-likelihoods."""
    echo: bool = False
    """The answer begins with the prompt."""
    logprobs: Annotated[int, Field(ge=0)] | None = None
    """Tell the log-likelihood of every token, and so many of the likeliest ones in its place."""

    @model_validator(mode="after")
    def _something_to_tell(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens: 0 needs echo: true")
        return self


class EmbeddingRequest(Config):
    """`POST /v1/embeddings`."""

    model: str
    input: Texts
    encoding_format: Literal["float", "base64"] = "float"
    """`base64`: float32, little-endian."""
    pool: Pool = "mean"
    """How the states of a text's tokens become one vector; OpenAI's API has no such field."""
    user: Annotated[str, Field(max_length=256)] | None = None
    """The caller's own name for its user; not used."""


class ScoreRequest(Config):
    """`POST /v1/score`: how likely each choice is as the answer."""

    messages: Annotated[list[Message], Field(min_length=1)]
    choices: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    model: str | None = None


class ErrorDetail(Config):
    """What is wrong and how to mend it."""

    message: str
    type: str
    param: str | None
    """The field that is wrong, dotted."""
    code: str
    """Short and stable."""


class ErrorBody(Config):
    """Every answer other than 2xx."""

    error: ErrorDetail


class ApiError(Exception):
    """An answer other than 200, in OpenAI's shape.

    Args:
        status: HTTP status.
        message: what is wrong and how to mend it.
        code: short stable name of the error.
        param: the field that is wrong, dotted.
        headers: added to the answer.
    """

    def __init__(
        self, status: int, message: str, *, code: str, param: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """`{"error": {"message", "type", "param", "code"}}`."""
        kind = "invalid_request_error" if self.status < 500 and self.status not in (408, 429) else "server_error"
        if self.status == 429:
            kind = "rate_limit_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def of_server(error: PolysomeError) -> bool:
    """Whether a failure is about something of the server's, which no caller sees or can mend: its `where` is a path, an
    address, a command's option or a variable. That of a request is a field, a record, or nothing."""
    return _SERVERS.fullmatch(error.where) is not None


def as_api_error(error: PolysomeError, request_id: str = "") -> ApiError:
    """An expected failure as HTTP tells it: 400, 408, 429 or 503; 500 for one that no caller can mend.

    What is about the server's own files and settings is logged, and told without its words.
    """
    if of_server(error):
        log.error("request %s failed: %s", request_id, error)
        if not isinstance(error, ResourceError):
            return internal_error(request_id)
        error = ResourceError("the server cannot do this now", fix="ask again later, or tell the operators")
    message = f"{error.what}; {error.fix}" if error.fix else error.what
    if isinstance(error, Overloaded):
        return ApiError(429, message, code="overloaded", headers={"retry-after": "2"})
    if isinstance(error, Expired):
        # OpenAI's clients would otherwise ask the same again, twice.
        return ApiError(408, message, code="timeout", headers={"x-should-retry": "false"})
    if isinstance(error, ResourceError):
        return ApiError(503, message, code="unavailable", headers={"retry-after": "5"})
    if isinstance(error, ConfigurationError | DataError):
        return ApiError(400, message, code="invalid_value", param=error.where or None)
    return internal_error()


def internal_error(request_id: str = "") -> ApiError:
    """A 500 that tells nothing but the id to ask the operators about."""
    tell = f"tell the operators the request id {request_id}" if request_id else "tell the operators"
    return ApiError(500, f"internal error; {tell}", code="internal_error")


def at_most(param: str, given: int, bound: int) -> None:
    """Raise a 400 that names the bound when `given` is above it."""
    if given > bound:
        raise ApiError(400, f"{param}: {given} is above the limit of {bound}", code="limit_exceeded", param=param)


def at_most_characters(param: str, texts: Iterable[str], bound: int) -> None:
    """Raise a 400 when `texts` together are longer than `bound`: tokenizing such a prompt would keep others waiting,
    only to find that no context holds it."""
    given = sum(map(len, texts))
    if given > bound:
        raise ApiError(
            400,
            f"{param}: {given} characters are above the limit of {bound}; shorten the text",
            code="limit_exceeded",
            param=param,
        )


def from_validation(errors: list[dict[str, Any]]) -> ApiError:
    """The first of pydantic's findings about a request as a 400."""
    first = errors[0]
    param = ".".join(str(part) for part in first["loc"] if part != "body") or None
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['ctx']['error']}", code="invalid_json")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"unknown field {param!r}", code="unknown_parameter", param=param)
    if first["type"] == "missing":
        what = f"{param}: required and missing" if param else "a JSON body is required (Content-Type: application/json)"
        return ApiError(400, what, code="missing_parameter", param=param)
    message = str(first["msg"]).removeprefix("Value error, ")
    return ApiError(400, f"{param}: {message}" if param else message, code="invalid_value", param=param)


def prompts(texts: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]) -> list[Prompt]:
    """What stands in a field of `Texts`, one by one."""
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts[0], int):
        return [tuple(cast("Sequence[int]", texts))]
    return [one if isinstance(one, str) else tuple(one) for one in cast("Sequence[str | Sequence[int]]", texts)]
