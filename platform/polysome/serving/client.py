"""The client side of a prediction: records from the command line or FASTA, answers over HTTP or from a local folder."""

import asyncio
import os
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from polysome.config import ConfigurationError, DataError, PolysomeError, ResourceError
from polysome.data.render import messages
from polysome.inference.engine import Conversation, Engine, Generation, Scores
from polysome.serving.config import ServeConfig
from polysome.serving.prediction import RawRecord, Sampling, predict, read_record, task_spec
from polysome.specs import Prompt

_RECORDS_AT_ONCE = 32


def read_records(arguments: Sequence[str]) -> list[tuple[str, RawRecord]]:
    """Names and raw records from what stands on a command line.

    Each argument is a FASTA file (plain or compressed; `-` for standard input), a sequence, or
    `role=SEQUENCE,role=SEQUENCE` for one record of a task with several molecules.

    Raises:
        DataError: a file is not FASTA, or cannot be read.
        ConfigurationError: nothing was given.
    """
    records: list[tuple[str, RawRecord]] = []
    for argument in arguments:
        if argument == "-" or os.path.isfile(argument):
            records += _fasta(argument)
        elif "/" in argument or argument.lower().removesuffix(".gz").endswith((".fa", ".fasta", ".faa", ".fna")):
            raise DataError(f"no such file: {argument}", where="command line", fix="check the path")
        elif "=" in argument:
            pairs = [part.partition("=") for part in argument.split(",")]
            records.append((str(len(records) + 1), {role: sequence for role, _, sequence in pairs}))
        else:
            records.append((str(len(records) + 1), argument))
    if not records:
        raise ConfigurationError("no sequence was given", where="command line", fix="give sequences or a FASTA file")
    return records


def _fasta(path: str) -> list[tuple[str, RawRecord]]:
    """The records of a FASTA file; of standard input through a temporary one."""
    from polysome.data.readers import open_records
    from polysome.specs.formats import FastaFormat

    with tempfile.NamedTemporaryFile("w") as piped:
        if path == "-":
            piped.write(sys.stdin.read())
            piped.flush()
        records: list[tuple[str, RawRecord]] = []
        with open_records(piped.name if path == "-" else os.path.abspath(path), FastaFormat()) as stretches:
            for stretch in stretches:
                for damage in stretch.damaged.to_pylist():
                    raise DataError(damage["reason"], where=f"{path}, byte {damage['offset']}", fix="mend the record")
                columns = (stretch.columns[name].to_pylist() for name in ("header", "sequence"))
                for header, sequence in zip(*columns, strict=True):
                    name = header.split()[0] if header.split() else str(len(records) + 1)
                    records.append((name, sequence))
    return records


def ask_server(url: str, task: str, records: Sequence[RawRecord], *, timeout: float = 120.0) -> list[dict[str, Any]]:
    """The predictions of a served model, in the order of the records.

    Raises:
        ResourceError: nothing answers at `url`, or it is overloaded or failing.
        ConfigurationError: the server refuses the request.
    """
    import httpx

    predictions: list[dict[str, Any]] = []
    with httpx.Client(base_url=url.rstrip("/"), timeout=timeout, trust_env=False) as client:
        for start in range(0, len(records), _RECORDS_AT_ONCE):
            body = {"task": task, "sequences": list(records[start : start + _RECORDS_AT_ONCE])}
            try:
                answer = client.post("/v1/predict", json=body)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise ResourceError(
                    f"nothing answers at {url}: {error}",
                    where="--url",
                    fix="start it: `polysome serve`; check the URL",
                ) from error
            if answer.status_code != 200:
                raise _refusal(url, answer)
            predictions += [{**item, "index": start + item["index"]} for item in answer.json()["predictions"]]
    return predictions


def ask_chat(url: str, model: str, question: str, *, prompt: Prompt = "concise", timeout: float = 120.0) -> str:
    """The greedy answer of a served model to one question, through `/v1/chat/completions`.

    Raises:
        ResourceError: nothing answers at `url`, or it is overloaded or failing.
        ConfigurationError: the server refuses the request.
    """
    import httpx

    body = {"model": model, "messages": messages(prompt, question), "temperature": 0}
    try:
        answer = httpx.post(f"{url.rstrip('/')}/v1/chat/completions", json=body, timeout=timeout, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ResourceError(
            f"nothing answers at {url}: {error}", where=url, fix="start it: `polysome serve`"
        ) from error
    if answer.status_code != 200:
        raise _refusal(url, answer)
    return str(answer.json()["choices"][0]["message"]["content"])


def _refusal(url: str, answer: Any) -> PolysomeError:
    try:
        error = answer.json()["error"]
        message, param = error["message"], error["param"] or url
    except (ValueError, KeyError, TypeError):
        message, param = f"status {answer.status_code}: {answer.text[:200]}", url
    if answer.status_code in (408, 429) or answer.status_code >= 500:
        return ResourceError(message, where=url, fix="ask again later, or for less at once")
    return ConfigurationError(message, where=param, fix="mend the request")


class _EngineBackend:
    """An engine in this process as a backend; it answers one question at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def generate(self, conversation: Conversation, sampling: Sampling) -> Generation:
        return self._engine.generate(
            [conversation],
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
        )[0]

    async def score(self, conversation: Conversation, choices: Sequence[str]) -> Scores:
        return self._engine.score([conversation], choices)[0]


def ask_folder(config: ServeConfig, task: str, records: Sequence[RawRecord]) -> list[dict[str, Any]]:
    """The same predictions from the model folder itself, without a server.

    Raises:
        DataError: the folder is no model folder; a record is not what the task takes.
    """
    from polysome.inference.batch import BatchEngine

    spec = task_spec(task)
    cleaned = [read_record(spec, raw, where=f"sequences[{index}]") for index, raw in enumerate(records)]
    engine = BatchEngine(config.model, max_batch_tokens=config.max_batch_tokens, threads=config.cpus_per_replica)
    predictions = asyncio.run(
        predict(
            spec,
            cleaned,
            _EngineBackend(engine),
            prompt=config.prompt,
            max_new_tokens=config.limits.default_max_tokens,
        )
    )
    return [prediction.model_dump() for prediction in predictions]
