"""Checkpoints that do not know the number of workers: fp32 master weights and Adam moments by parameter name.

A checkpoint is a folder `update-<number>` with safetensors parts and `state.json`; the file COMMITTED is written last,
and a folder without it does not count.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fsspec.core import url_to_fs

from polysome.config import DataError
from polysome.storage import exists, join, list_folder, make_folder, open_atomic, read_json, remove, write_json
from polysome.storage.local import local_folder

if TYPE_CHECKING:
    import torch
    from deepspeed import DeepSpeedEngine

logger = logging.getLogger(__name__)

COMMITTED = "COMMITTED"
STATE = "state.json"
_PREFIX = "update-"
_PART_BYTES = 2 << 30
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Progress:
    """How far a stage is.

    Attributes:
        update: optimizer updates done.
        position: packed rows consumed; the next update starts there.
        tokens: unpadded tokens consumed.
        seconds: time spent in updates, over all attempts.
        loss: of the last logged row, in nats; None before the first.
    """

    update: int = 0
    position: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float | None = None


def trainable(engine: DeepSpeedEngine) -> list[tuple[str, torch.nn.Parameter]]:
    """Names (as in the causal model) and parameters that train, in one order on every worker."""
    return [(name, parameter) for name, parameter in engine.module.causal.named_parameters() if parameter.requires_grad]


def masters(engine: DeepSpeedEngine, *, keep: bool) -> dict[str, torch.Tensor]:
    """fp32 master weights by name, on the CPU. Collective: all workers call it; those without `keep` get nothing."""
    from deepspeed.utils import safe_get_full_fp32_param

    result = {}
    for name, parameter in trainable(engine):
        value = safe_get_full_fp32_param(parameter)
        if keep:
            result[name] = value.detach().to("cpu", copy=True)
    return result


def newest(folder: str) -> str | None:
    """The newest committed checkpoint below `folder`, or None."""
    committed = _committed(folder)
    return join(folder, committed[-1]) if committed else None


def check_fingerprint(checkpoint: str, fingerprint: str) -> None:
    """Refuse a checkpoint of another stage.

    Raises:
        DataError: it was written under another configuration or other data.
    """
    found = read_json(join(checkpoint, STATE))["fingerprint"]
    if found != fingerprint:
        raise DataError(
            f"the checkpoint was written by a stage with fingerprint {found}, and this stage has {fingerprint}: "
            "its configuration or its data differ",
            where=checkpoint,
            fix="give the changed stage a run folder of its own, or restore the configuration and data to resume",
        )


def save(engine: DeepSpeedEngine, folder: str, progress: Progress, *, fingerprint: str, keep: int) -> str:
    """Write and commit a checkpoint, then remove all but the newest `keep` committed ones. Collective; worker 0 writes.

    Returns:
        The checkpoint's folder.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    writes = engine.global_rank == 0
    target = join(folder, f"{_PREFIX}{progress.update:08d}")
    if writes:
        remove(target)  # an uncommitted left-over of a killed attempt
        make_folder(target)
    _relink(engine)
    part: dict[str, torch.Tensor] = {}
    parts = 0
    for name, parameter in trainable(engine):
        values = {name: safe_get_full_fp32_param(parameter)}
        for moment in _MOMENTS:
            values[f"{name}//{moment}"] = safe_get_full_optimizer_state(parameter, moment)
        if writes:
            part |= {key: value.detach().to("cpu", copy=True).contiguous() for key, value in values.items()}
            if sum(value.nbytes for value in part.values()) >= _PART_BYTES:
                _write_part(target, parts, part)
                part, parts = {}, parts + 1
    if writes:
        if part:
            _write_part(target, parts, part)
            parts += 1
        write_json(
            join(target, STATE),
            {
                "format": 1,
                "fingerprint": fingerprint,
                "parts": parts,
                "progress": asdict(progress),
                "optimizer_steps": _optimizer_steps(engine),
                "learning_rates": [group["lr"] for group in engine.optimizer.param_groups],
            },
        )
        with open_atomic(join(target, COMMITTED), "w") as handle:
            handle.write(f"{progress.update}\n")
        prune(folder, keep)
        logger.info("checkpoint at update %d: %s", progress.update, target)
    return target


def load(engine: DeepSpeedEngine, checkpoint: str, *, fingerprint: str) -> Progress:
    """Put a committed checkpoint into the engine, its optimizer and its scheduler. All workers call it.

    Raises:
        DataError: it belongs to another configuration or other data, or does not hold exactly the parameters that
            train.
    """
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    check_fingerprint(checkpoint, fingerprint)
    state = read_json(join(checkpoint, STATE))
    optimizer = engine.optimizer
    for flat in optimizer.single_partition_of_fp32_groups:
        optimizer.optimizer.state[flat] = fresh_state(optimizer.optimizer, flat, steps=state["optimizer_steps"])
    _relink(engine)
    with _open_parts(checkpoint, state["parts"]) as (names, read):
        parameters = dict(trainable(engine))
        if names != {key for name in parameters for key in (name, *(f"{name}//{moment}" for moment in _MOMENTS))}:
            raise DataError(
                "the checkpoint holds other parameters than the model trains",
                where=checkpoint,
                fix="give the stage a run folder of its own",
            )
        for name, parameter in parameters.items():
            master = read(name).to(parameter.device)
            safe_set_full_fp32_param(parameter, master)
            for moment in _MOMENTS:
                safe_set_full_optimizer_state(parameter, read(f"{name}//{moment}").to(parameter.device), moment)
            parameter.data.copy_(master.to(parameter.dtype))
    progress = Progress(**state["progress"])
    scheduler = engine.lr_scheduler
    scheduler.last_epoch = progress.update
    scheduler._last_lr = list(state["learning_rates"])
    for group, rate in zip(optimizer.param_groups, state["learning_rates"], strict=True):
        group["lr"] = rate
    engine.global_steps = progress.update
    return progress


def fresh_state(optimizer: torch.optim.Optimizer, flat: torch.Tensor, *, steps: int) -> dict[str, Any]:
    """State of one flat fp32 partition after `steps` steps, moments still zero, all on the partition's device."""
    import torch

    # torch's fused AdamW counts in a tensor, which must lie beside the parameter; DeepSpeed's counts in an integer.
    counts_in_tensor = isinstance(optimizer, torch.optim.AdamW)
    return {
        "step": torch.tensor(float(steps), device=flat.device) if counts_in_tensor else steps,
        **{moment: torch.zeros_like(flat.data, dtype=torch.float32) for moment in _MOMENTS},
    }


def prune(folder: str, keep: int) -> None:
    """Remove all but the newest `keep` committed checkpoints, and what killed attempts left uncommitted.

    Called when nothing is being written below `folder`.
    """
    kept = _committed(folder)[-keep:]
    for name in _checkpoints(folder):
        if name not in kept:
            remove(join(folder, name))


def set_masters(engine: DeepSpeedEngine, values: dict[str, torch.Tensor]) -> None:
    """Give the optimizer the fp32 weights that the model had before DeepSpeed rounded it to bf16."""
    from deepspeed.utils import safe_set_full_fp32_param

    for name, parameter in trainable(engine):
        safe_set_full_fp32_param(parameter, values[name].to(parameter.device))


def _checkpoints(folder: str) -> list[str]:
    return [name for name in list_folder(folder) if name.startswith(_PREFIX)]


def _committed(folder: str) -> list[str]:
    return [name for name in _checkpoints(folder) if exists(join(folder, name, COMMITTED))]


def _part_name(number: int) -> str:
    return f"state-{number:05d}.safetensors"


def _write_part(target: str, number: int, tensors: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    filesystem, path = url_to_fs(join(target, _part_name(number)))
    if "file" in filesystem.protocol:
        save_file(tensors, path)
        with open(path, "rb") as handle:
            os.fsync(handle.fileno())
        return
    with tempfile.TemporaryDirectory() as scratch:
        local = os.path.join(scratch, _part_name(number))
        save_file(tensors, local)
        filesystem.put_file(local, path)


@contextmanager
def _open_parts(checkpoint: str, parts: int) -> Iterator[tuple[set[str], Any]]:
    from contextlib import ExitStack

    from safetensors import safe_open

    local = local_folder(checkpoint)
    with ExitStack() as stack:
        where: dict[str, Any] = {}
        for number in range(parts):
            opened = stack.enter_context(safe_open(os.path.join(local, _part_name(number)), framework="pt"))
            where |= dict.fromkeys(opened.keys(), opened)
        yield set(where), lambda name: where[name].get_tensor(name)


def _relink(engine: DeepSpeedEngine) -> None:
    # DeepSpeed 0.19 with offload links only the first parameter group to its optimizer state; link all of them again.
    engine.optimizer._hp_optimizer_states_linked = False
    engine.optimizer._lazy_init_hp_params_optimizer_state()


def _optimizer_steps(engine: DeepSpeedEngine) -> int:
    (steps,) = {int(state["step"]) for state in engine.optimizer.optimizer.state.values()}
    return steps
