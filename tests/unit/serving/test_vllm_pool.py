"""The deployment on vLLM: what `ray.serve.llm` is asked for, and that a replica answers as `ModelPool` does."""

import asyncio
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from polysome.config import ConfigurationError
from polysome.serving.config import ServeConfig
from polysome.serving.pool import ModelPool
from polysome.serving.vllm_pool import vllm_deployment

OPTIONS = {"max_ongoing_requests": 7, "max_surge_percent": 100}


class FakeServer:
    """`ray.serve.llm.LLMServer`: constructed and started by Serve, in this way."""

    async def __init__(self, llm_config: Any) -> None:
        self.engine = SimpleNamespace(config=llm_config)

    async def check_health(self) -> None:
        raise AssertionError("the pool's own is asked")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the fake `ray.serve.llm` was asked to build."""
    found: dict[str, Any] = {}

    def build(llm_config: Any, **settings: Any) -> str:
        found.update(settings, llm=llm_config)
        return "application"

    fake, models = ModuleType("ray.serve.llm"), ModuleType("ray.serve.llm.openai_api_models")
    fake.__dict__.update(LLMConfig=lambda **fields: fields, LLMServer=FakeServer, build_llm_deployment=build)
    models.__dict__.update(CompletionRequest=lambda **fields: SimpleNamespace(**fields))
    monkeypatch.setitem(sys.modules, "ray.serve.llm", fake)
    monkeypatch.setitem(sys.modules, "ray.serve.llm.openai_api_models", models)
    return found


def test_without_vllm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    # As the import fails where it is absent, also where this environment has it.
    monkeypatch.setitem(sys.modules, "ray.serve.llm", None)
    with pytest.raises(ConfigurationError, match="needs vLLM") as raised:
        vllm_deployment(ServeConfig(model="/models/one"), OPTIONS)
    assert "polysome[vllm]" in str(raised.value)


def test_the_model_is_served_without_remote_code_and_without_logs_of_prompts(asked: dict[str, Any]) -> None:
    config = ServeConfig(model="/models/one", name="one", gpus_per_replica=2, cpus_per_replica=3, max_batch_size=32)
    assert vllm_deployment(config, OPTIONS) == "application"
    engine = asked["llm"]["engine_kwargs"]
    assert engine["trust_remote_code"] is False
    assert engine["enable_log_requests"] is False
    assert engine["load_format"] == "safetensors"
    assert engine["tensor_parallel_size"] == 2
    assert "enable_lora" not in engine
    assert asked["llm"]["model_loading_config"] == {"model_id": "one", "model_source": "/models/one"}
    assert asked["llm"]["accelerator_config"] == {"kind": "gpu"}
    assert asked["override_serve_options"] == {"name": "ModelPool", **OPTIONS}
    assert asked["llm"]["deployment_config"] == {"ray_actor_options": {"num_cpus": 3}}


def test_adapters_need_room_for_as_many_as_a_replica_keeps(asked: dict[str, Any]) -> None:
    config = ServeConfig(model="/models/one", adapters="/adapters", adapters_per_replica=40, max_batch_size=16)
    vllm_deployment(config, OPTIONS)
    engine = asked["llm"]["engine_kwargs"]
    assert (engine["enable_lora"], engine["max_loras"], engine["max_cpu_loras"]) == (True, 16, 40)
    assert asked["llm"]["accelerator_config"] == {"kind": "cpu"}


def test_a_model_behind_a_url_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="from a folder alone"):
        vllm_deployment(ServeConfig(model="s3://models/one"), OPTIONS)


def test_a_replica_answers_as_the_pool_does(asked: dict[str, Any], tiny_tokenizer: str, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_tokenizer, tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 64}))
    vllm_deployment(ServeConfig(model=str(folder), name="one"), OPTIONS)
    replica_class, settings = asked["deployment_cls"], asked["bind_kwargs"]["settings"]
    replica = replica_class.__new__(replica_class)
    # As Serve does.
    asyncio.run(replica_class.__init__(replica, "the configuration", settings=settings))
    for method in ("stream", "generate", "score", "embed", "trace", "ready", "check_health"):
        assert getattr(replica_class, method) is getattr(ModelPool, method)
    assert type(replica._engine).__name__ == "VllmEngine"
    assert replica.engine.config == "the configuration"
