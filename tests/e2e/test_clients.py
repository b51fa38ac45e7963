"""Clients that know nothing of Polysome, against a gateway that listens: OpenAI's own and lm-evaluation-harness."""

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import uvicorn
from fake_pool import FakePool

from polysome.config import ResourceError
from polysome.inference.endpoint import Endpoint
from polysome.inference.engine import open_engine
from polysome.serving.calls import Overloaded
from polysome.serving.config import ServeConfig
from polysome.serving.context import Context
from polysome.serving.gateway import create_api

QUESTION: Any = [{"role": "user", "content": "Is there a promoter?"}]


@contextlib.contextmanager
def gateway(pool: FakePool, **settings: Any) -> Iterator[str]:
    """A gateway that listens on a port of its own; gives the URL of its API."""
    config = ServeConfig(model="unused", **settings)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        api = create_api(Context(config, pool, "0" * 16))
        server = uvicorn.Server(uvicorn.Config(api, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def client(pool: FakePool, *, retries: int = 0, **settings: Any) -> Iterator[openai.OpenAI]:
    with gateway(pool, **settings) as url, openai.OpenAI(base_url=url, api_key="none", max_retries=retries) as opened:
        yield opened


def wait_until_idle(pool: FakePool) -> None:
    until = time.monotonic() + 1
    while pool.running:
        assert time.monotonic() < until, f"{pool.running} still run"
        time.sleep(0.01)


def test_openais_client_chats_completes_embeds_and_lists():
    with client(FakePool("Yes.")) as opened:
        assert [model.id for model in opened.models.list()] == ["polysome"]
        assert opened.models.retrieve("polysome").owned_by == "polysome"
        chat = opened.chat.completions.create(
            model="polysome", messages=QUESTION, n=2, logprobs=True, top_logprobs=2, max_completion_tokens=3, stop="."
        )
        assert [choice.message.content for choice in chat.choices] == ["Yes", "Yes"]
        told = chat.choices[0].logprobs
        assert told is not None
        assert told.content is not None
        assert [len(token.top_logprobs) for token in told.content] == [2, 2, 2]
        assert chat.usage is not None
        assert chat.usage.completion_tokens == 6
        text = opened.completions.create(model="polysome", prompt=["A", "C"], echo=True, logprobs=1)
        assert [choice.text for choice in text.choices] == ["AYes.", "CYes."]
        # The client asks for base64 by itself, and gives back numbers.
        unpacked = opened.embeddings.create(model="polysome", input=["A", "C"])
        plain = opened.embeddings.create(model="polysome", input=["A", "C"], encoding_format="float")
        assert np.allclose([one.embedding for one in unpacked.data], [one.embedding for one in plain.data])


def test_openais_client_reads_a_stream_with_usage():
    with client(FakePool("Yes, there is.")) as opened:
        chunks = list(
            opened.chat.completions.create(
                model="polysome", messages=QUESTION, stream=True, stream_options={"include_usage": True}
            )
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Yes, there is."
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 15
        pieces = opened.completions.create(model="polysome", prompt="A", stream=True)
        assert "".join(piece.choices[0].text for piece in pieces) == "Yes, there is."


def test_openais_client_asks_again_where_that_helps():
    class FullOnce(FakePool):
        async def generate(self, *arguments: Any, **options: Any) -> AsyncGenerator[Any, None]:
            self.error = None if self.calls else Overloaded("full")
            async for piece in super().generate(*arguments, **options):
                yield piece

    pool = FullOnce("Yes.")
    with client(pool, retries=2) as opened:
        chat = opened.chat.completions.create(model="polysome", messages=QUESTION)
    assert chat.choices[0].message.content == "Yes."
    assert len(pool.calls) == 2


def test_openais_client_does_not_ask_again_what_took_too_long():
    pool = FakePool(seconds=5)
    with client(pool, retries=2, request_timeout_seconds=0.3) as opened:
        with pytest.raises(openai.APIStatusError) as failed:
            opened.chat.completions.create(model="polysome", messages=QUESTION)
        wait_until_idle(pool)
    assert failed.value.status_code == 408
    assert len(pool.calls) == 1


def test_openais_client_is_told_what_is_wrong():
    with client(FakePool()) as opened:
        with pytest.raises(openai.NotFoundError, match="no model"):
            opened.chat.completions.create(model="other", messages=QUESTION)
        with pytest.raises(openai.BadRequestError) as refused:
            opened.chat.completions.create(model="polysome", messages=QUESTION, presence_penalty=1)
    assert (refused.value.code, refused.value.param) == ("unknown_parameter", "presence_penalty")


def test_openais_client_hears_of_a_stream_that_breaks():
    with client(FakePool("Yes.", error=ResourceError("the replica is gone"), pieces=2)) as opened:
        stream = opened.chat.completions.create(model="polysome", messages=QUESTION, stream=True)
        with pytest.raises(openai.APIError, match="the replica is gone"):
            list(stream)


def test_a_client_that_leaves_a_stream_frees_its_place():
    pool = FakePool("x" * 100, pause=0.05)
    with client(pool) as opened:
        with opened.chat.completions.create(model="polysome", messages=QUESTION, stream=True) as stream:
            next(iter(stream))
            assert pool.running == 1
        wait_until_idle(pool)


def test_an_engine_asks_this_api_as_it_asks_any():
    with gateway(FakePool("Yes, there is.")) as url:
        engine = open_engine(Endpoint(url=url, model="polysome"))
        (generation,) = engine.generate([QUESTION], max_new_tokens=30)
        assert generation.text == "Yes, there is."
        assert "".join(engine.stream(QUESTION, max_new_tokens=31)) == generation.text
        (scores,) = engine.score([QUESTION], ["Yes,", "No,"])
        assert scores.sums[0] > scores.sums[1]


def _harness() -> str:
    """A Python that has lm-evaluation-harness: this one, or the one that the environment names."""
    if named := os.environ.get("POLYSOME_LM_EVAL_PYTHON"):
        return named
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip("needs lm_eval[api], here or in the Python that POLYSOME_LM_EVAL_PYTHON names")
    return sys.executable


def _character_tokenizer(folder: Path) -> None:
    """The tokenizer of `FakePool`: a token is a character, its id the code point."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<end>": 0, **{chr(code): code for code in range(1, 256)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)


def test_lm_evaluation_harness_scores_and_generates(tmp_path):
    """`local-completions`: token ids with an echo and log-likelihoods, and texts up to a stop string."""
    python = _harness()
    _character_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "rows.json").write_text(
        "\n".join(json.dumps({"sequence": f"ACGT{index}", "answer": index % 2}) for index in range(4))
    )
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    shared = f"""
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "rows.json"}}}}}
test_split: test
doc_to_text: "Sequence {{{{sequence}}}}\\nAnswer:"
metadata: {{version: 1}}
"""
    # In a trace of the fake pool the characters with even codes are the likely ones: b, always, and never a.
    (tasks / "choose.yaml").write_text(
        f"task: choose\noutput_type: multiple_choice{shared}doc_to_choice: [a, b]\ndoc_to_target: answer\n"
    )
    (tasks / "say.yaml").write_text(
        f"task: say\noutput_type: generate_until{shared}doc_to_target: 'Yes'\n"
        "generation_kwargs: {until: ['.'], max_gen_toks: 20}\nmetric_list: [{metric: exact_match}]\n"
    )
    with gateway(FakePool("Yes. And more.")) as url:
        model = f"model=polysome,base_url={url}/completions,tokenizer={tmp_path / 'tokenizer'},num_concurrent=2"
        command = [python, "-m", "lm_eval", "--model", "local-completions", "--model_args", model]
        command += ["--tasks", "choose,say", "--include_path", str(tasks), "--output_path", str(tmp_path / "out")]
        environment = {**os.environ, "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path, check=False
        )
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    told = json.loads(results.read_text())["results"]
    assert told["choose"]["acc,none"] == 0.5
    assert told["say"]["exact_match,none"] == 1.0
