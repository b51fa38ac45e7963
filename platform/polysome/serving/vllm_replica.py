"""A replica whose engine is vLLM; imported only where `ray.serve.llm` can be."""

from __future__ import annotations

from typing import Any

from ray.serve.llm import LLMServer
from ray.serve.llm.openai_api_models import CompletionRequest

from polysome.inference.vllm import VllmEngine
from polysome.serving.pool import ModelPool


class VllmReplica(ModelPool, LLMServer):  # type: ignore[misc]
    """`ModelPool`'s methods on the engine that `ray.serve.llm` starts, places and watches."""

    # Serve awaits it, as it does that of LLMServer.
    async def __init__(self, llm_config: Any, *, settings: dict[str, Any]) -> None:  # type: ignore[misc]
        await LLMServer.__init__(self, llm_config)
        engine = VllmEngine(self.engine, CompletionRequest, folder=settings["model"], name=settings["name"])
        ModelPool.__init__(self, settings, engine)
