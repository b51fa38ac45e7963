"""`/v1/predict/batch`: a file of records in, a table of answers out, by whichever gateway is alive."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Path, Query, Request
from fastapi.responses import StreamingResponse

from polysome.config import ConfigurationError, DataError
from polysome.serving.batch_worker import Worker
from polysome.serving.batches import Batch, Batches
from polysome.serving.calibrations import Calibrations
from polysome.serving.context import Context
from polysome.serving.prediction import task_spec
from polysome.serving.protocol import ApiError
from polysome.storage import join

log = logging.getLogger(__name__)

# Of gzip, bzip2, xz, zstd and zip: a small file of these may hold any number of records.
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")

_EXAMPLES = {"text/x-fasta": ">a\nACGTTATAAAACGTACGTAC\n", "text/csv": "id,sequence\na,ACGTTATAAAACGTACGTAC\n"}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": {"type": "string"}, "example": text} for kind, text in _EXAMPLES.items()},
    }
}
"""For the document alone: the body is read piece by piece."""

Id = Annotated[str, Path(alias="id")]


def router(context: Context) -> APIRouter:
    """The routes of one gateway, and its worker, which runs while the application does."""
    config = context.config
    if config.batches is None:
        return APIRouter()
    # Models that share the folder do not take up each other's.
    store = Batches(join(config.batches, config.name))
    worker = Worker(context, store, Calibrations.read(config, context.fingerprint))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker.wake()
        yield
        await worker.close()

    routes = APIRouter(lifespan=lifespan)

    @routes.post("/v1/predict/batch", status_code=202, openapi_extra=_BODY)
    async def submit(
        request: Request, task: Annotated[str, Query(min_length=1, max_length=128)], model: str | None = None
    ) -> dict[str, Any]:
        """Keep a FASTA file or a table of records, and answer them one after the other."""
        spec, target = task_spec(task), await context.target(model)
        if request.headers.get("content-encoding", "identity") != "identity":
            raise ApiError(400, "the body must not be compressed", code="compressed", param="content-encoding")
        with tempfile.TemporaryFile() as spool:
            async for piece in request.stream():
                spool.write(piece)
                if spool.tell() > config.limits.batch_bytes:
                    told = f"the body is larger than {config.limits.batch_bytes} bytes"
                    raise ApiError(413, told, code="body_too_large")
            spool.seek(0)
            _require_text(spool.read(4096))
            spool.seek(0)
            pinned = target.adapter.id if target.adapter else config.name
            batch = await asyncio.to_thread(
                store.create, spool, spec, pinned, _team(request), most=config.limits.batch_records
            )
        worker.wake()
        return await asyncio.to_thread(store.status, batch)

    @routes.get("/v1/predict/batch/{id}")
    async def status(request: Request, batch_id: Id) -> dict[str, Any]:
        """How far a batch is."""
        return await asyncio.to_thread(store.status, await own(request, batch_id))

    @routes.get(
        "/v1/predict/batch/{id}/result",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/csv": {}}}},
    )
    async def result(request: Request, batch_id: Id) -> StreamingResponse:
        """The answers of a finished batch as CSV, a row for each record in their order."""
        batch = await own(request, batch_id)
        end = await asyncio.to_thread(store.end, batch_id)
        if end is None or end.status != "finished":
            state = "is not finished yet" if end is None else f"failed: {end.message}"
            raise ApiError(400, f"batch {batch_id} {state}", code="batch_not_finished", headers={"retry-after": "10"})
        pieces = store.result(batch, task_spec(batch.task))
        named = {"content-disposition": f'attachment; filename="{batch_id}.csv"'}
        return StreamingResponse(pieces, media_type="text/csv; charset=utf-8", headers=named)

    @routes.delete("/v1/predict/batch/{id}")
    async def delete(request: Request, batch_id: Id) -> dict[str, Any]:
        """Stop a batch, and remove its records and answers."""
        await own(request, batch_id)
        await asyncio.to_thread(store.delete, batch_id)
        return {"id": batch_id, "object": "batch", "deleted": True}

    async def own(request: Request, batch_id: str) -> Batch:
        try:
            batch = await asyncio.to_thread(store.read, batch_id)
        except (DataError, ConfigurationError) as error:
            log.error("batch %s cannot be read: %s", batch_id, error)
            told = f"the record of batch {batch_id} is damaged; tell the operators, or send the records again"
            raise ApiError(500, told, code="batch_damaged") from error
        # Another team's is told like one that is not there.
        if batch is None or batch.team != _team(request):
            raise ApiError(404, f"no batch {batch_id!r}", code="batch_not_found", param="id")
        return batch

    return routes


def _team(request: Request) -> str:
    """Of the caller; empty where the server has no keys."""
    caller = getattr(request.state, "caller", None)
    return caller.team if caller is not None else ""


def _require_text(head: bytes) -> None:
    if not head.strip():
        raise ApiError(400, "the body is empty; send FASTA, or a table with a header", code="invalid_value")
    if head.startswith(_COMPRESSED) or b"\0" in head:
        raise ApiError(400, "the body is compressed or no text; send FASTA or CSV as it is", code="compressed")
