"""The endpoint engine: any OpenAI-compatible API as an Engine, with every answer recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import numpy as np

from polysome.config import ConfigurationError, DataError, ResourceError
from polysome.inference.endpoint import Endpoint
from polysome.inference.engine import Conversation, Embeddings, Generation, Pool, Sampling, Scores, check_choices
from polysome.inference.recording import Recording, request_key
from polysome.inference.text import Pieces, cut
from polysome.inference.transport import Spent, Transport

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_CHAT, _SCORE, _MODELS = "/chat/completions", "/score", "/models"
_LOCAL = "name the model's folder: only a local model and Polysome's own server tell them"


class OpenAIEngine:
    """An Engine for a model behind an OpenAI-compatible API.

    Requests run at once up to the endpoint's `concurrency`, are sent again where that helps, and end with the budget.
    An answer is asked for once: greedy and seeded requests that are recorded, in the endpoint's `record` or in this
    engine's memory, are answered from there. So is one that the endpoint refused, while this engine lives.

    `seed` is sent as one number per conversation, a function of (seed, i); whether equal seeds give equal answers is
    the endpoint's business, and a recording keeps them equal.

    Args:
        endpoint: where and how to ask.

    Raises:
        ConfigurationError: the key cannot be sent, or no model is named and the endpoint does not serve exactly one.
        DataError, ResourceError: the recording cannot be used, or the endpoint not be asked which model it serves.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._transport = Transport(endpoint)
        self._recording = Recording(endpoint.record)
        self._refused: dict[str, DataError] = {}
        self.model = endpoint.model or self._only_model()
        """Its id at the endpoint."""

    @property
    def spent(self) -> Spent:
        """What this engine used so far; recorded answers cost nothing."""
        return self._transport.spent

    def generate(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | Sequence[int] | None = None,
        stop: Sequence[str] = (),
    ) -> list[Generation]:
        """See `Engine.generate`. All others are asked, and recorded, before the first refused one is told of."""
        sampling = Sampling.of(max_new_tokens, temperature, top_p, seed, stop)

        def ask(index: int, conversation: Conversation) -> Generation:
            body = self._body(index, conversation, sampling)
            return _generation(self._answer(_CHAT, body, _generation, fixed=_fixed(body)), sampling.stop)

        return self._each(ask, conversations)

    def stream(
        self,
        conversation: Conversation,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """See `Engine.stream`. A recorded answer is one piece."""
        sampling = Sampling.of(max_new_tokens, temperature, top_p, seed, stop)
        body = self._body(0, conversation, sampling)
        return self._pieces(body, sampling)

    def score(self, conversations: Sequence[Conversation], choices: Sequence[str]) -> list[Scores]:
        """See `Engine.score`. Polysome's own server tells log-likelihoods (`POST /v1/score`); chat APIs do not.

        Raises:
            ConfigurationError: the endpoint is no server of Polysome's.
        """
        check_choices(choices)
        if not self._is_polysome():
            raise ConfigurationError(
                "this endpoint tells no log-likelihoods of given answers", where=self._endpoint.url, fix=_LOCAL
            )

        def ask(index: int, conversation: Conversation) -> Scores:
            _require_messages(conversation)
            body = {"model": self.model, "messages": conversation, "choices": list(choices)}

            def read(content: Any) -> Scores:
                return _scores(content, len(choices))

            return read(self._answer(_SCORE, body, read))

        return self._each(ask, conversations)

    def embed(self, texts: Sequence[Conversation | str], *, pool: Pool) -> Embeddings:
        """Refused: no chat API tells hidden states.

        Raises:
            ConfigurationError: always.
        """
        raise ConfigurationError("an endpoint tells no hidden states", where=self._endpoint.url, fix=_LOCAL)

    def health(self) -> None:
        """See `Engine.health`. Asks for the list of models, which costs nothing; a replay needs no endpoint.

        Raises:
            ResourceError: the endpoint cannot be reached, or the budget is spent.
        """
        if self._endpoint.replay:
            return
        self._transport.require_budget()
        self._transport.get(_MODELS)

    def _each(self, ask: Callable[[int, ItemT], ResultT], items: Sequence[ItemT]) -> list[ResultT]:
        """`ask` of all items at once, in their order. A refused one waits for the others, any other error does not."""
        found: list[ResultT] = []
        refused: DataError | None = None
        with ThreadPoolExecutor(self._endpoint.concurrency, thread_name_prefix="endpoint") as threads:
            try:
                for index, future in enumerate([threads.submit(ask, *item) for item in enumerate(items)]):
                    try:
                        found.append(future.result())
                    except DataError as error:
                        refused = refused or DataError(error.what, where=f"conversation {index}", fix=error.fix)
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        if refused is not None:
            raise refused
        return found

    def _body(self, index: int, conversation: Conversation, sampling: Sampling) -> dict[str, Any]:
        _require_messages(conversation)
        body: dict[str, Any] = {
            "model": self.model,
            "messages": conversation,
            self._endpoint.max_tokens_field: sampling.max_new_tokens,
            "temperature": sampling.temperature,
        }
        if sampling.top_p != 1:
            body["top_p"] = sampling.top_p
        if sampling.temperature > 0 and (entropy := sampling.entropy(index)) is not None:
            body["seed"] = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        body |= self._endpoint.extra
        return {name: value for name, value in body.items() if value is not None}

    def _answer(self, path: str, body: dict[str, Any], read: Callable[[Any], object], *, fixed: bool = True) -> Any:
        """What the endpoint answered to a request, now or, where a request has a fixed answer, before."""
        request = self._request(path, body)
        key = request_key(request)
        if fixed and (known := self._recording.get(key)) is not None:
            return known
        if fixed and key in self._refused:
            raise self._refused[key]
        self._require_network()
        try:
            content = self._transport.post(path, body, read)
        except DataError as error:
            self._refused[key] = error
            raise
        if fixed:
            self._recording.put(key, request, content)
        return content

    def _pieces(self, body: dict[str, Any], sampling: Sampling) -> Iterator[str]:
        request = self._request(_CHAT, body)
        key = request_key(request)
        if _fixed(body) and (known := self._recording.get(key)) is not None:
            yield _generation(known, sampling.stop).text
            return
        self._require_network()
        told, text, reason, usage = Pieces(sampling.stop), "", None, None
        for event in self._transport.stream(_CHAT, body):
            usage = event.get("usage") or usage
            for choice in event.get("choices", ())[:1]:
                text += choice.get("delta", {}).get("content") or ""
                reason = choice.get("finish_reason") or reason
            if piece := told.push(text):
                yield piece
        if reason is None:
            raise ResourceError("the answer broke off", where=self._endpoint.url, fix="ask again")
        if piece := told.finish(text):
            yield piece
        if _fixed(body):
            message = {"role": "assistant", "content": text}
            whole = {"choices": [{"message": message, "finish_reason": reason}], "usage": usage}
            self._recording.put(key, request, whole)

    def _request(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return {"url": self._endpoint.url + path, "body": body}

    def _require_network(self) -> None:
        if self._endpoint.replay:
            raise DataError(
                "this request is not in the recording, and `replay` forbids to send it",
                where=str(self._endpoint.record),
                fix="run without `replay` once, with the same settings and, where sampled, a seed",
            )

    def _models(self) -> list[dict[str, Any]]:
        """What the endpoint lists, recorded like any answer."""
        request = self._request(_MODELS, {})
        listed = self._recording.get(request_key(request))
        if listed is None:
            self._require_network()
            try:
                listed = [dict(one) for one in self._transport.get(_MODELS)["data"]]
            except (TypeError, KeyError, ValueError) as error:
                raise DataError(
                    "the endpoint's list of models is none", where=self._endpoint.url, fix="check the address"
                ) from error
            self._recording.put(request_key(request), request, listed)
        return list(listed)

    def _only_model(self) -> str:
        names = [str(one.get("id")) for one in self._models()]
        if len(names) != 1:
            raise ConfigurationError(
                f"the endpoint serves {len(names)} models and none was named",
                where=self._endpoint.url,
                fix=f"name one: {', '.join(names[:20])}" if names else "name the model",
            )
        return names[0]

    def _is_polysome(self) -> bool:
        return any(one.get("id") == self.model and one.get("owned_by") == "polysome" for one in self._models())


def _fixed(body: dict[str, Any]) -> bool:
    """Whether equal requests shall have equal answers: greedy ones, and those that a seed goes with."""
    return not body.get("temperature") or "seed" in body


def _require_messages(conversation: Conversation) -> None:
    if not conversation:
        raise DataError("the conversation is empty", fix="give it a message of the user")


def _generation(content: Any, stop: Sequence[str] = ()) -> Generation:
    """A chat completion; raises ValueError, KeyError, IndexError, TypeError or AttributeError where it is none."""
    choice = content["choices"][0]
    message, told = choice["message"], choice.get("finish_reason")
    if message.get("refusal") or told == "content_filter":
        raise DataError(f"the model refuses to answer: {message.get('refusal') or told}", fix="ask something else")
    text = message["content"]
    # A model that thinks may have no token left for its answer.
    if text is None and told == "length":
        text = ""
    if not isinstance(text, str):
        raise TypeError("content is no text")
    usage = content.get("usage") or {}
    text, said_stop = cut(text, stop)
    reason: Literal["stop", "length"] = "length" if told == "length" and not said_stop else "stop"
    return Generation(text, int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0), reason)


def _scores(content: Any, count: int) -> Scores:
    sums, tokens = tuple(map(float, content["sums"])), tuple(map(int, content["tokens"]))
    if not len(sums) == len(tokens) == count or not np.isfinite(sums).all() or min(tokens) < 1:
        raise ValueError(f"not {count} finite scores of one token or more")
    return Scores(sums, tokens, int((content.get("usage") or {}).get("prompt_tokens") or 0))
