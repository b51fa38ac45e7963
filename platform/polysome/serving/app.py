"""The Serve application of one model: gateway and pool wired together, started, and stopped."""

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from polysome.config import ResourceError
from polysome.data.ray_errors import cause_of
from polysome.inference.engine import Conversation, Generation, Scores
from polysome.inference.folder import model_fingerprint
from polysome.serving.checks import check, model_folder, require_free_port
from polysome.serving.config import ServeConfig
from polysome.serving.gateway import Overloaded, create_api
from polysome.serving.pool import GenerateCall, ModelPool
from polysome.serving.prediction import Sampling

__all__ = ["Gateway", "HandlePool", "build", "check", "require_free_port", "serving", "start", "stop", "wait"]

log = logging.getLogger(__name__)

# The gateway's own deadline ends a request first, in the API's error shape; the proxy's is the net below it.
_PROXY_MARGIN_SECONDS = 15.0
_START_SECONDS = 300.0


class HandlePool:
    """The pool as the gateway sees it: calls through a Serve handle, Ray's failures told as Polysome's errors."""

    def __init__(self, handle: DeploymentHandle, config: ServeConfig) -> None:
        self._handle, self._config = handle, config

    async def generate(self, conversation: Conversation, sampling: Sampling) -> Generation:
        """See `Backend.generate`."""
        call = GenerateCall(conversation, sampling, self._deadline())
        generation: Generation = await self._ask(self._handle.generate.remote(call))
        return generation

    async def score(self, conversation: Conversation, choices: Sequence[str]) -> Scores:
        """See `Backend.score`."""
        scores: Scores = await self._ask(self._handle.score.remote(conversation, choices, self._deadline()))
        return scores

    async def ready(self) -> None:
        """See `Pool.ready`."""
        await self._ask(self._handle.ready.remote())

    def _deadline(self) -> float:
        return time.time() + self._config.request_timeout_seconds

    async def _ask(self, response: Any) -> Any:
        try:
            return await response
        except BackPressureError as error:
            raise Overloaded("too many requests wait for the model", fix="ask again in a moment") from error
        except DeploymentUnavailableError as error:
            raise ResourceError("the model is not available", fix="ask again later") from error
        except RayError as error:
            cause = cause_of(error)
            if cause is not None:
                raise cause from None
            if isinstance(error, RayTaskError):
                raise
            # A replica or its node died under the request.
            raise ResourceError("the replica that answered is gone", fix="ask again in a moment") from error


class Gateway:
    """A stateless front: builds the API in its own process, so that nothing of FastAPI is pickled."""

    def __init__(self, config: dict[str, Any], fingerprint: str, pool: DeploymentHandle) -> None:
        self._config = ServeConfig.model_validate(config)
        self._fingerprint = fingerprint
        self._pool = HandlePool(pool, self._config)

    def __serve_build_asgi_app__(self) -> Any:
        return create_api(self._config, self._pool, fingerprint=self._fingerprint)


def build(config: ServeConfig) -> Application:
    """The application: gateway in front of an autoscaled pool.

    A new version starts beside the old one (`max_surge_percent=100`), so an update drops no request.

    Raises:
        DataError: the model folder lacks config, safetensors weights, tokenizer or chat template.
    """
    config = config.model_copy(update={"model": model_folder(config.model)})
    settings = config.model_dump(mode="json")
    scaling = config.autoscaling
    pool = serve.deployment(
        name="ModelPool",
        autoscaling_config={
            "min_replicas": scaling.min_replicas,
            "initial_replicas": max(1, scaling.min_replicas),
            "max_replicas": scaling.max_replicas,
            "target_ongoing_requests": scaling.target_ongoing_requests,
            "upscale_delay_s": scaling.upscale_delay_s,
            "downscale_delay_s": scaling.downscale_delay_s,
        },
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        max_surge_percent=100,
        graceful_shutdown_timeout_s=config.request_timeout_seconds,
        health_check_period_s=10,
        health_check_timeout_s=60,
        ray_actor_options={"num_cpus": config.cpus_per_replica, "num_gpus": config.gpus_per_replica},
    )(ModelPool).bind(settings)
    gateway = serve.deployment(
        name="Gateway",
        num_replicas=config.gateway_replicas,
        # Looser than the pool's queue, so that a full house is told in the API's own error shape.
        max_ongoing_requests=2 * config.max_queued_requests + config.max_ongoing_requests,
        max_surge_percent=100,
        graceful_shutdown_timeout_s=config.request_timeout_seconds,
        ray_actor_options={"num_cpus": 0.1},
    )(serve.ingress()(Gateway))
    return gateway.bind(settings, model_fingerprint(config.model), pool)


def start(config: ServeConfig) -> str:
    """Deploy on the connected Ray and wait until a token was generated; returns the URL. Stopped by `stop`.

    Raises:
        DataError, ResourceError: see `check`; the model did not become ready.
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
    try:
        serve.run(build(config), name=config.name, route_prefix="/", blocking=False)
        _wait_until_ready(httpx, config)
    except BaseException:
        stop(config)
        raise
    return config.url


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
def serving(config: ServeConfig) -> Iterator[str]:
    """`start` and `stop` as one block; gives the URL."""
    url = start(config)
    try:
        yield url
    finally:
        stop(config)


def wait() -> None:
    """Block until a signal's exception ends it."""
    while True:
        time.sleep(3600)


def stop(config: ServeConfig) -> None:
    """End the application; others of the same Ray stay, and so does Serve's HTTP proxy until its Ray ends."""
    serve.delete(config.name)
