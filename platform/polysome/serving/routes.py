"""The routes of the gateway and what each asks of a key: the one table; what is not in it is not there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from polysome.serving.keys import Scope


@dataclass(frozen=True)
class Route:
    """One method of one path."""

    method: str
    path: str
    """As FastAPI writes it: `{name}` is one part of a path."""
    scope: Scope | None
    """What a key needs; None: open to all."""
    batch: bool = False
    """Whether the body is bounded by `limits.batch_bytes`, not by `limits.body_bytes`."""


ROUTES = (
    # Open: they tell whether the server lives, or hold pages without data.
    Route("GET", "/healthz", None),
    Route("GET", "/readyz", None),
    Route("GET", "/", None),
    Route("GET", "/chat", None),
    Route("GET", "/models", None),
    Route("GET", "/evaluations", None),
    Route("GET", "/jobs", None),
    Route("GET", "/static/{name}", None),
    Route("GET", "/openapi.json", "infer"),
    Route("GET", "/v1/models", "infer"),
    Route("GET", "/v1/models/{id}", "infer"),
    Route("POST", "/v1/completions", "infer"),
    Route("POST", "/v1/chat/completions", "infer"),
    Route("POST", "/v1/embeddings", "infer"),
    Route("POST", "/v1/score", "infer"),
    Route("GET", "/v1/tasks", "infer"),
    Route("POST", "/v1/predict", "infer"),
    Route("POST", "/v1/predict/batch", "batch", batch=True),
    Route("GET", "/v1/predict/batch/{id}", "batch"),
    Route("GET", "/v1/predict/batch/{id}/result", "batch"),
    Route("DELETE", "/v1/predict/batch/{id}", "batch"),
    Route("GET", "/v1/runs", "infer"),
    Route("GET", "/v1/runs/{id}", "infer"),
    Route("GET", "/v1/evaluations", "infer"),
    Route("GET", "/v1/evaluations/{id}/report", "infer"),
    Route("GET", "/v1/recipes", "submit"),
    Route("GET", "/v1/jobs", "submit"),
    Route("POST", "/v1/jobs", "submit"),
    Route("GET", "/v1/jobs/{id}", "submit"),
    Route("GET", "/v1/jobs/{id}/logs", "submit"),
    Route("POST", "/v1/jobs/{id}/stop", "submit"),
    Route("POST", "/v1/jobs/{id}/resume", "submit"),
)


def routes_at(path: str) -> Mapping[str, Route]:
    """The routes of a request's path, by method; none where the table has no such path."""
    if path in _PLAIN:
        return _PLAIN[path]
    return next((routes for pattern, routes in _PATTERNS if pattern.fullmatch(path)), {})


def _by_path() -> dict[str, dict[str, Route]]:
    found: dict[str, dict[str, Route]] = {}
    for route in ROUTES:
        found.setdefault(route.path, {})[route.method] = route
    return found


_PLAIN = {path: routes for path, routes in _by_path().items() if "{" not in path}
_PATTERNS = [
    (re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path))), routes)
    for path, routes in _by_path().items()
    if "{" in path
]
