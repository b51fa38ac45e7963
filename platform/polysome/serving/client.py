"""The client side of a prediction: records from the command line or files, answers over HTTP or from a local folder."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from polysome.config import Config, ConfigurationError, DataError, PolysomeError, ResourceError
from polysome.data.render import messages
from polysome.inference.asynchronous import Delta
from polysome.inference.engine import Conversation, Engine, Generation, Sampling, Scores
from polysome.inference.engine import Prompt as Asked
from polysome.inference.folder import model_fingerprint
from polysome.serving.calibrations import Calibrations
from polysome.serving.calls import Target
from polysome.serving.config import ServeConfig
from polysome.serving.prediction import Answered, Prediction, Predictor, RawRecord, Record, read_record, task_spec
from polysome.serving.records import read_entries
from polysome.specs import Prompt

KEY_VARIABLE = "POLYSOME_API_KEY"
"""Environment variable that holds the API key."""

_RECORDS_AT_ONCE = 32
"""To begin with; a server's `limits.records` and `limits.body_bytes` may allow fewer."""
_ATTEMPTS = 6
_ENDINGS = (".fa", ".fasta", ".faa", ".fna", ".csv", ".tsv")

ConfigT = TypeVar("ConfigT", bound=Config)


@dataclass(frozen=True)
class Answers:
    """Predictions in the order of the records, and who made them."""

    told: Answered
    predictions: tuple[Prediction, ...]


def read_records(arguments: Sequence[str], task: str | None = None) -> list[tuple[str, RawRecord]]:
    """Names and raw records from what stands on a command line.

    Each argument is a FASTA file or a table with a header (plain or compressed; `-` for standard input), a sequence, or
    `role=SEQUENCE,role=SEQUENCE` for one record of a task with several molecules.

    Args:
        task: whose molecules a table's columns are; without it there can be none.

    Raises:
        DataError: a file is neither FASTA nor a table of the task, or cannot be read.
        ConfigurationError: nothing was given, or the task is not declared.
    """
    records: list[tuple[str, RawRecord]] = []
    for argument in arguments:
        if argument == "-" or os.path.isfile(argument):
            records += _read_file(argument, task)
        elif "/" in argument or argument.lower().removesuffix(".gz").endswith(_ENDINGS):
            raise DataError(f"no such file: {argument}", where="command line", fix="check the path")
        elif "=" in argument:
            pairs = [part.partition("=") for part in argument.split(",")]
            records.append((str(len(records) + 1), {role: sequence for role, _, sequence in pairs}))
        else:
            records.append((str(len(records) + 1), argument))
    if not records:
        raise ConfigurationError("no sequence was given", where="command line", fix="give sequences or a FASTA file")
    return records


def _read_file(path: str, task: str | None) -> list[tuple[str, RawRecord]]:
    """The records of a file; of standard input through a temporary one."""
    with tempfile.NamedTemporaryFile("w") as piped:
        if path == "-":
            piped.write(sys.stdin.read())
            piped.flush()
        records: list[tuple[str, RawRecord]] = []
        spec = None if task is None else task_spec(task)
        for entry in read_entries(piped.name if path == "-" else os.path.abspath(path), spec):
            if entry.raw is None:
                raise DataError(entry.problem, where=f"{path}, record {entry.id}", fix="mend the record")
            records.append((entry.id, entry.raw))
    return records


def ask_server(
    url: str,
    task: str,
    records: Sequence[RawRecord],
    *,
    model: str | None = None,
    key: str | None = None,
    timeout: float = 120.0,
) -> Answers:
    """The predictions of a served model; a server that is busy is asked again, as late as it says, and one that takes
    fewer records at once for half as many.

    Args:
        model: name of an adapter, or of one of its versions; None asks the base.
        key: API key; None sends that of `POLYSOME_API_KEY`, if any.

    Raises:
        ResourceError: nothing answers at `url`, or it is overloaded or failing for long.
        ConfigurationError: the server refuses the request.
    """
    import httpx

    content: dict[str, Any] = {}
    predictions: list[Prediction] = []
    with httpx.Client(base_url=url.rstrip("/"), timeout=timeout, trust_env=False, headers=_headers(key)) as client:
        start, at_once = 0, _RECORDS_AT_ONCE
        while start < len(records):
            part = list(records[start : start + at_once])
            body = {"task": task, "sequences": part}
            answer = _post(client, url, {**body, "model": model} if model else body)
            if len(part) > 1 and _is_too_much(answer):
                at_once = len(part) // 2
                continue
            if answer.status_code != 200:
                raise _refusal(url, answer)
            content = answer.json()
            found = [_known(Prediction, item) for item in content["predictions"]]
            predictions += [one.model_copy(update={"index": start + one.index}) for one in found]
            start += len(part)
    return Answers(_known(Answered, content), tuple(predictions))


def _is_too_much(answer: Any) -> bool:
    """Whether fewer records at once would have been taken: of their number, or of the bytes of all."""
    if answer.status_code == 413:
        return True
    try:
        error = answer.json()["error"] if answer.status_code == 400 else {}
        return (error.get("code"), error.get("param")) == ("limit_exceeded", "sequences")
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _post(client: Any, url: str, body: dict[str, Any]) -> Any:
    import httpx

    for attempt in range(_ATTEMPTS):
        try:
            answer = client.post("/v1/predict", json=body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ResourceError(
                f"nothing answers at {url}: {error}",
                where="--url",
                fix="start it: `polysome serve`; check the URL",
            ) from error
        if answer.status_code not in (429, 503) or attempt + 1 == _ATTEMPTS:
            break
        wait = answer.headers.get("retry-after", "")
        time.sleep(min(float(wait) if wait.isdigit() else 1.0, 30.0))
    return answer


def ask_chat(
    url: str, model: str, question: str, *, prompt: Prompt = "concise", key: str | None = None, timeout: float = 120.0
) -> str:
    """The greedy answer of a served model to one question, through `/v1/chat/completions`.

    Raises:
        ResourceError: nothing answers at `url`, or it is overloaded or failing.
        ConfigurationError: the server refuses the request.
    """
    import httpx

    body = {"model": model, "messages": messages(prompt, question), "temperature": 0}
    try:
        answer = httpx.post(
            f"{url.rstrip('/')}/v1/chat/completions",
            json=body,
            timeout=timeout,
            trust_env=False,
            headers=_headers(key),
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ResourceError(
            f"nothing answers at {url}: {error}", where=url, fix="start it: `polysome serve`"
        ) from error
    if answer.status_code != 200:
        raise _refusal(url, answer)
    return str(answer.json()["choices"][0]["message"]["content"])


def _headers(key: str | None) -> dict[str, str]:
    key = key or os.environ.get(KEY_VARIABLE)
    return {"authorization": f"Bearer {key}"} if key else {}


def _known(kind: type[ConfigT], content: dict[str, Any]) -> ConfigT:
    """What this version knows of an answer; a later server may tell more."""
    return kind.model_validate({name: content[name] for name in kind.model_fields if name in content})


def _refusal(url: str, answer: Any) -> PolysomeError:
    try:
        error = answer.json()["error"]
        message, param = error["message"], error["param"] or url
    except (ValueError, KeyError, TypeError):
        message, param = f"status {answer.status_code}: {answer.text[:200]}", url
    if answer.status_code in (401, 403):
        return ConfigurationError(message, where=url, fix=f"put an API key of this server into {KEY_VARIABLE}")
    if answer.status_code in (408, 429) or answer.status_code >= 500:
        return ResourceError(message, where=url, fix="ask again later, or for less at once")
    return ConfigurationError(message, where=param, fix="mend the request")


class _EnginePool:
    """A backend on an engine in this process: questions that are asked in the same moment are answered together."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: list[tuple[Sampling | tuple[str, ...], Conversation, asyncio.Future[Any]]] = []

    async def generate(
        self, prompt: Asked, sampling: Sampling, target: Target, *, stream: bool = True
    ) -> AsyncIterator[Delta]:
        """See `Pool.generate`; always one piece."""
        generation: Generation = await self._asked(sampling, prompt)
        yield Delta(generation.text, generation)

    async def score(self, prompt: Asked, choices: Sequence[str], target: Target) -> Scores:
        """See `Pool.score`."""
        scores: Scores = await self._asked(tuple(choices), prompt)
        return scores

    def _asked(self, how: Sampling | tuple[str, ...], prompt: Asked) -> asyncio.Future[Any]:
        assert isinstance(prompt, list), "a prediction asks conversations"
        loop = asyncio.get_running_loop()
        if not self._waiting:
            # After all that is about to ask as well.
            loop.call_soon(self._answer)
        future = loop.create_future()
        self._waiting.append((how, prompt, future))
        return future

    def _answer(self) -> None:
        waiting, self._waiting = self._waiting, []
        for how in dict.fromkeys(kind for kind, _, _ in waiting):
            members = [(prompt, future) for kind, prompt, future in waiting if kind == how]
            conversations = [prompt for prompt, _ in members]
            try:
                found: Sequence[Generation | Scores]
                if isinstance(how, Sampling):
                    found = self._engine.generate(conversations, max_new_tokens=how.max_new_tokens)
                else:
                    found = self._engine.score(conversations, how)
            except Exception as error:
                # Told to the first; the others are cancelled with it.
                for _, future in members:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), result in zip(members, found, strict=True):
                if not future.done():
                    future.set_result(result)


def ask_folder(config: ServeConfig, task: str, records: Sequence[RawRecord]) -> Answers:
    """The same predictions from the model folder itself, without a server.

    Raises:
        DataError: the folder is no model folder; a record is not what the task takes.
    """
    from polysome.inference.batch import BatchEngine

    spec = task_spec(task)
    asked = [
        Record(index, str(index + 1), raw, tuple(read_record(spec, raw, where=f"sequences[{index}]")))
        for index, raw in enumerate(records)
    ]
    fingerprint = model_fingerprint(config.model)
    calibrations = Calibrations.read(config, fingerprint)
    engine = BatchEngine(config.model, max_batch_tokens=config.max_batch_tokens, threads=config.cpus_per_replica)
    target = Target(deadline=float("inf"))

    async def ask() -> Answers:
        evidence = calibrations.of(spec, target)
        predictor = Predictor(
            spec,
            _EnginePool(engine),
            prompt=config.prompt,
            max_new_tokens=config.limits.default_max_tokens,
            evidence=evidence,
        )
        told = Answered(
            task=spec.name,
            model=config.name,
            adapter=None,
            system_fingerprint=f"fp_{fingerprint}",
            calibration=evidence.note,
        )
        return Answers(told, tuple(await predictor.predict(asked, target)))

    return asyncio.run(ask())
