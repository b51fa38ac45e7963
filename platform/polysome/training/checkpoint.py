"""Checkpoints that do not know the number of workers: fp32 master weights and Adam moments by parameter name.

A checkpoint is a folder `update-<number>` with safetensors parts and `state.json`; the file COMMITTED is written last,
and a folder without it does not count.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fsspec.core import url_to_fs

from polysome.config import DataError, ResourceError
from polysome.storage import exists, join, list_folder, make_folder, open_atomic, read_json, remove, write_json
from polysome.storage.local import local_folder

if TYPE_CHECKING:
    import torch

    from polysome.training.engine import Engine, State

logger = logging.getLogger(__name__)

COMMITTED = "COMMITTED"
STATE = "state.json"
_PREFIX = "update-"
_PART_BYTES = 2 << 30


@dataclass(frozen=True)
class Progress:
    """How far a stage is.

    Attributes:
        update: optimizer updates done, those included whose gradient was not finite.
        skipped: of those, how many were skipped for it.
        position: packed rows consumed; the next update starts there.
        tokens: unpadded tokens consumed.
        seconds: time spent in updates, over all attempts.
        loss: of the last logged row, in nats; None before the first.
        dev_loss: newest mean loss on the dev data, in nats; None before the first.
        dev_update: the update after which it was taken.
    """

    update: int = 0
    skipped: int = 0
    position: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float | None = None
    dev_loss: float | None = None
    dev_update: int | None = None


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


class Writer:
    """Writes checkpoints below one folder; what needs no worker but the first goes on in the background.

    Local parts are written where they stay, those of a remote folder to a scratch folder on this machine; forcing them
    to the disk, uploading, committing and removing old ones is what the background does. Memory holds one part.
    """

    def __init__(
        self, folder: str, *, fingerprint: str, keep: int, keep_best: int = 0, background: bool = True
    ) -> None:
        """Keep the newest `keep` committed checkpoints and the `keep_best` of the lowest dev loss."""
        self._folder, self._fingerprint = folder, fingerprint
        self._keep, self._keep_best, self._background = keep, keep_best, background
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, engine: Engine, progress: Progress) -> None:
        """Write a checkpoint. All workers call it; the first one writes, after its last one is committed.

        Raises:
            ResourceError: this or the last checkpoint could not be written; nothing that was committed is lost.
        """
        writes = engine.place.rank == 0
        name = f"{_PREFIX}{progress.update:08d}"
        filesystem, path = url_to_fs(join(self._folder, name))
        remote = "file" not in filesystem.protocol
        if writes:
            self.wait()
        with _told(join(self._folder, name)):
            if writes:
                remove(join(self._folder, name))  # an uncommitted left-over of a killed attempt
                make_folder(join(self._folder, name))
            scratch = tempfile.mkdtemp(prefix="polysome-checkpoint-") if writes and remote else path
            try:
                parts = _write_parts(engine, scratch if writes else None)
            except BaseException:
                if scratch != path:
                    shutil.rmtree(scratch, ignore_errors=True)
                raise
        if not writes:
            return
        state = {
            "format": 1,
            "fingerprint": self._fingerprint,
            "parts": parts,
            "progress": asdict(progress),
            "optimizer_steps": engine.steps,
        }
        self._pending = self._thread.submit(self._commit, name, state, scratch)
        if not self._background:
            self.wait()

    def wait(self) -> None:
        """Until the last checkpoint is committed.

        Raises:
            ResourceError: it could not be.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _commit(self, name: str, state: dict[str, Any], scratch: str) -> None:
        target = join(self._folder, name)
        filesystem, path = url_to_fs(target)
        with _told(target):
            try:
                for number in range(state["parts"]):
                    part = os.path.join(scratch, _part_name(number))
                    with open(part, "rb") as handle:
                        os.fsync(handle.fileno())
                    if scratch != path:
                        filesystem.put_file(part, join(path, _part_name(number)))
            finally:
                if scratch != path:
                    shutil.rmtree(scratch)
            write_json(join(target, STATE), state)
            with open_atomic(join(target, COMMITTED), "w") as handle:
                handle.write(f"{state['progress']['update']}\n")
            prune(self._folder, self._keep, self._keep_best)
        logger.info("checkpoint at update %d: %s", state["progress"]["update"], target)


def load(engine: Engine, checkpoint: str, *, fingerprint: str) -> Progress:
    """Put a committed checkpoint into the engine. All workers call it.

    Raises:
        DataError: it belongs to another configuration or other data, or does not hold exactly the parameters that
            train.
    """
    from polysome.training.engine import MASTER, MOMENTS

    check_fingerprint(checkpoint, fingerprint)
    state = read_json(join(checkpoint, STATE))
    with _open_parts(checkpoint, state["parts"]) as (names, tensor):
        if names != {_key(name, key) for name in engine.parameters for key in (MASTER, *MOMENTS)}:
            raise DataError(
                "the checkpoint holds other parameters than the model trains",
                where=checkpoint,
                fix="give the stage a run folder of its own",
            )

        def read(name: str) -> State:
            return {key: tensor(_key(name, key)) for key in (MASTER, *MOMENTS)}

        engine.load(read, state["optimizer_steps"])
    return Progress(**state["progress"])


def prune(folder: str, keep: int, keep_best: int = 0) -> None:
    """Remove all but the newest `keep` committed checkpoints and the `keep_best` of the lowest dev loss, and what
    killed attempts left uncommitted.

    Called when nothing is being written below `folder`.
    """
    committed = _committed(folder)
    kept = set(committed[-keep:])
    if keep_best:
        measured = {}
        for name in committed:
            progress = read_json(join(folder, name, STATE))["progress"]
            if progress["dev_update"] == progress["update"] and progress["dev_loss"] is not None:
                measured[name] = progress["dev_loss"]
        kept |= set(sorted(measured, key=lambda name: measured[name])[:keep_best])
    for name in _checkpoints(folder):
        if name not in kept:
            # First, so that one of which a kill leaves a part never counts.
            remove(join(folder, name, COMMITTED))
            remove(join(folder, name))


@contextmanager
def _told(checkpoint: str) -> Iterator[None]:
    """A full disk or a lost storage, named with what was being written there."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ResourceError(
            f"the checkpoint could not be written: {error}",
            where=checkpoint,
            fix="make space or mend the access there, and run the same command again: training goes on from the "
            "newest committed checkpoint",
        ) from error


def _checkpoints(folder: str) -> list[str]:
    return [name for name in list_folder(folder) if name.startswith(_PREFIX)]


def _committed(folder: str) -> list[str]:
    return [name for name in _checkpoints(folder) if exists(join(folder, name, COMMITTED))]


def _key(name: str, key: str) -> str:
    """A parameter's own name is that of its master; moments follow it after a separator."""
    return name if key == "master" else f"{name}//{key}"


def _part_name(number: int) -> str:
    return f"state-{number:05d}.safetensors"


def _write_parts(engine: Engine, scratch: str | None) -> int:
    """Gather every parameter's state, and write it to local safetensors files in `scratch`; returns their number."""
    from safetensors.torch import save_file

    part: dict[str, torch.Tensor] = {}
    parts = 0
    for name, state in engine.states():
        if scratch is None:
            continue
        part |= {_key(name, key): value.to("cpu", copy=True).contiguous() for key, value in state.items()}
        if sum(value.nbytes for value in part.values()) >= _PART_BYTES:
            save_file(part, os.path.join(scratch, _part_name(parts)))
            part, parts = {}, parts + 1
    if scratch is not None and part:
        save_file(part, os.path.join(scratch, _part_name(parts)))
        parts += 1
    return parts


@contextmanager
def _open_parts(checkpoint: str, parts: int) -> Iterator[tuple[set[str], Any]]:
    from safetensors import safe_open

    local = local_folder(checkpoint)
    with ExitStack() as stack:
        where: dict[str, Any] = {}
        for number in range(parts):
            opened = stack.enter_context(safe_open(os.path.join(local, _part_name(number)), framework="pt"))
            where |= dict.fromkeys(opened.keys(), opened)
        yield set(where), lambda name: where[name].get_tensor(name)
