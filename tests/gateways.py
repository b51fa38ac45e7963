"""The whole gateway, as it is served, before a pool without a model: as many of them as asked, behind one address."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fake_jobs import FakeJobs
from fake_pool import FakePool
from servers import round_robin, served

from polysome.operations.gateway_runs import GatewayRuns
from polysome.serving.access import Access, Guard
from polysome.serving.adapters import Published
from polysome.serving.config import ServeConfig
from polysome.serving.context import Context
from polysome.serving.gateway import create_api

MODEL, FINGERPRINT = "polysome", "42478f57e2ae1282"
ADAPTER = Published("promoters", 2, "unused", "9a1c03be77d2f450", FINGERPRINT, adapter_fingerprint="5e" * 8)


class Adapters:
    """A registry with one adapter."""

    def list(self) -> list[Published]:
        return [ADAPTER]

    def find(self, name: str) -> Published | None:
        return ADAPTER if name in (ADAPTER.name, ADAPTER.id) else None


@dataclass
class Behind:
    """What stands behind all gateways; they themselves hold nothing.

    Args:
        folder: holds `runs` and `batches`.
        settings: of `ServeConfig`, besides the folders.
    """

    folder: Path
    pool: FakePool = field(default_factory=FakePool)
    jobs: FakeJobs = field(default_factory=FakeJobs)
    settings: dict[str, Any] = field(default_factory=dict)
    seen: list[tuple[int, str, str]] = field(default_factory=list)
    """Gateway, method and path of every request."""

    @property
    def runs(self) -> str:
        return str(self.folder / "runs")

    def gateway(self, place: int = 0) -> Any:
        """One of them, as an ASGI application."""
        config = ServeConfig(
            model="unused", name=MODEL, runs=self.runs, batches=str(self.folder / "batches"), **self.settings
        )
        context = Context(
            config,
            self.pool,
            FINGERPRINT,
            registry=Adapters(),  # type: ignore[arg-type]  # what the gateway asks of one
            jobs=self.jobs,
            runs=GatewayRuns(self.runs),
            max_model_len=2048,
        )
        guarded = Guard(create_api(context), Access.of(config))

        async def noting(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                self.seen.append((place, scope["method"], scope["path"]))
            await guarded(scope, receive, send)

        return noting


@contextlib.contextmanager
def gateways(behind: Behind, servers: int = 1) -> Iterator[str]:
    """So many gateways over HTTP; gives the one URL of all."""
    Path(behind.runs).mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(served(behind.gateway(place))) for place in range(servers)]
        yield urls[0] if servers == 1 else stack.enter_context(served(round_robin(urls)))
