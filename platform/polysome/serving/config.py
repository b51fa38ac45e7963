"""What is served, where, how it grows, and the limits that one caller meets."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from polysome.config import Config
from polysome.specs import Prompt


class Autoscaling(Config):
    """How many model replicas run."""

    min_replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    """0 frees the machine when nobody asks; the first question then waits for the model to load."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)] = 2
    target_ongoing_requests: Annotated[float, Field(gt=0)] = 8
    """Requests at once that one replica shall have; more starts another."""
    target_queue_seconds: Annotated[float, Field(gt=0)] | None = None
    """Scale by how long requests wait in the replicas instead; null: by `target_ongoing_requests` alone."""
    upscale_delay_s: Annotated[float, Field(ge=0)] = 10
    downscale_delay_s: Annotated[float, Field(ge=0)] = 300

    @model_validator(mode="after")
    def _ordered(self) -> "Autoscaling":
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        return self


class Limits(Config):
    """Bounds of one request. What is beyond them is refused with an error that names the bound."""

    body_bytes: Annotated[int, Field(ge=1024)] = 2 * 1024 * 1024
    records: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Sequences in one `/v1/predict`."""
    messages: Annotated[int, Field(ge=1, le=1000)] = 64
    choices: Annotated[int, Field(ge=1)] = 1024
    """Choices in one `/v1/score`."""
    prompts: Annotated[int, Field(ge=1)] = 64
    """Prompts in one `/v1/completions`, texts in one `/v1/embeddings`."""
    n: Annotated[int, Field(ge=1, le=128)] = 8
    """Answers to one prompt."""
    logprobs: Annotated[int, Field(ge=0, le=100)] = 5
    """Alternatives told for each token."""
    sequence_characters: Annotated[int, Field(ge=1)] = 100_000
    """Characters of one sequence, and of one prompt: all messages together, a text to continue or to embed, a choice. A
    task's own bounds and the model's context are mostly tighter."""
    batch_bytes: Annotated[int, Field(ge=1024)] = 50 * 1024 * 1024
    """Body of one `/v1/predict/batch`."""
    batch_records: Annotated[int, Field(ge=1)] = 1_000_000
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    """Of one key, at one gateway; null: no bound."""
    requests_at_once: Annotated[int, Field(ge=1)] | None = None
    """Of one key, at one gateway; null: no bound."""
    max_tokens: Annotated[int, Field(ge=1)] = 1024
    """Upper bound of `max_tokens`."""
    default_max_tokens: Annotated[int, Field(ge=1)] = 128
    """Used where a request does not say, and for the answers of `/v1/predict`."""

    @model_validator(mode="after")
    def _default_within_bound(self) -> "Limits":
        if self.default_max_tokens > self.max_tokens:
            raise ValueError(f"default_max_tokens {self.default_max_tokens} is above max_tokens {self.max_tokens}")
        return self


class ServeSettings(Config):
    """How a model is served: all but which one."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")] = "polysome"
    """The model's id in the API, and the name of the Serve application."""
    host: str = "127.0.0.1"
    """Address that the HTTP proxy listens on; one that others reach needs `keys`."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    prompt: Prompt = "concise"
    """System prompt of `/v1/predict`."""
    autoscaling: Autoscaling = Autoscaling()
    gateway_replicas: Annotated[int, Field(ge=1, le=100)] = 1
    engine: Literal["batch", "continuous", "vllm"] = "batch"
    """`batch`: static batches, mixed adapters; `continuous`: requests join and leave the batch at every step; `vllm`:
    vLLM through `ray.serve.llm`, which the extra `vllm` installs."""
    keys: str | None = None
    """File of API keys that `polysome keys` writes; null asks for none, which only a loopback `host` may."""
    adapters: str | None = None
    """Folder or URL of the adapter registry that `polysome adapters` writes; null serves the base alone."""
    adapters_per_replica: Annotated[int, Field(ge=1, le=1000)] = 8
    """Adapters in memory at once; the one that was asked longest ago makes room."""
    calibration: str | None = None
    """Finished evaluation (its run folder) of this model, whose calibration and errors `/v1/predict` tells."""
    runs: str | None = None
    """Folder or URL of the runs that the pages and `/v1/jobs` show; null shows none."""
    batches: str | None = None
    """Folder or URL, seen by every gateway, for `/v1/predict/batch`; null refuses batches."""
    jobs_address: str | None = None
    """Jobs API of the cluster that `/v1/jobs` submits to; null takes no jobs."""
    recipes: list[str] = []
    """Recipes, paths within the checkout, that may be submitted through the gateway."""
    cpus_per_replica: Annotated[int, Field(ge=1)] = 1
    gpus_per_replica: Annotated[float, Field(ge=0)] = 0
    max_batch_size: Annotated[int, Field(ge=1, le=1024)] = 16
    """Requests that one forward pass answers together."""
    batch_wait_seconds: Annotated[float, Field(ge=0, le=1)] = 0.01
    max_batch_tokens: Annotated[int, Field(ge=256)] = 16384
    max_ongoing_requests: Annotated[int, Field(ge=1)] = 32
    """Requests that a replica holds at once."""
    max_queued_requests: Annotated[int, Field(ge=1)] = 128
    """Questions that wait at a gateway for a free replica; more are refused with 429. One `/v1/predict` is many
    questions: those of all such requests take at most half of the queue at a time, the rest wait their turn."""
    request_timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 60
    """Longer requests end with 408, and so do those whose body takes as long to come. Must exceed the time to load the
    model where `min_replicas` is 0."""
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _records_fit_the_queue(self) -> "ServeSettings":
        if self.limits.records > self.max_queued_requests:
            raise ValueError(
                f"limits.records {self.limits.records} is above max_queued_requests {self.max_queued_requests}: one "
                "request would be more than the queue may hold; lower the one or raise the other"
            )
        return self

    @property
    def url(self) -> str:
        """Where a client on this machine reaches the API."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


class ServeConfig(ServeSettings):
    """One served model."""

    model: str
    """Hugging Face folder (a stage's `export/`, or its run folder), local or any fsspec URL."""
