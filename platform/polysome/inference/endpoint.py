"""Endpoints: where an OpenAI-compatible model answers, how patiently it is asked, and what it may cost."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, JsonValue, field_validator, model_validator

from polysome.config import Config, validate


class Budget(Config):
    """What one engine may spend; no further request begins once a bound is reached.

    Requests under way are finished, so tokens and cost may exceed their bounds by what those use. Recorded answers cost
    nothing.
    """

    max_requests: Annotated[int, Field(ge=1)] | None = None
    """Each attempt counts."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Of prompts and answers together, as the endpoint tells them."""
    max_cost: Annotated[float, Field(gt=0)] | None = None
    """In the currency of the prices, both of which it needs."""
    price_per_million_prompt_tokens: Annotated[float, Field(ge=0)] | None = None
    price_per_million_completion_tokens: Annotated[float, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _cost_has_prices(self) -> Budget:
        if self.max_cost is not None and self.prices is None:
            raise ValueError(
                "max_cost needs price_per_million_prompt_tokens and price_per_million_completion_tokens beside it"
            )
        return self

    @property
    def prices(self) -> tuple[float, float] | None:
        """Of a prompt token and of a generated one; None unless both are declared."""
        prompt, completion = self.price_per_million_prompt_tokens, self.price_per_million_completion_tokens
        return None if prompt is None or completion is None else (prompt / 1e6, completion / 1e6)


class Endpoint(Config):
    """A model behind an OpenAI-compatible API."""

    url: str
    """Base address, as `https://api.openai.com/v1`; `/chat/completions` follows it."""
    model: str | None = None
    """The model's id; None: the only one that the endpoint lists."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; where it is not set, no key is sent."""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    """Requests under way at once."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 120
    """Of one attempt, without an answer or, in a stream, without a further piece of it."""
    attempts: Annotated[int, Field(ge=1, le=100)] = 6
    """Of one request: after 408, 409, 429, 5xx, timeouts, lost connections and answers that are none."""
    backoff_seconds: Annotated[float, Field(ge=0)] = 1
    """Wait after the first failed attempt; doubles with each, half of it is random. `Retry-After` goes before."""
    longest_wait_seconds: Annotated[float, Field(ge=0)] = 120
    """Of one wait; an endpoint that asks for a longer one is given up."""
    budget: Budget = Budget()
    record: str | None = None
    """Local SQLite file of every answer, with its prompt; a request that stands there is not sent again."""
    replay: bool = False
    """Answer from `record` alone, and never use the network."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls the bound on generated tokens; newer models of OpenAI want `max_completion_tokens`."""
    extra: dict[str, JsonValue] = {}
    """Further fields of every request's body; null removes one, as some models take no `temperature`."""

    @field_validator("url")
    @classmethod
    def _address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no http(s) address, for example https://api.openai.com/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "the address holds a user, a password, a query or a fragment; a key comes from key_variable"
            )
        return url.rstrip("/")

    @model_validator(mode="after")
    def _replay_has_a_record(self) -> Endpoint:
        if self.replay and self.record is None:
            raise ValueError("replay needs the file to replay in `record`")
        return self


def as_endpoint(source: str | Endpoint) -> Endpoint | None:
    """The endpoint that `source` is or, as an http(s) address, names; None for anything else.

    Raises:
        ConfigurationError: the address is not a plain one.
    """
    if isinstance(source, Endpoint):
        return source
    if source.startswith(("http://", "https://")):
        return validate(Endpoint, {"url": source}, where="model")
    return None
