"""The gateway: every router of the HTTP API in one application, and every error in OpenAI's shape."""

from __future__ import annotations

import json
import logging

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

import polysome
from polysome.config import PolysomeError
from polysome.serving import batch_api, jobs_api, openai_api, pages, predict_api, reports_api
from polysome.serving.context import Context
from polysome.serving.jobs_api import UNAVAILABLE
from polysome.serving.metrics import Reason, rejected
from polysome.serving.protocol import ApiError, ErrorBody, as_api_error, from_validation, internal_error
from polysome.serving.readiness import Readiness

log = logging.getLogger(__name__)

_REJECTED: dict[int, Reason] = {408: "expired", 429: "overloaded", 503: "unavailable"}
_ROUTERS = (
    openai_api.router,
    predict_api.router,
    batch_api.router,
    jobs_api.router,
    reports_api.router,
    pages.router,
)


def create_api(context: Context) -> FastAPI:
    """The ASGI application of one model.

    Args:
        context: what answers, and within which limits.
    """
    api = FastAPI(
        title="Polysome",
        version=polysome.__version__,
        docs_url=None,
        redoc_url=None,
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
    )
    _map_errors(api)
    readiness = Readiness(context)

    @api.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The gateway's process lives."""
        return {"status": "ok"}

    @api.get("/readyz")
    async def readyz() -> dict[str, str]:
        """A replica generated a token lately."""
        await readiness.require()
        return {"status": "ready", "model": context.config.name}

    # For the document alone: keys are asked for further out, by `access.Guard`.
    told = [Depends(HTTPBearer(auto_error=False, description="An API key, where the server has keys."))]
    for router in _ROUTERS:
        api.include_router(router(context), dependencies=told)
    return api


def _map_errors(api: FastAPI) -> None:
    def respond(error: ApiError) -> Response:
        # A cluster of jobs that is gone says nothing of the models.
        if error.status in _REJECTED and error.code != UNAVAILABLE:
            rejected(_REJECTED[error.status])
        # ASCII: a message may repeat halves of characters that the caller sent, which UTF-8 cannot hold.
        return Response(json.dumps(error.body()), error.status, error.headers, "application/json")

    @api.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return respond(error)

    @api.exception_handler(RequestValidationError)
    async def validation(request: Request, error: RequestValidationError) -> Response:
        return respond(from_validation(list(error.errors())))

    @api.exception_handler(HTTPException)
    async def routing(request: Request, error: HTTPException) -> Response:
        code, message = {
            400: ("invalid_json", "the body cannot be read as JSON"),
            404: ("not_found", f"no route {request.url.path}"),
            405: ("method_not_allowed", f"{request.method} is not allowed here"),
        }.get(error.status_code, ("http_error", str(error.detail)))
        return respond(ApiError(error.status_code, message, code=code, headers=dict(error.headers or {})))

    @api.exception_handler(PolysomeError)
    async def expected(request: Request, error: PolysomeError) -> Response:
        return respond(as_api_error(error, request.headers.get("x-request-id", "")))

    @api.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        request_id = request.headers.get("x-request-id", "")
        log.error("request %s failed", request_id, exc_info=error)
        return respond(internal_error(request_id))
