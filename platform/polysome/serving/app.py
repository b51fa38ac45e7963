"""The Serve application of one model: gateway and pool wired together, started, and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from grpc.aio import AioRpcError
from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from polysome.config import ConfigurationError, ResourceError
from polysome.data.ray_errors import cause_of
from polysome.inference.asynchronous import Delta, Traced
from polysome.inference.engine import Embeddings, Generation, Prompt, Sampling, Scores
from polysome.inference.engine import Pool as Pooling
from polysome.inference.folder import context_length, model_fingerprint
from polysome.serving.access import Access, Guard
from polysome.serving.adapters import Registry
from polysome.serving.calls import Overloaded, Pool, Target
from polysome.serving.checks import check, require_free_port, resolved
from polysome.serving.config import ServeConfig
from polysome.serving.context import Context
from polysome.serving.gateway import create_api
from polysome.serving.jobs_api import Jobs
from polysome.serving.metrics import Requests, count_tokens, observed, rejected
from polysome.serving.pool import ModelPool
from polysome.serving.reports_api import Runs

__all__ = ["Gateway", "HandlePool", "build", "check", "require_free_port", "serving", "start", "stop", "wait"]

log = logging.getLogger(__name__)

# The gateway's own deadline ends a request first, in the API's error shape; the proxy's is the net below it.
_PROXY_MARGIN_SECONDS = 15.0
_START_SECONDS = 300.0
_FAILURES = (RayError, RayServeException, AioRpcError)
"""Some of Serve's own are none of Ray's, and over gRPC a call that broke is neither."""
_STOP_SECONDS = 15.0


@dataclass(frozen=True)
class Views:
    """What a gateway shows beside its model; given by the floor above, as jobs and runs are kept there."""

    jobs: Jobs | None = None
    runs: Runs | None = None


class HandlePool:
    """The pool as the gateway sees it: calls through a Serve handle, Ray's failures told as Polysome's errors.

    A replica that has an adapter in memory is preferred for it. A call whose replica died before anything of it was
    told is asked once more of another one, as asking changes nothing.
    """

    def __init__(self, handle: DeploymentHandle, model: str) -> None:
        self._handle, self._model = handle, model

    async def generate(
        self, prompt: Prompt, sampling: Sampling, target: Target, *, stream: bool = True
    ) -> AsyncGenerator[Delta, None]:
        """See `calls.Pool.generate`."""
        adapter = target.adapter.id if target.adapter else ""
        if not stream:
            whole: Generation = await self._ask(target, lambda pool: pool.generate.remote(prompt, sampling, target))
            count_tokens(whole.prompt_tokens, whole.completion_tokens, model=self._model, adapter=adapter)
            yield Delta(whole.text, whole)
            return
        async with aclosing(observed(self._pieces(prompt, sampling, target), model=self._model, adapter=adapter)) as it:
            async for piece in it:
                yield piece

    async def _pieces(self, prompt: Prompt, sampling: Sampling, target: Target) -> AsyncGenerator[Delta, None]:
        told = False
        for attempt in range(2):
            pieces: Any = self._of(target).options(stream=True).stream.remote(prompt, sampling, target)
            try:
                async for piece in pieces:
                    told = True
                    yield piece
                return
            except _FAILURES as error:
                if told or attempt or not _died(error):
                    raise _told(error) from error
                log.warning("a replica died before it answered; asking another one")
            finally:
                # Of a caller that is gone: the replica stops at its next step. Of an ended answer it does nothing.
                pieces.cancel()

    async def score(self, prompt: Prompt, choices: Sequence[str], target: Target) -> Scores:
        """See `calls.Pool.score`."""
        scores: Scores = await self._ask(target, lambda pool: pool.score.remote(prompt, choices, target))
        self._count(scores.prompt_tokens + sum(scores.tokens), target)
        return scores

    async def embed(self, texts: Sequence[Prompt], pool: Pooling, target: Target) -> Embeddings:
        """See `calls.Pool.embed`."""
        embeddings: Embeddings = await self._ask(target, lambda to: to.embed.remote(texts, pool, target))
        self._count(sum(embeddings.tokens), target)
        return embeddings

    async def trace(self, prompt: Prompt, answer: Sequence[int], top: int, target: Target) -> Traced:
        """See `calls.Pool.trace`."""
        traced: Traced = await self._ask(target, lambda pool: pool.trace.remote(prompt, answer, top, target))
        if not answer:
            # With an answer, its generation has counted the prompt.
            self._count(len(traced.tokens), target)
        return traced

    async def ready(self) -> None:
        """See `calls.Pool.ready`."""
        await self._ask(None, lambda pool: pool.ready.remote())

    def _count(self, read: int, target: Target) -> None:
        count_tokens(read, model=self._model, adapter=target.adapter.id if target.adapter else "")

    def _of(self, target: Target | None) -> DeploymentHandle:
        if target is None or target.adapter is None:
            return self._handle
        return self._handle.options(multiplexed_model_id=target.adapter.id)

    async def _ask(self, target: Target | None, ask: Callable[[DeploymentHandle], Any]) -> Any:
        for attempt in range(2):
            response = ask(self._of(target))
            try:
                return await response
            except asyncio.CancelledError:
                response.cancel()
                raise
            except _FAILURES as error:
                if attempt or not _died(error):
                    raise _told(error) from error
                log.warning("a replica died before it answered; asking another one")
        raise AssertionError("unreachable")


def _died(error: Exception) -> bool:
    """Whether the replica or its node ended, rather than its work failing."""
    return isinstance(error, RayActorError | AioRpcError) and not isinstance(error, RayTaskError)


def _told(error: Exception) -> Exception:
    """What the gateway is told of one of Ray's failures."""
    if isinstance(error, BackPressureError):
        return Overloaded("too many requests wait for the model", fix="ask again in a moment")
    if isinstance(error, DeploymentUnavailableError):
        return ResourceError("the model is not available", fix="ask again later")
    cause = cause_of(error)
    if cause is not None:
        return cause
    if isinstance(error, RayTaskError):
        return error
    return ResourceError("the replica that answered is gone", fix="ask again in a moment")


class Gateway:
    """A stateless front: builds the API in its own process, so that nothing of FastAPI is pickled."""

    def __init__(self, config: dict[str, Any], fingerprint: str, pool: DeploymentHandle, views: Views) -> None:
        _tell_in_log()
        self._config = ServeConfig.model_validate(config)
        self._fingerprint, self._views = fingerprint, views
        self._pool: Pool = HandlePool(pool, self._config.name)

    def __serve_build_asgi_app__(self) -> Any:
        registry = Registry(self._config.adapters, base=self._fingerprint) if self._config.adapters else None
        context = Context(
            self._config,
            self._pool,
            self._fingerprint,
            registry=registry,
            jobs=self._views.jobs,
            runs=self._views.runs,
            max_model_len=context_length(self._config.model),
        )
        # Outside of the application, so that what it refuses costs nothing, and its own failures get the headers too.
        return Requests(Guard(create_api(context), Access.of(self._config), rejected))


def _tell_in_log() -> None:
    """Write the lines of requests and the causes of refusals to the process' log, which Ray keeps with its others."""
    ours = logging.getLogger("polysome")
    ours.setLevel(logging.INFO)
    if not ours.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        ours.addHandler(handler)


def build(config: ServeConfig, views: Views | None = None) -> Application:
    """The application: gateway in front of an autoscaled pool.

    A new version starts beside the old one (`max_surge_percent=100`), so an update drops no request.

    Args:
        config: what is served.
        views: of the cluster's jobs and runs, which the gateway shows.

    Raises:
        DataError: the model folder lacks config, safetensors weights, tokenizer or chat template.
        ConfigurationError: the engine needs what is not installed; others reach the host, and there are no keys.
    """
    config = resolved(config)
    # Reads the weights whole.
    fingerprint = model_fingerprint(config.model)
    if config.adapters:
        # Warns of those that will not be offered.
        Registry(config.adapters, base=fingerprint).list()
    settings = config.model_dump(mode="json")
    options: dict[str, Any] = {
        "autoscaling_config": _autoscaling(config),
        "max_ongoing_requests": config.max_ongoing_requests,
        "max_queued_requests": config.max_queued_requests,
        "max_surge_percent": 100,
        "graceful_shutdown_timeout_s": config.request_timeout_seconds,
        "health_check_period_s": 10,
        "health_check_timeout_s": 60,
    }
    if config.engine == "vllm":
        from polysome.serving.vllm_pool import vllm_deployment

        pool = vllm_deployment(config, options)
    else:
        resources = {"num_cpus": config.cpus_per_replica, "num_gpus": config.gpus_per_replica}
        pool = serve.deployment(name="ModelPool", ray_actor_options=resources, **options)(ModelPool).bind(settings)
    gateway = serve.deployment(
        name="Gateway",
        num_replicas=config.gateway_replicas,
        # Looser than the pool's queue, so that a full house is told in the API's own error shape.
        max_ongoing_requests=2 * config.max_queued_requests + config.max_ongoing_requests,
        max_surge_percent=100,
        graceful_shutdown_timeout_s=config.request_timeout_seconds,
        # It mostly waits; whole CPUs are for models, so that two replicas fit on two.
        ray_actor_options={"num_cpus": 0},
    )(serve.ingress()(Gateway))
    return gateway.bind(settings, fingerprint, pool, views or Views())


def _autoscaling(config: ServeConfig) -> dict[str, Any]:
    scaling = config.autoscaling
    settings: dict[str, Any] = {
        "min_replicas": scaling.min_replicas,
        "initial_replicas": max(1, scaling.min_replicas),
        "max_replicas": scaling.max_replicas,
        "target_ongoing_requests": scaling.target_ongoing_requests,
        "upscale_delay_s": scaling.upscale_delay_s,
        "downscale_delay_s": scaling.downscale_delay_s,
    }
    if scaling.target_queue_seconds is not None:
        settings["policy"] = {
            "policy_function": "polysome.serving.autoscaling:QueueTime",
            "policy_kwargs": {
                "target_seconds": scaling.target_queue_seconds,
                "requests_per_replica": scaling.target_ongoing_requests,
            },
        }
    return settings


def start(config: ServeConfig, views: Views | None = None) -> str:
    """Deploy on the connected Ray and wait until a token was generated; returns the URL. Stopped by `stop`.

    Raises:
        DataError, ResourceError: see `check`; the model did not become ready.
        ConfigurationError: see `check`; this Ray serves at another address already.
    """
    import httpx

    config = check(config)
    # Serve's progress lines; what matters is told by the caller, problems still show.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        proxy_location="HeadOnly",
        http_options={
            "host": config.host,
            "port": config.port,
            "request_timeout_s": config.request_timeout_seconds + _PROXY_MARGIN_SECONDS,
        },
    )
    _require_address(config)
    try:
        serve.run(build(config, views), name=config.name, route_prefix="/", blocking=False)
        _wait_until_ready(httpx, config)
    except BaseException:
        stop(config)
        raise
    return config.url


def _require_address(config: ServeConfig) -> None:
    """Serve has one HTTP proxy, that of its first start; asked for another address, it warns and keeps its own."""
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client is not None, "Serve has been started"
    has = client.http_config
    if (has.host, has.port) != (config.host, config.port):
        raise ConfigurationError(
            f"Ray Serve of this cluster listens on {has.host}:{has.port} already, not on {config.host}:{config.port}",
            where="host, port",
            fix="end it and what it serves with `serve shutdown`, or serve from a Ray of its own",
        )


def _wait_until_ready(httpx: Any, config: ServeConfig) -> None:
    deadline = time.monotonic() + _START_SECONDS
    problem = "nothing answers"
    while time.monotonic() < deadline:
        try:
            answer = httpx.get(f"{config.url}/readyz", timeout=config.request_timeout_seconds + 5, trust_env=False)
        except httpx.HTTPError as error:
            problem = str(error) or type(error).__name__
        else:
            if answer.status_code == 200:
                return
            problem = f"{answer.status_code}: {answer.text[:500]}"
        time.sleep(0.2)
    raise ResourceError(
        f"the model was not ready after {_START_SECONDS:.0f} s ({problem})",
        where=config.url,
        fix="read the replica's log",
    )


@contextlib.contextmanager
def serving(config: ServeConfig, views: Views | None = None) -> Iterator[str]:
    """`start` and `stop` as one block; gives the URL."""
    url = start(config, views)
    try:
        yield url
    finally:
        stop(config)


def wait() -> None:
    """Block until a signal's exception ends it."""
    while True:
        time.sleep(3600)


def stop(config: ServeConfig) -> None:
    """End the application; others of the same Ray stay, and so does Serve's HTTP proxy until its Ray ends.

    Requests under way are waited for a moment; Serve itself gives them the time that a request may take, and goes on
    with that when this returns.
    """
    serve.delete(config.name, _blocking=False)
    until = time.monotonic() + _STOP_SECONDS
    while config.name in serve.status().applications:
        if time.monotonic() > until:
            log.warning("%s still answers what was asked of it before it ends", config.name)
            return
        time.sleep(0.1)
