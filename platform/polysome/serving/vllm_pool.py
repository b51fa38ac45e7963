"""The pool on vLLM: `ray.serve.llm`'s deployment behind Polysome's own gateway."""

from __future__ import annotations

from typing import Any

from polysome.config import ConfigurationError
from polysome.serving.adapter_checks import MOST_RANK
from polysome.serving.config import ServeConfig
from polysome.serving.pool import ModelPool


def vllm_deployment(config: ServeConfig, options: dict[str, Any]) -> Any:
    """A deployment whose replicas answer as `ModelPool` does, by vLLM.

    Ray's own HTTP ingress for vLLM is not used: it knows no keys and no limits.

    Args:
        config: what is served; `gpus_per_replica` above 1 splits the model over as many GPUs of one replica.
        options: of the deployment, but for its resources: scaling, queues, health checks.

    Raises:
        ConfigurationError: vLLM is not installed, or the model lies where it cannot read it.
    """
    try:
        from ray.serve.llm import LLMConfig, build_llm_deployment

        replica = _replica()
    except ImportError as error:
        raise ConfigurationError(
            f"`engine: vllm` needs vLLM: {str(error).splitlines()[0]}",
            where="engine",
            fix="install polysome[vllm], best in an image of its own, or choose `engine: continuous`",
        ) from error
    if "://" in config.model and not config.model.startswith("file://"):
        raise ConfigurationError(
            "vLLM reads a model from a folder alone",
            where="model",
            fix=f"copy {config.model} to where all nodes see it",
        )
    engine: dict[str, Any] = {
        "max_num_seqs": config.max_batch_size,
        "max_logprobs": max(1, config.limits.logprobs),
        "tensor_parallel_size": max(1, int(config.gpus_per_replica)),
        "load_format": "safetensors",
        "trust_remote_code": False,
        # Prompts may be unpublished data.
        "enable_log_requests": False,
    }
    if config.adapters is not None:
        engine |= {
            "enable_lora": True,
            "max_loras": min(config.adapters_per_replica, config.max_batch_size),
            "max_cpu_loras": max(config.adapters_per_replica, 1),
            "max_lora_rank": MOST_RANK,
        }
    return build_llm_deployment(
        LLMConfig(
            model_loading_config={"model_id": config.name, "model_source": config.model.removeprefix("file://")},
            engine_kwargs=engine,
            accelerator_config={"kind": "gpu" if config.gpus_per_replica else "cpu"},
            deployment_config={"ray_actor_options": {"num_cpus": config.cpus_per_replica}},
        ),
        deployment_cls=replica,
        bind_kwargs={"settings": config.model_dump(mode="json")},
        override_serve_options={"name": "ModelPool", **options},
    )


def _replica() -> type:
    """The class of a replica: made where `ray.serve.llm` can be imported, which needs vLLM."""
    from ray.serve.llm import LLMServer
    from ray.serve.llm.openai_api_models import CompletionRequest

    from polysome.inference.vllm import VllmEngine

    class VllmReplica(ModelPool, LLMServer):  # type: ignore[misc]
        """`ModelPool`'s methods on the engine that `ray.serve.llm` starts, places and watches."""

        # Serve awaits it, as it does that of LLMServer.
        async def __init__(self, llm_config: Any, *, settings: dict[str, Any]) -> None:  # type: ignore[misc]
            await LLMServer.__init__(self, llm_config)
            engine = VllmEngine(self.engine, CompletionRequest, folder=settings["model"], name=settings["name"])
            ModelPool.__init__(self, settings, engine)

    return VllmReplica
