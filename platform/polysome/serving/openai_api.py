"""OpenAI's routes, models, completions, chat and embeddings, and `/v1/score`, which OpenAI does not have."""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Path, Request

from polysome.config import ConfigurationError
from polysome.inference.asynchronous import Traced
from polysome.inference.engine import Generation, Prompt, Sampling
from polysome.serving import sse
from polysome.serving.calls import Pool, Target
from polysome.serving.concurrently import closing, merged, together, whole
from polysome.serving.context import Context
from polysome.serving.protocol import (
    ApiError,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    ScoreRequest,
    at_most,
    at_most_characters,
    prompts,
)

if TYPE_CHECKING:
    from polysome.serving.adapters import Published

_LEAST_LOGPROB = -9999.0
"""JSON has no minus infinity; OpenAI tells this number."""

_STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
"""For the document alone: what a request with `stream` is answered with."""

Choice = Callable[[int, str, str | None], dict[str, Any]]
"""A streamed choice: its index, its next piece of text, and why it ended."""


@dataclass(frozen=True)
class _Asked:
    """One request's questions: every prompt `n` times, and what is told with each answer."""

    context: Context
    target: Target
    prompts: Sequence[Prompt]
    sampling: Sampling | None
    """None generates nothing, and traces the prompts."""
    n: int = 1
    top: int | None = None
    """The likeliest tokens told for each place; None tells no log-likelihoods."""
    echo: bool = False

    @property
    def questions(self) -> list[tuple[Prompt, Sampling | None]]:
        """In the order of the choices' indices."""
        return [(prompt, self._draw(index)) for prompt in self.prompts for index in range(self.n)]

    def _draw(self, index: int) -> Sampling | None:
        if self.sampling is None or not isinstance(self.sampling.seed, int):
            return self.sampling
        return replace(self.sampling, seed=self.sampling.seed + index)

    async def answers(self) -> list[tuple[Generation, Traced | None]]:
        """One per choice, with its trace where something needs it."""
        work = together(self._answer(prompt, sampling) for prompt, sampling in self.questions)
        return await self.context.within(self.target, work)

    async def _answer(self, prompt: Prompt, sampling: Sampling | None) -> tuple[Generation, Traced | None]:
        pool = self._pool
        if sampling is None:
            traced = await pool.trace(prompt, (), self.top or 0, self.target)
            return Generation("", len(traced.tokens), 0, "length"), traced
        generation = await whole(pool.generate(prompt, sampling, self.target, stream=False))
        if self.top is None and (not self.echo or isinstance(prompt, str)):
            return generation, None
        if len(generation.tokens) != generation.completion_tokens:
            raise ConfigurationError("this engine tells no log-likelihoods of its answers", fix="leave logprobs out")
        return generation, await pool.trace(prompt, generation.tokens, self.top or 0, self.target)

    async def events(
        self, head: dict[str, Any], choice: Choice, *, opening: Choice | None, usage: bool
    ) -> AsyncGenerator[sse.Event | None, None]:
        """The answers as they come; None in silence."""
        streams = [
            self._pool.generate(prompt, sampling, self.target)
            for prompt, sampling in self.questions
            if sampling is not None
        ]
        whole_answers: dict[int, Generation] = {}
        opened: set[int] = set()
        head = {**head, "usage": None} if usage else head
        pieces = merged(streams, deadline=self.target.deadline, silence=sse.HEARTBEAT_SECONDS)
        async with closing(pieces) as items:
            async for item in items:
                if item is None:
                    yield None
                    continue
                index, piece = item
                if opening is not None and index not in opened:
                    opened.add(index)
                    yield {**head, "choices": [opening(index, "", None)]}
                if piece.text:
                    yield {**head, "choices": [choice(index, piece.text, None)]}
                if piece.generation is not None:
                    whole_answers[index] = piece.generation
                    yield {**head, "choices": [choice(index, "", piece.generation.finish_reason)]}
        if usage:
            yield {**head, "choices": [], "usage": self.usage([whole_answers[i] for i in range(len(streams))])}

    def usage(self, generations: Sequence[Generation]) -> dict[str, int]:
        """Tokens of all answers; a prompt counts once, however often it was answered."""
        asked = sum(generation.prompt_tokens for generation in generations[:: self.n])
        generated = sum(generation.completion_tokens for generation in generations)
        return {"prompt_tokens": asked, "completion_tokens": generated, "total_tokens": asked + generated}

    def head(self, prefix: str, kind: str) -> dict[str, Any]:
        """What every answer and every event of a stream begins with."""
        return {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": self.context.model_id(self.target),
            "system_fingerprint": self.context.system_fingerprint(self.target),
        }

    @property
    def _pool(self) -> Pool:
        return self.context.pool if len(self.prompts) * self.n == 1 else self.context.bulk


def router(context: Context) -> APIRouter:
    """The routes of one gateway."""
    limits = context.config.limits
    routes = APIRouter()

    def sampling(request: ChatRequest | CompletionRequest, max_tokens: int) -> Sampling:
        at_most("n", request.n, limits.n)
        return Sampling(max_tokens, request.temperature, request.top_p, request.seed, request.stop_strings)

    def each_at_most(param: str, texts: Sequence[Prompt]) -> None:
        for text in texts:
            if isinstance(text, str):
                at_most_characters(param, [text], limits.sequence_characters)
            elif isinstance(text, tuple):
                # Of a token at least a character.
                at_most(param, len(text), limits.sequence_characters)

    @routes.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The base, and the current version of every published adapter."""
        adapters = await asyncio.to_thread(context.registry.list) if context.registry is not None else []
        return {"object": "list", "data": [_card(context, None), *(_card(context, one) for one in adapters)]}

    @routes.get("/v1/models/{id}")
    async def model(name: Annotated[str, Path(alias="id")]) -> dict[str, Any]:
        """One of them."""
        return _card(context, (await context.target(name)).adapter)

    @routes.post("/v1/chat/completions", response_model=None, responses=_STREAMED)
    async def chat(request: ChatRequest, http: Request) -> Any:
        """An answer to a conversation."""
        target = await context.target(request.model)
        at_most("messages", len(request.messages), limits.messages)
        at_most_characters("messages", (message.content for message in request.messages), limits.sequence_characters)
        at_most("top_logprobs", request.top_logprobs or 0, limits.logprobs)
        wanted = request.max_tokens or request.max_completion_tokens
        if wanted:
            at_most("max_tokens" if request.max_tokens else "max_completion_tokens", wanted, limits.max_tokens)
        asked = _Asked(
            context,
            target,
            [[message.model_dump() for message in request.messages]],
            sampling(request, wanted or limits.default_max_tokens),
            request.n,
            (request.top_logprobs or 0) if request.logprobs else None,
        )
        if request.stream:
            if request.logprobs:
                raise _not_streamed("logprobs")
            head = asked.head("chatcmpl", "chat.completion.chunk")
            events = asked.events(head, _chat_choice, opening=_chat_opening, usage=request.usage_in_stream)
            return await sse.event_stream(events, request_id=http.headers.get("x-request-id", ""))
        answers = await asked.answers()
        return {
            **asked.head("chatcmpl", "chat.completion"),
            "choices": [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": generation.text},
                    "finish_reason": generation.finish_reason,
                    "logprobs": None if traced is None else _chat_logprobs(traced, len(generation.tokens)),
                }
                for index, (generation, traced) in enumerate(answers)
            ],
            "usage": asked.usage([generation for generation, _ in answers]),
        }

    @routes.post("/v1/completions", response_model=None, responses=_STREAMED)
    async def completions(request: CompletionRequest, http: Request) -> Any:
        """The continuation of one text or of several."""
        target = await context.target(request.model)
        given = prompts(request.prompt)
        at_most("prompt", len(given), limits.prompts)
        each_at_most("prompt", given)
        at_most("logprobs", request.logprobs or 0, limits.logprobs)
        at_most("max_tokens", request.max_tokens or 0, limits.max_tokens)
        wanted = limits.default_max_tokens if request.max_tokens is None else request.max_tokens
        drawn = sampling(request, wanted or 1)
        asked = _Asked(context, target, given, drawn if wanted else None, request.n, request.logprobs, request.echo)
        if request.stream:
            if request.logprobs is not None or request.echo:
                raise _not_streamed("echo" if request.echo else "logprobs")
            head = asked.head("cmpl", "text_completion")
            events = asked.events(head, _text_choice, opening=None, usage=request.usage_in_stream)
            return await sse.event_stream(events, request_id=http.headers.get("x-request-id", ""))
        answers = await asked.answers()
        return {
            **asked.head("cmpl", "text_completion"),
            "choices": [
                {
                    **_text_choice(index, _echoed(prompt, generation, traced, echo=request.echo), None),
                    "finish_reason": generation.finish_reason,
                    "logprobs": None
                    if traced is None or request.logprobs is None
                    else _text_logprobs(traced, 0 if request.echo else len(traced.tokens) - len(generation.tokens)),
                }
                for index, ((prompt, _), (generation, traced)) in enumerate(zip(asked.questions, answers, strict=True))
            ],
            "usage": asked.usage([generation for generation, _ in answers]),
        }

    @routes.post("/v1/embeddings")
    async def embeddings(request: EmbeddingRequest) -> dict[str, Any]:
        """One vector per text, of the hidden states after the last layer."""
        target = await context.target(request.model)
        texts = prompts(request.input)
        at_most("input", len(texts), limits.prompts)
        each_at_most("input", texts)
        found = await context.within(target, context.pool.embed(texts, request.pool, target))
        read = sum(found.tokens)
        return {
            "object": "list",
            "model": context.model_id(target),
            "system_fingerprint": context.system_fingerprint(target),
            "data": [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": base64.b64encode(vector.tobytes()).decode()
                    if request.encoding_format == "base64"
                    else vector.tolist(),
                }
                for index, vector in enumerate(found.vectors.astype("<f4"))
            ],
            "usage": {"prompt_tokens": read, "total_tokens": read},
        }

    @routes.post("/v1/score")
    async def score(request: ScoreRequest) -> dict[str, Any]:
        """The log-likelihood of each choice as the answer to a conversation."""
        target = await context.target(request.model)
        at_most("messages", len(request.messages), limits.messages)
        at_most("choices", len(request.choices), limits.choices)
        at_most_characters("messages", (message.content for message in request.messages), limits.sequence_characters)
        each_at_most("choices", request.choices)
        conversation = [message.model_dump() for message in request.messages]
        scores = await context.within(target, context.pool.score(conversation, request.choices, target))
        return {
            "object": "score",
            "model": context.model_id(target),
            "system_fingerprint": context.system_fingerprint(target),
            "sums": list(scores.sums),
            "tokens": list(scores.tokens),
            "usage": {
                "prompt_tokens": scores.prompt_tokens,
                "total_tokens": scores.prompt_tokens + sum(scores.tokens),
            },
        }

    return routes


def _card(context: Context, adapter: Published | None) -> dict[str, Any]:
    target = Target(0.0, adapter)
    return {
        "id": context.model_id(target),
        "object": "model",
        "created": context.created,
        "owned_by": "polysome",
        "root": context.config.name,
        "parent": None if adapter is None else context.config.name,
        "max_model_len": context.max_model_len,
        "fingerprint": context.system_fingerprint(target),
        "adapter_fingerprint": adapter.adapter_fingerprint if adapter else None,
    }


def _not_streamed(field: str) -> ApiError:
    return ApiError(400, f"{field} is not streamed; send stream: false", code="unsupported", param=field)


def _chat_opening(index: int, text: str, reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": {"role": "assistant", "content": text}, "finish_reason": reason}


def _chat_choice(index: int, text: str, reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": {"content": text} if text else {}, "finish_reason": reason}


def _text_choice(index: int, text: str, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "finish_reason": reason, "logprobs": None}


def _echoed(prompt: Prompt, generation: Generation, traced: Traced | None, *, echo: bool) -> str:
    if not echo:
        return generation.text
    if isinstance(prompt, str):
        return prompt + generation.text
    assert traced is not None
    return "".join(traced.texts[: len(traced.tokens) - len(generation.tokens)]) + generation.text


def _logprob(value: float) -> float:
    return max(value, _LEAST_LOGPROB)


def _text_logprobs(traced: Traced, first: int) -> dict[str, Any]:
    """OpenAI's older shape, from token `first` on; the token itself is always among the likeliest."""
    offsets, offset = [], 0
    for text in traced.texts[first:]:
        offsets.append(offset)
        offset += len(text)
    likeliest: list[dict[str, float] | None] = []
    for text, logprob, top in list(zip(traced.texts, traced.logprobs, traced.top, strict=True))[first:]:
        if logprob is None:
            likeliest.append(None)
            continue
        told: dict[str, float] = {}
        for other, value in (*top, (text, logprob)):
            told.setdefault(other, _logprob(value))
        likeliest.append(told)
    return {
        "tokens": list(traced.texts[first:]),
        "token_logprobs": [None if value is None else _logprob(value) for value in traced.logprobs[first:]],
        "top_logprobs": likeliest,
        "text_offset": offsets,
    }


def _chat_logprobs(traced: Traced, count: int) -> dict[str, Any]:
    """OpenAI's newer shape, of the last `count` tokens."""

    def told(text: str, logprob: float | None) -> dict[str, Any]:
        assert logprob is not None  # A token of an answer has a prompt before it.
        return {"token": text, "logprob": _logprob(logprob), "bytes": list(text.encode())}

    places = list(zip(traced.texts, traced.logprobs, traced.top, strict=True))[len(traced.tokens) - count :]
    return {
        "content": [
            {**told(text, logprob), "top_logprobs": [told(*one) for one in top]} for text, logprob, top in places
        ]
    }
