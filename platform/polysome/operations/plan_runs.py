"""What a planned job would meet: the run folder's present content, and the machines that are there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from polysome.operations import runs
from polysome.operations.machine import inspect
from polysome.operations.pipeline_check import changed_steps
from polysome.operations.pipeline_config import PipelineConfig
from polysome.operations.recipes import Recipe
from polysome.storage import absolute, exists, fingerprint, join


@dataclass(frozen=True)
class Present:
    """What is there to run on.

    Attributes:
        where: in words, behind "are".
        gpu: name of the GPUs, where there are any.
        memory: bytes, of this machine.
        disk_free: bytes of the runs folder; None when it is remote.
    """

    where: str
    cpus: int
    gpus: int
    gpu: str | None
    memory: int
    disk_free: int | None


def present(runs_root: str) -> Present:
    """The cluster at RAY_ADDRESS when that is set, else this machine.

    Raises:
        ResourceError: no cluster answers at RAY_ADDRESS.
    """
    local = urlsplit(runs_root).scheme in ("", "file")
    machine = inspect(absolute(runs_root) if local else ".")
    free = machine.disk_available if local else None
    address = os.environ.get("RAY_ADDRESS", "")
    if address and address != "local":
        from polysome.operations.cluster import connect

        with connect(cpus=0) as cluster:
            import ray

            kinds = [name.partition(":")[2] for name in ray.cluster_resources() if name.startswith("accelerator_type:")]
        gpu = kinds[0] if kinds else None
        return Present("on the cluster now", int(cluster.cpus), int(cluster.gpus), gpu, machine.memory, free)
    import torch

    gpus = torch.cuda.device_count()
    gpu = torch.cuda.get_device_name(0) if gpus else None
    return Present("here", machine.cpus, gpus, gpu, machine.memory, free)


def overwritten(recipe: Recipe, runs_root: str, run_id: str | None) -> Iterator[str]:
    """What stands in the run folder and what the job would do with it, in sentences.

    Nothing is ever overwritten in silence: a finished step of the same configuration is kept, an unfinished one goes
    on from its newest checkpoint, and one of another configuration is refused.
    """
    if run_id is None:
        yield f"a new folder {join(runs_root, recipe.name + '-<time>')}: nothing is overwritten"
        return
    folder = join(absolute(runs_root), run_id)
    if not exists(join(folder, runs.RECORD)):
        there = exists(folder)
        yield (
            f"{folder} is no run folder, and is refused" if there else f"a new folder {folder}: nothing is overwritten"
        )
        return
    yield _fate(folder, recipe)
    if recipe.job == "pipeline":
        changed = refused(recipe, runs_root, run_id)
        for step, record in runs.list_steps(folder):
            differing = changed.get(record.id)
            fate = f"refused, differs in {', '.join(differing)}" if differing else _status(step, record)
            yield f"  {record.id}: {fate}"


def refused(recipe: Recipe, runs_root: str, run_id: str | None) -> dict[str, list[str]]:
    """Steps of the run that stand there with other settings, and which; none for a new run."""
    if run_id is None or not isinstance(recipe.config, PipelineConfig):
        return {}
    return changed_steps(recipe.config, join(absolute(runs_root), run_id))


def _fate(folder: str, recipe: Recipe) -> str:
    record = runs.read_run(folder)
    same = record.config_fingerprint == fingerprint(recipe.config.model_dump(mode="json"))
    if record.status in runs.ALIVE:
        return f"{folder} is {record.status}, and is refused"
    if not same and recipe.job != "pipeline":
        return f"{folder} has another configuration, and is refused; nothing is overwritten"
    if not same:
        return f"{folder} has another configuration: it goes on if no step that stands there changes"
    return f"{folder} goes on: {_status(folder, record)}"


def _status(folder: str, record: runs.RunRecord) -> str:
    from polysome.training import checkpoint
    from polysome.training.stage import CHECKPOINTS

    if record.status == "finished":
        return "finished, is kept"
    newest = checkpoint.newest(join(folder, CHECKPOINTS)) if record.job == "train" else None
    if newest is None:
        return f"{record.status}, begins anew" if record.job == "train" else f"{record.status}, is taken up"
    return f"{record.status}, resumes from {newest.rsplit('/', 1)[-1]}"
