"""vLLM as an AsyncEngine: prompts in as token ids, what `ray.serve.llm`'s engine answers out as Polysome's answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, cast

from polysome.config import ConfigurationError, DataError, ResourceError
from polysome.data.tokenizer_files import load_tokenizer
from polysome.inference.asynchronous import Delta, Load, Traced
from polysome.inference.engine import Embeddings, Generation, Pool, Prompt, Sampling, Scores, check_choices
from polysome.inference.prompts import encode, spelt
from polysome.storage import join, read_json
from polysome.storage.local import local_folder

_CHOICES_AT_ONCE = 64
"""Prompts in one request to vLLM."""

_NEUTRAL = {
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""What vLLM would take from the model's generation_config.json where a request does not say."""


@dataclass(frozen=True)
class _Lora:
    """What the engine's `resolve_lora` reads."""

    model_id: str
    local_path: str


class VllmEngine:
    """See `AsyncEngine`. vLLM batches, caches and draws by itself: its answers are the model's, its draws its own.

    Args:
        engine: a started engine of `ray.serve.llm`: `completions`, `resolve_lora` and `check_health`.
        request: makes the requests that `completions` takes; `CompletionRequest` of `ray.serve.llm`.
        folder: the model folder that the engine was started with; its tokenizer reads the prompts.
        name: under which the engine knows the model.
    """

    def __init__(self, engine: Any, request: Callable[..., Any], *, folder: str, name: str) -> None:
        self._engine, self._request, self._name = engine, request, name
        folder = local_folder(folder)
        self._tokenizer = load_tokenizer(folder)
        config = read_json(join(folder, "config.json"))
        self._context = int(
            config.get("text_config", config).get("max_position_embeddings") or self._tokenizer.model_max_length
        )
        self._adapters: set[str] = set()
        self._running = 0

    async def generate(self, prompt: Prompt, sampling: Sampling, *, adapter: str | None = None) -> AsyncIterator[Delta]:
        """See `AsyncEngine.generate`."""
        ids = self._read(prompt)
        entropy = sampling.entropy(0)
        request = self._asked(
            adapter,
            prompt=ids,
            max_tokens=min(sampling.max_new_tokens, self._context - len(ids)),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=None if entropy is None else entropy[0],
            stop=list(sampling.stop),
            stream=True,
            return_token_ids=True,
            **_NEUTRAL,
        )
        texts: list[str] = []
        tokens: list[int] = []
        ended = None
        self._running += 1
        try:
            async with aclosing(self._engine.completions(request)) as events:
                async for event in events:
                    for choice in _choices(event):
                        tokens += choice.get("token_ids") or []
                        texts.append(choice["text"])
                        ended = choice.get("finish_reason") or ended
                        if texts[-1] and ended is None:
                            yield Delta(texts[-1])
        finally:
            self._running -= 1
        if ended not in ("stop", "length"):
            raise ResourceError(f"vLLM ended the answer: {ended or 'no end'}", fix="ask again")
        reason = cast(Literal["stop", "length"], ended)
        # The last piece comes with the end, and whatever was not told before it.
        yield Delta(texts[-1], Generation("".join(texts), len(ids), len(tokens), reason, tuple(tokens)))

    async def score(self, prompt: Prompt, choices: Sequence[str], *, adapter: str | None = None) -> Scores:
        """See `AsyncEngine.score`."""
        check_choices(choices)
        ids = self._read(prompt)
        encoded = [list(self._tokenizer.encode(choice, add_special_tokens=False)) for choice in choices]
        longest = max(map(len, encoded))
        if len(ids) + longest > self._context:
            raise DataError(
                f"the prompt has {len(ids)} tokens and the longest choice {longest}, the model's context is "
                f"{self._context}",
                fix="shorten the sequence, the question or the choices, or use a model with a longer context",
            )
        sums: list[float] = []
        for start in range(0, len(encoded), _CHOICES_AT_ONCE):
            part = encoded[start : start + _CHOICES_AT_ONCE]
            found = await self._seen([[*ids, *choice] for choice in part], top=0, adapter=adapter)
            for choice, places in zip(part, found, strict=True):
                told = [place[token].logprob for token, place in zip(choice, places[len(ids) :], strict=True)]
                sums.append(float(sum(told)))
        return Scores(tuple(sums), tuple(map(len, encoded)), len(ids))

    async def embed(self, texts: Sequence[Prompt], *, pool: Pool, adapter: str | None = None) -> Embeddings:
        """Refused: vLLM gives either text or vectors of a model.

        Raises:
            ConfigurationError: always.
        """
        raise ConfigurationError("vLLM serves this model's text, no vectors", fix="serve it with `engine: batch`")

    async def trace(self, prompt: Prompt, answer: Sequence[int], *, top: int, adapter: str | None = None) -> Traced:
        """See `AsyncEngine.trace`."""
        ids = [*encode(self._tokenizer, prompt), *encode(self._tokenizer, tuple(answer))]
        if not 1 <= len(ids) <= self._context:
            raise DataError(
                f"prompt and answer have {len(ids)} tokens; the model's context is {self._context}",
                fix="shorten the prompt, or use a model with a longer context",
            )
        (places,) = await self._seen([ids], top=top, adapter=adapter)
        logprobs: list[float | None] = [None]
        best: list[tuple[tuple[str, float], ...]] = [()]
        for token, place in zip(ids[1:], places[1:], strict=True):
            logprobs.append(float(place[token].logprob))
            ranked = sorted(place.items(), key=lambda one: one[1].logprob, reverse=True)[:top]
            best.append(tuple((str(self._tokenizer.decode([other])), float(seen.logprob)) for other, seen in ranked))
        return Traced(tuple(ids), tuple(spelt(self._tokenizer, ids)), tuple(logprobs), tuple(best))

    async def load_adapter(self, folder: str, *, name: str) -> None:
        """See `AsyncEngine.load_adapter`; of adapters that copy layers or bring words vLLM knows nothing."""
        if name in self._adapters:
            raise ConfigurationError(f"there is an adapter {name!r} already", where=folder, fix="give it another name")
        try:
            await self._engine.resolve_lora(_Lora(name, local_folder(folder)))
        except ValueError as error:
            raise ConfigurationError(
                f"vLLM does not take the adapter: {error}",
                where=folder,
                fix="serve it with `engine: batch`, or its merged export",
            ) from error
        self._adapters.add(name)

    async def unload_adapter(self, name: str) -> None:
        """See `AsyncEngine.unload_adapter`; vLLM gives its memory to the next adapter that needs it."""
        self._require_adapter(name)
        self._adapters.remove(name)

    def load(self) -> Load:
        """See `AsyncEngine.load`; what waits inside vLLM runs, too."""
        return Load(running=self._running, waiting=0)

    async def health(self) -> None:
        """See `AsyncEngine.health`."""
        try:
            await self._engine.check_health()
        except Exception as error:  # vLLM's own, of which there are many; each means that the engine is dead.
            raise ResourceError(f"vLLM has ended: {error}", fix="ask again; another replica answers") from error
        async for _ in self.generate((0,), Sampling(1)):
            pass

    async def close(self) -> None:
        """Nothing is left to end: vLLM goes with the replica's process."""

    def _read(self, prompt: Prompt) -> list[int]:
        ids = encode(self._tokenizer, prompt)
        if not 1 <= len(ids) < self._context:
            raise DataError(
                f"the prompt has {len(ids)} tokens, the model's context is {self._context} "
                "and must hold at least one token of prompt and one of an answer",
                fix="shorten the sequence or the question, or use a model with a longer context",
            )
        return ids

    def _asked(self, adapter: str | None, **fields: Any) -> Any:
        if adapter is not None:
            self._require_adapter(adapter)
        return self._request(model=adapter or self._name, **fields)

    async def _seen(self, prompts: Sequence[list[int]], *, top: int, adapter: str | None) -> list[list[dict[int, Any]]]:
        """Of each prompt and token the log-probabilities in its place, its own and the best; None for the first."""
        request = self._asked(
            adapter, prompt=list(prompts), max_tokens=1, temperature=0.0, prompt_logprobs=top, **_NEUTRAL
        )
        async with aclosing(self._engine.completions(request)) as events:
            async for response in events:
                _require_answer(response)
                ordered = sorted(response.choices, key=lambda choice: choice.index)
                return [choice.prompt_logprobs for choice in ordered]
        raise ResourceError("vLLM gave no answer", fix="ask again")

    def _require_adapter(self, name: str) -> None:
        if name not in self._adapters:
            raise ConfigurationError(
                f"no adapter {name!r} is loaded",
                where="adapter",
                fix=f"load it, or choose of: {', '.join(sorted(self._adapters))}",
            )


def _choices(event: Any) -> list[dict[str, Any]]:
    """The choices of one server-sent event."""
    _require_answer(event)
    data = event.removeprefix("data:").strip()
    if data == "[DONE]":
        return []
    content = json.loads(data)
    if "error" in content:
        raise _refused(content["error"]["message"], int(content["error"]["code"]))
    choices: list[dict[str, Any]] = content["choices"]
    return choices


def _require_answer(answer: Any) -> None:
    error = getattr(answer, "error", None)
    if error is not None:
        raise _refused(error.message, int(error.code))


def _refused(message: str, code: int) -> Exception:
    if code >= 500:
        return ResourceError(f"vLLM failed: {message}", fix="ask again")
    return DataError(f"vLLM refuses this: {message}", fix="shorten or mend the question")
