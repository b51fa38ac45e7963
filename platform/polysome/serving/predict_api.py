"""`POST /v1/predict`: a declared task asked of a few records, answered at once; and what can be asked, `/v1/tasks`."""

from __future__ import annotations

import asyncio
import os
import tempfile
from itertools import islice
from typing import Annotated

from fastapi import APIRouter
from pydantic import Field, model_validator

from polysome.config import Config, DataError
from polysome.serving import tasks_api
from polysome.serving.calibrations import Calibrations
from polysome.serving.calls import Target
from polysome.serving.context import Context
from polysome.serving.prediction import (
    Answered,
    Prediction,
    Predictor,
    RawRecord,
    Record,
    read_record,
    task_spec,
)
from polysome.serving.protocol import at_most
from polysome.serving.records import read_entries
from polysome.specs import Dataset


class PredictRequest(Config):
    """`POST /v1/predict`."""

    task: Annotated[str, Field(min_length=1, max_length=128)]
    """Name of a data set in `datasets_spec/` that has a task."""
    sequences: Annotated[list[RawRecord], Field(min_length=1)] | None = None
    """One sequence per record; where the task has two molecules, an object with a sequence for each role."""
    fasta: Annotated[str, Field(min_length=1)] | None = None
    """The same as FASTA, for tasks with one molecule; answers bear the names of its records."""
    model: str | None = None
    """The base, an adapter, or one of its versions, as `/v1/models` lists them."""

    @model_validator(mode="after")
    def _one_source(self) -> PredictRequest:
        if (self.sequences is None) == (self.fasta is None):
            raise ValueError("give sequences or fasta, one of them")
        return self


class PredictAnswer(Answered):
    """The answer of `POST /v1/predict`."""

    predictions: list[Prediction]


def router(context: Context) -> APIRouter:
    """The routes of one gateway."""
    routes = APIRouter()
    limits = context.config.limits
    calibrations = Calibrations.read(context.config, context.fingerprint)

    @routes.post("/v1/predict")
    async def predict(request: PredictRequest) -> PredictAnswer:
        """A label with its probability, or a number with its interval, for each record."""
        target = await context.target(request.model)
        spec = task_spec(request.task)
        records = await asyncio.to_thread(_read, request, spec)
        evidence = calibrations.of(spec, target)
        predictor = Predictor(
            spec,
            context.bulk,
            prompt=context.config.prompt,
            max_new_tokens=limits.default_max_tokens,
            evidence=evidence,
        )
        predictions = await context.within(target, predictor.predict(records, target))
        told = answered(context, spec, target, evidence.note)
        return PredictAnswer(**told.model_dump(), predictions=predictions)

    def _read(request: PredictRequest, spec: Dataset) -> list[Record]:
        if request.sequences is not None:
            at_most("sequences", len(request.sequences), limits.records)
            named = [(str(number), raw) for number, raw in enumerate(request.sequences, start=1)]
        else:
            assert request.fasta is not None
            named = _of_fasta(request.fasta, spec, limits.records + 1)
            at_most("fasta", len(named), limits.records)
        field = "sequences" if request.sequences is not None else "fasta"
        return [
            Record(
                index,
                name,
                raw,
                tuple(read_record(spec, raw, where=f"{field}[{index}]", longest=limits.sequence_characters)),
            )
            for index, (name, raw) in enumerate(named)
        ]

    routes.include_router(tasks_api.router(calibrations))
    return routes


def _of_fasta(text: str, spec: Dataset, most: int) -> list[tuple[str, RawRecord]]:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "fasta")
        with open(path, "wb") as file:
            # A half of a character, which JSON may hold, is no letter of any molecule either.
            file.write(text.encode("utf-8", "backslashreplace"))
        if text.lstrip()[:1] != ">":
            raise DataError("this is not FASTA, which begins with '>'", where="fasta", fix="send FASTA, or sequences")
        named: list[tuple[str, RawRecord]] = []
        try:
            for entry in islice(read_entries(path, spec), most):
                if entry.raw is None:
                    raise DataError(entry.problem, where=f"fasta[{len(named)}]", fix="mend the record")
                named.append((entry.id, entry.raw))
        except DataError as error:
            # Where the file stood here says nothing to the caller.
            where = error.where if error.where.startswith("fasta[") else "fasta"
            raise DataError(error.what, where=where, fix=error.fix) from error
    return named


def answered(context: Context, spec: Dataset, target: Target, note: str) -> Answered:
    """What is told of all answers to one request."""
    return Answered(
        task=spec.name,
        model=context.config.name,
        adapter=target.adapter.id if target.adapter else None,
        system_fingerprint=context.system_fingerprint(target),
        calibration=note,
    )
