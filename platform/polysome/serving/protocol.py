"""The HTTP API's requests and errors: frozen models that refuse unknown fields, and OpenAI's error shape."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from polysome.config import Config
from polysome.serving.prediction import RawRecord


class Message(Config):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(min_length=1)]


class ChatRequest(Config):
    """`POST /v1/chat/completions`."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """Newer name of `max_tokens`; at most one of the two."""
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    n: Literal[1] = 1
    stream: bool = False
    user: Annotated[str, Field(max_length=256)] | None = None
    """The caller's own name for its user; not used."""

    @model_validator(mode="after")
    def _whole(self) -> "ChatRequest":
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("give max_tokens or max_completion_tokens, not both")
        if self.messages[-1].role != "user":
            raise ValueError(f"the last message must be the user's, not the {self.messages[-1].role}'s")
        return self


class ScoreRequest(Config):
    """`POST /v1/score`: how likely each choice is as the answer."""

    messages: Annotated[list[Message], Field(min_length=1)]
    choices: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    model: str | None = None


class PredictRequest(Config):
    """`POST /v1/predict`."""

    task: Annotated[str, Field(min_length=1, max_length=128)]
    """Name of a data set in `datasets_spec/` that has a task."""
    sequences: Annotated[list[RawRecord], Field(min_length=1)]
    """One sequence per record; where the task has two molecules, an object with a sequence for each role."""
    model: str | None = None


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


def from_validation(errors: list[dict[str, Any]]) -> ApiError:
    """The first of pydantic's findings about a request body as a 400."""
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
