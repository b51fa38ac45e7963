"""Load on a model that answers: clients that each ask one question after another, and how long each of them waited.

    python benchmarks/serving/load.py --url http://127.0.0.1:8000 --model NAME [--clients 16] [--questions 128]

asks any OpenAI-compatible server the questions of `subject.py`, streamed, and prints what it found as JSON; exit 1
where a question got no answer. As a module it asks whatever yields pieces, so that an engine in the same process and a
server behind HTTP are measured by the same code.
"""

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np
import subject

SILENCE_SECONDS = 300.0
"""A server that says nothing for so long has failed."""


@dataclass(frozen=True)
class Question:
    """What a client asks."""

    messages: list[dict[str, str]]
    max_tokens: int


@dataclass(frozen=True)
class Piece:
    """A piece of an answer."""

    text: str
    tokens: int | None = None
    """Of the last piece: the tokens of the whole answer."""


class Refused(Exception):
    """A question got no answer, or half of one."""


Ask = Callable[[Question], AsyncIterator[Piece]]
"""Asks one question; raises Refused."""


@dataclass(frozen=True)
class Answer:
    """What one question got. Times are seconds of the load's clock."""

    began: float
    first: float | None
    """When the first text came; None for an answer without any."""
    ended: float
    text: str
    pieces: int
    """Of the text, as they came."""
    tokens: int
    problem: str = ""
    """Why there is no answer."""


@dataclass(frozen=True)
class Goal:
    """What a caller calls good."""

    first_seconds: float
    per_token_seconds: float


@dataclass(frozen=True)
class Step:
    """A part of a load whose clients change."""

    seconds: float
    clients: int


async def closed(ask: Ask, questions: Sequence[Question], *, clients: int) -> list[Answer]:
    """Every question once, by so many clients at once; the answers stand in the order of the questions."""
    clock = _clock()
    answers: list[Answer | None] = [None] * len(questions)
    left = iter(range(len(questions)))

    async def client() -> None:
        for index in left:
            answers[index] = await _timed(ask, questions[index], clock)

    await asyncio.gather(*(client() for _ in range(clients)))
    return [answer for answer in answers if answer is not None]


async def stepped(ask: Ask, questions: Iterable[Question], steps: Sequence[Step]) -> list[Answer]:
    """Questions without end by as many clients as the step has; a client that leaves waits for its answer first."""
    clock = _clock()
    answers: list[Answer] = []
    left, wanted = iter(questions), 0
    running: dict[int, asyncio.Task[None]] = {}

    async def client(index: int) -> None:
        while index < wanted:
            answers.append(await _timed(ask, next(left), clock))

    for step in steps:
        wanted = step.clients
        for index in range(wanted):
            if index not in running or running[index].done():
                running[index] = asyncio.create_task(client(index))
        await asyncio.sleep(step.seconds)
    wanted = 0
    await asyncio.gather(*running.values())
    return answers


def over_http(session: aiohttp.ClientSession, url: str, model: str) -> Ask:
    """Asks `POST /v1/chat/completions`, greedy and streamed. An answer is whole when its usage was told."""

    async def ask(question: Question) -> AsyncIterator[Piece]:
        body = {
            "model": model,
            "messages": question.messages,
            "max_tokens": question.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        told = False
        try:
            async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                if response.status != 200:
                    raise Refused(f"{response.status}: {(await response.text())[:300]}")
                async for line in response.content:
                    if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                        continue
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise Refused(str(event["error"])[:300])
                    text = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
                    usage = event.get("usage")
                    told = told or bool(usage)
                    if text or usage:
                        yield Piece(text, usage["completion_tokens"] if usage else None)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Refused(f"{type(error).__name__}: {error}") from error
        if not told:
            raise Refused("the stream broke off")

    return ask


@asynccontextmanager
async def connected() -> AsyncIterator[aiohttp.ClientSession]:
    """A session with as many connections as there are clients, none of which ends before the server does."""
    timeout = aiohttp.ClientTimeout(total=None, sock_read=SILENCE_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


def summary(answers: Sequence[Answer], goal: Goal) -> dict[str, Any]:
    """What a load found; times in ms, `nan` where nothing was answered.

    `goodput` is of questions answered within the goal: their number per second, and their share of all.
    """
    whole = [answer for answer in answers if not answer.problem]
    seconds = max(answer.ended for answer in answers) - min(answer.began for answer in answers)
    streamed = [answer for answer in whole if answer.first is not None and answer.tokens > 1]
    first = [answer.first - answer.began for answer in whole if answer.first is not None]
    tokens = sum(answer.tokens for answer in whole)
    good = sum(
        answer.first - answer.began <= goal.first_seconds and _per_token(answer) <= goal.per_token_seconds
        for answer in whole
        if answer.first is not None
    )
    return {
        "questions": len(answers),
        "errors": len(answers) - len(whole),
        "problems": sorted({answer.problem for answer in answers if answer.problem})[:3],
        "seconds": round(seconds, 3),
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds, 1),
        "pieces_per_token": round(sum(answer.pieces for answer in whole) / max(1, tokens), 3),
        "first_token_ms": _percentiles(first),
        "per_token_ms": _percentiles([_per_token(answer) for answer in streamed]),
        "answer_ms": _percentiles([answer.ended - answer.began for answer in whole]),
        "goodput": {
            "goal": f"first token in {goal.first_seconds:g} s, others in {1000 * goal.per_token_seconds:g} ms each",
            "per_second": round(good / seconds, 2),
            "share": round(good / len(answers), 3),
        },
    }


def _clock() -> Callable[[], float]:
    start = time.perf_counter()
    return lambda: time.perf_counter() - start


async def _timed(ask: Ask, question: Question, clock: Callable[[], float]) -> Answer:
    texts: list[str] = []
    first, tokens, problem = None, 0, ""
    began = clock()
    try:
        async for piece in ask(question):
            if piece.text:
                first = clock() if first is None else first
                texts.append(piece.text)
            if piece.tokens is not None:
                tokens = piece.tokens
    except Refused as error:
        problem = str(error)
    return Answer(began, first, clock(), "".join(texts), len(texts), tokens, problem)


def _per_token(answer: Answer) -> float:
    assert answer.first is not None
    return (answer.ended - answer.first) / max(1, answer.tokens - 1)


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    found = np.percentile(seconds, (50, 95, 99)) if seconds else [float("nan")] * 3
    return {name: round(1000 * float(value), 2) for name, value in zip(("p50", "p95", "p99"), found, strict=True)}


def questions(count: int, max_tokens: int, *, seed: int = subject.SEED) -> list[Question]:
    """The first questions of the subject."""
    return [Question(chat, max_tokens) for chat in subject.chats(count, seed=seed)]


def endless(asked: Sequence[Question]) -> Iterator[Question]:
    """The same questions over and over."""
    return itertools.cycle(asked)


def main() -> int:
    """Load a server that runs already."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="of the server, without /v1")
    parser.add_argument("--model", default=subject.NAME)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--questions", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--first-seconds", type=float, default=1.0, help="of the goal")
    parser.add_argument("--per-token-seconds", type=float, default=0.05, help="of the goal")
    options = parser.parse_args()
    if options.url is None:
        parser.print_help()
        return 0

    async def load() -> list[Answer]:
        async with connected() as session:
            ask = over_http(session, options.url, options.model)
            return await closed(ask, questions(options.questions, options.max_tokens), clients=options.clients)

    found = summary(asyncio.run(load()), Goal(options.first_seconds, options.per_token_seconds))
    print(json.dumps(found, indent=2))
    return int(found["errors"] > 0)


if __name__ == "__main__":
    sys.exit(main())
