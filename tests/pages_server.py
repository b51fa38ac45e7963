"""The pages over an API that answers without a model or a cluster, in as many servers as asked, behind one address."""

import asyncio
import contextlib
import json
from collections import namedtuple
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from servers import round_robin, served

from polysome.operations.gateway_runs import GatewayRuns
from polysome.serving import pages, reports_api
from polysome.serving.config import Limits, ServeConfig
from polysome.serving.context import Context
from polysome.serving.protocol import ApiError

MODEL, ADAPTER, FINGERPRINT = "polysome", "promoters@2", "fp_42478f57e2ae1282"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
OPEN = ("/", "/chat", "/models", "/evaluations", "/jobs")
Caller = namedtuple("Caller", "key_id team scopes")
TATA = "GCGCGGAGCCTATAAAAGGCAGCGGCTCAGTCGGCACTCAGTTCCGAGCTGCAGCTTGGACCTGACCAGTC"
PLAIN = "CATTGACCGATTACGGCATCGATTGCCATGACCTTAGCGATCCAATGCCGTTAGCATTCGGATACCATTGA"


def task(name: str, title: str, question: str, types: dict[str, str], **rest: Any) -> dict[str, Any]:
    letters = {"dna": "ACGTN", "rna": "ACGUN", "protein": "ACDEFGHIKLMNPQRSTVWYX"}
    bounds = rest.pop("bounds", (20, 1000))
    return {
        "name": name,
        "title": title,
        "question": question,
        "kind": "binary" if "labels" in rest else "regression",
        "labels": None,
        "minimum": None,
        "maximum": None,
        "examples_from": "evaluation",
        "measured": None,
        "molecules": [
            {
                "role": role,
                "type": kind,
                "minimum_length": bounds[0],
                "maximum_length": bounds[1],
                "alphabet": letters[kind],
            }
            for role, kind in types.items()
        ],
        **rest,
    }


TASKS = [
    task(
        "core_promoter",
        "Core promoter detection",
        "Is there a core promoter in this sequence?",
        {"sequence": "dna"},
        labels=["yes", "no"],
        bounds=(20, 200),
        measured={"metric": "mcc", "value": 0.6184, "low": 0.5989, "high": 0.6395, "rows": 5920, "evaluation": "exam"},
        examples=[{"sequence": TATA}, {"sequence": PLAIN}],
    ),
    task(
        "ncrna_family",
        "Non-coding RNA family",
        "Which family does this RNA belong to?",
        {"sequence": "rna"},
        labels=["5S_rRNA", "5_8S_rRNA", "tRNA", "ribozyme", "miRNA", "snRNA", "riboswitch", "IRES"],
        examples=[{"sequence": "GCGGAUUUAGCUCAGUUGGGAGAGCGCCAGACUGAAGAUCUGGAGGUCCUGUGUUCGAUCCACAGAAUUCGCACCA"}],
    ),
    task(
        "thermostability",
        "Protein thermostability",
        "At which temperature does half of this protein unfold?",
        {"sequence": "protein"},
        minimum=0,
        maximum=110,
        examples_from="random",
        examples=[{"sequence": "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVV"}],
    ),
    task(
        "rna_protein_interaction",
        "RNA-protein interaction",
        "Do these two molecules interact?",
        {"rna": "rna", "protein": "protein"},
        labels=["yes", "no"],
        examples=[{"rna": "GGCUACGUAGCUAGGCUAGCAUCGAUC", "protein": "MKTAYIAKQRQISFVKSHFSRQLEERLG"}],
    ),
]
RECIPES = [
    {
        "name": "train_promoters",
        "description": "Train an adapter on labelled promoters, evaluate it, and publish it when it is good.",
        "parameters": {
            "type": "object",
            "required": ["data"],
            "additionalProperties": False,
            "properties": {
                "epochs": {
                    "type": "integer",
                    "minimum": 1,
                    "maximum": 20,
                    "default": 3,
                    "description": "Passes over the data.",
                },
                "data": {
                    "type": "string",
                    "pattern": "^(?:s3://[a-z0-9/_-]+)$",
                    "description": "Folder or URL of the labelled table.",
                },
                "priority": {"enum": ["low", "normal"], "default": "normal", "description": "When others wait too."},
                "publish": {"type": "boolean", "default": True, "description": "Only if the evaluation is better."},
            },
        },
    }
]


@dataclass
class Cluster:
    """What stands behind all servers: jobs and batches. The servers themselves hold nothing."""

    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    seen: list[tuple[int, str, str]] = field(default_factory=list)
    """Server, method and path of every request."""
    busy: int = 0
    """So many further predictions are refused with 429."""


def job(job_id: str, status: str, **rest: Any) -> dict[str, Any]:
    content = {
        "id": job_id,
        "recipe": "train_promoters",
        "status": status,
        "team": "genomics",
        "user": "ada",
        "submitted": "2026-11-20T12:52:08+00:00",
        "run": job_id,
        "progress": None,
        "message": "",
    }
    return content | rest


def api(cluster: Cluster, runs: Path | None, keys: dict[str, Caller] | None, place: int = 0) -> FastAPI:
    """One server. Without keys it is open to anybody."""
    config = ServeConfig(model="unused", batches="unused", runs=str(runs), limits=Limits(records=3))
    context = Context(
        config,
        pool=None,  # type: ignore[arg-type]  # nothing here asks a model
        fingerprint="",
        jobs=object(),  # type: ignore[arg-type]  # the routes below answer
        runs=GatewayRuns(str(runs)) if runs else None,
    )
    app = FastAPI()
    app.include_router(pages.router(context))
    app.include_router(reports_api.router(context))

    @app.exception_handler(ApiError)
    async def told(request: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), status_code=error.status, headers=error.headers)

    @app.middleware("http")
    async def access(request: Request, answer: Any) -> Response:
        path = request.url.path
        cluster.seen.append((place, request.method, path))
        caller = Caller("", "", {"infer", "batch", "submit", "admin"})
        if keys is not None and path not in OPEN and not path.startswith("/static/"):
            found = keys.get(request.headers.get("authorization", "").removeprefix("Bearer "))
            if found is None:
                error = ApiError(401, "the API key is not valid", code="invalid_api_key")
                return JSONResponse(error.body(), status_code=401)
            caller = found
        if "submit" not in caller.scopes and path.startswith(("/v1/jobs", "/v1/recipes")):
            return JSONResponse(ApiError(403, "the key lacks submit", code="forbidden").body(), status_code=403)
        request.state.caller = caller
        response = await answer(request)
        response.headers.setdefault("content-security-policy", POLICY)
        response.headers["x-content-type-options"] = "nosniff"
        return response

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        shared = {"object": "model", "created": 1795179208, "owned_by": "polysome", "max_model_len": 2048}
        adapter = {
            "id": ADAPTER,
            "parent": MODEL,
            "root": "promoters",
            "fingerprint": f"{FINGERPRINT}-9a1c03be77d2f450",
        }
        return {"data": [{"id": MODEL, "parent": None, "fingerprint": FINGERPRINT, **shared}, {**adapter, **shared}]}

    @app.get("/v1/tasks")
    async def tasks() -> dict[str, Any]:
        return {"data": TASKS}

    @app.post("/v1/predict")
    async def predict(request: Request) -> Any:
        body = await request.json()
        if cluster.busy:
            cluster.busy -= 1
            error = ApiError(429, "too many requests wait", code="overloaded", headers={"retry-after": "1"})
            return JSONResponse(error.body(), status_code=429, headers=error.headers)
        spec = next(one for one in TASKS if one["name"] == body["task"])
        limit = context.config.limits.records
        if len(body["sequences"]) > limit:
            raise ApiError(400, f"sequences: above the limit of {limit}", code="limit_exceeded", param="sequences")
        for number, record in enumerate(body["sequences"]):
            if isinstance(record, str) and len(record) < 20:
                raise ApiError(400, "too short", code="invalid_value", param=f"sequences[{number}]")
        await asyncio.sleep(0.02)
        adapter = body.get("model") if body.get("model") != MODEL else None
        return {
            "object": "list",
            "task": spec["name"],
            "model": MODEL,
            "adapter": adapter,
            "system_fingerprint": FINGERPRINT,
            "calibration": f"fitted on 500 dev rows of {spec['name']}",
            "predictions": [
                {"id": str(number + 1), "index": number, **_answer(spec, record)}
                for number, record in enumerate(body["sequences"])
            ],
        }

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> StreamingResponse:
        body = await request.json()
        words = ["Yes", ", a", " core", " promoter", " is", " predicted", "."]
        if "poem" in body["messages"][-1]["content"]:
            words = [f"word{number} " for number in range(10_000)]
        broken = "break" in body["messages"][-1]["content"]

        async def events() -> AsyncIterator[str]:
            shared = {"id": "c", "model": body["model"], "system_fingerprint": FINGERPRINT}
            for place, word in enumerate(words):
                await asyncio.sleep(0.03)
                if broken and place == 2:
                    error = {"message": "the replica is gone", "code": "unavailable"}
                    yield f"data: {json.dumps({'error': error})}\n\n"
                    return
                choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
                yield f": alive\n\ndata: {json.dumps({**shared, 'choices': [choice]})}\n\n"
            last = {"index": 0, "delta": {}, "finish_reason": "stop"}
            yield f"data: {json.dumps({**shared, 'choices': [last]})}\n\n"
            yield f"data: {json.dumps({**shared, 'choices': [], 'usage': {'completion_tokens': len(words)}})}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.post("/v1/predict/batch")
    async def send_batch(request: Request, task: str) -> dict[str, Any]:
        batch_id = f"batch-{len(cluster.batches) + 1}"
        records = (await request.body()).count(b">")
        cluster.batches[batch_id] = {
            "id": batch_id,
            "task": task,
            "status": "queued",
            "done": 0,
            "records": records,
            "errors": None,
        }
        return cluster.batches[batch_id]

    @app.get("/v1/predict/batch/{batch_id}")
    async def batch(batch_id: str) -> dict[str, Any]:
        if batch_id not in cluster.batches:
            raise ApiError(404, f"no batch {batch_id!r}", code="batch_not_found")
        found = cluster.batches[batch_id]
        done = min(found["records"], found["done"] + 2)
        found |= {"done": done, "status": "finished" if done == found["records"] else "running"}
        found["errors"] = 1 if found["status"] == "finished" else None
        return found

    @app.get("/v1/predict/batch/{batch_id}/result")
    async def result(batch_id: str) -> Response:
        return Response("id,label\nr1,yes\n", media_type="text/csv")

    @app.delete("/v1/predict/batch/{batch_id}")
    async def delete(batch_id: str) -> dict[str, Any]:
        return cluster.batches.pop(batch_id)

    @app.get("/v1/recipes")
    async def recipes() -> dict[str, Any]:
        return {"data": RECIPES}

    @app.get("/v1/jobs")
    async def jobs() -> dict[str, Any]:
        return {"data": list(reversed(cluster.jobs.values()))}

    @app.post("/v1/jobs")
    async def submit(request: Request) -> dict[str, Any]:
        body = await request.json()
        job_id = f"{body['recipe']}-{len(cluster.jobs) + 1}"
        cluster.jobs[job_id] = job(job_id, "running", progress=0.25, message=json.dumps(body["parameters"]))
        return cluster.jobs[job_id]

    @app.get("/v1/jobs/{job_id}/logs")
    async def logs(job_id: str, tail: int) -> dict[str, Any]:
        return {
            "id": job_id,
            "logs": f"{job_id}: update 20 of 625, loss 5.57\n{job_id}: <b>update 40</b> of 625, loss 2.28\n",
        }

    @app.post("/v1/jobs/{job_id}/{what}")
    async def act(job_id: str, what: str) -> dict[str, Any]:
        cluster.jobs[job_id]["status"] = {"stop": "stopped", "resume": "running"}[what]
        return cluster.jobs[job_id]

    return app


def _answer(spec: dict[str, Any], record: Any) -> dict[str, Any]:
    sequence = record if isinstance(record, str) else "".join(record.values())
    warnings = (
        [{"code": "ambiguous", "message": "12% of the letters are ambiguity codes"}] if "NNNN" in sequence else []
    )
    if spec["labels"] is None:
        value = 40 + sum(map(ord, sequence)) % 400 / 10
        return {
            "label": None,
            "probability": None,
            "probabilities": None,
            "calibrated": False,
            "value": value,
            "interval": [value - 4.2, value + 3.6],
            "text": f"About {value:.2f} degrees.",
            "warnings": warnings,
        }
    first = 0 if "TATAAA" in sequence else 1
    likely = 0.86 + sum(map(ord, sequence)) % 130 / 1000
    rest = (1 - likely) / (len(spec["labels"]) - 1)
    shares = {label: likely if place == first else rest for place, label in enumerate(spec["labels"])}
    label = spec["labels"][first]
    text = f"{label.capitalize()}, <img src=x onerror=alert(1)> predicted." if len(sequence) > 71 else f"{label}."
    return {
        "label": label,
        "probability": likely,
        "probabilities": shares,
        "calibrated": True,
        "value": None,
        "interval": None,
        "text": text,
        "warnings": warnings,
    }


@contextlib.contextmanager
def pages_served(
    runs: Path | None = None, *, cluster: Cluster | None = None, keys: dict[str, Caller] | None = None, servers: int = 1
) -> Iterator[str]:
    """The pages, behind one address."""
    cluster = cluster or Cluster()
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(served(api(cluster, runs, keys, place))) for place in range(servers)]
        yield urls[0] if servers == 1 else stack.enter_context(served(round_robin(urls)))
