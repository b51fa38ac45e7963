"""Launch one stage on a Ray cluster: validate everything here, then let Ray Train run `stage.run_stage` on workers."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fsspec.core import url_to_fs

from polysome.config import ConfigurationError, DataError
from polysome.data.feed import open_feed
from polysome.data.manifest import Manifest, read_manifest
from polysome.data.ray_capacity import can_grow, require_capacity
from polysome.data.ray_errors import cause_of
from polysome.data.tokenizer_files import base_fingerprint, tokenizer_fingerprint
from polysome.inference.folder import weights_fingerprint
from polysome.models import trainability
from polysome.specs import dataset
from polysome.storage import (
    absolute,
    exists,
    join,
    open_atomic,
    read_json,
    remove,
    require_folder_writable,
    write_json,
)
from polysome.storage.local import cache_folder, local_folder
from polysome.training import checkpoint, optimizer
from polysome.training.config import StageConfig
from polysome.training.dev import Questions
from polysome.training.loop import STOP
from polysome.training.schedule import extent
from polysome.training.stage import CHECKPOINTS, Outcome, run_stage
from polysome.training.trackers import require_trackers

if TYPE_CHECKING:
    from ray.train import Result
    from ray.train.torch import TorchTrainer
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

RESULT = "result.json"
TRAINABILITY = "trainability.json"
_RAY_FOLDER = ".ray_train"
_RAY_SETTINGS = {
    # A dead worker and a finished one are noticed after this many seconds.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Workers stay where the job runs, so that a relative PYTHONPATH keeps its meaning.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


@dataclass(frozen=True)
class StageResult:
    """What a finished stage has made.

    Attributes:
        export: Hugging Face folder of the trained model.
        updates, rows, tokens: optimizer updates, packed rows and unpadded tokens trained on.
        seconds: time in updates, over all attempts, without start-up.
        final_loss: mean over the targets of the last logged updates, in nats.
        trainable_parameters, total_parameters: of the model; total without LoRA.
        optimizer: deepspeed_cpu_adam or adamw.
    """

    export: str
    updates: int
    rows: int
    tokens: int
    seconds: float
    final_loss: float | None
    trainable_parameters: int
    total_parameters: int
    optimizer: str
    skipped: int = 0
    dev_loss: float | None = None


def train_stage(config: StageConfig, folder: str, *, questions: Questions | None = None) -> StageResult:
    """Train one stage and export it; called again on the same folder it resumes, or returns what is finished.

    SIGTERM, or a file named STOP in the run folder, stops it after a checkpoint.

    Args:
        config: the stage.
        folder: run folder, path or URL; gets metrics.jsonl, trainability.json, checkpoints/, export/, result.json.
        questions: of the tasks of `config.dev`, which are asked while it trains.

    Raises:
        ConfigurationError, DataError: the configuration does not fit the data, the model, or an earlier run in the
            folder; found before any worker starts.
        ResourceError: no Ray cluster is connected, or one that cannot grow has too few CPUs or GPUs.
        NonFiniteLossError: training diverged.
        RuntimeError: workers died more than `max_failures` times.
        KeyboardInterrupt: it was asked to stop, and has.
    """
    folder = absolute(folder)
    config = _absolute_paths(config)
    if config.dev is not None and config.dev.tasks and questions is None:
        raise ConfigurationError(
            "the dev tasks have no questions",
            where="dev.tasks",
            fix="give train_stage their `questions`, or run `polysome train`",
        )
    fingerprint = validate_stage(config, folder)
    finished = _finished(folder, fingerprint)
    if finished is not None:
        logger.info("%s: finished before, nothing to do: %s", config.name, finished.export)
        return finished
    remove(join(folder, STOP))
    with _stopping(folder):
        outcome = _run(config, folder, fingerprint, questions)
    if outcome.error is not None:
        raise outcome.error
    if outcome.stopped:
        remove(join(folder, STOP))
        logger.warning("%s: stopped after update %d, which is in a checkpoint", config.name, outcome.updates)
        raise KeyboardInterrupt
    content = asdict(outcome)
    del content["error"], content["stopped"]
    result = StageResult(**content)
    write_json(join(folder, RESULT), {"fingerprint": fingerprint, **asdict(result)})
    if exists(join(folder, STOP)):
        # Asked to stop in the last update or the export: the stage is finished, what comes after it is not begun.
        remove(join(folder, STOP))
        raise KeyboardInterrupt
    return result


def validate_stage(config: StageConfig, folder: str) -> str:
    """Check a stage against its data, its model, its run folder and the cluster.

    Writes the table of what trains to `<folder>/trainability.json` and logs it.

    Returns:
        The stage's fingerprint.
    """
    _check_cluster(config)
    manifest = read_manifest(config.data)
    tokenizer_folder = local_folder(join(config.data, "tokenizer"))
    _check_tokenizer(config, manifest, tokenizer_folder)
    extent(config, manifest.rows)
    require_folder_writable(folder)
    model = _bare_model(config, tokenizer_folder)
    fingerprint = config.fingerprint(manifest.fingerprint, _model_content(config.model.path, model))
    newest = checkpoint.newest(join(folder, CHECKPOINTS))
    if newest is not None:
        checkpoint.check_fingerprint(newest, fingerprint)
    open_feed(config.data, seed=config.seed, cache=cache_folder("rows"))
    if config.dev is not None and config.dev.data is not None:
        _check_dev(config.dev.data, manifest)
    require_trackers(config.trackers)
    if config.number_loss is not None:
        require_numbers([source.dataset for source in manifest.sources], tokenizer_folder)
    _write_table(config, model, folder)
    return fingerprint


def _bare_model(config: StageConfig, tokenizer_folder: str) -> PreTrainedModel:
    """The model without weights, so that rules are checked against real names."""
    from polysome.models.backbone import ModelSource, build_model

    source = config.model if config.model.path is None else ModelSource(path=local_folder(config.model.path))
    return build_model(source, tokenizer_folder, seed=config.seed, meta=True)


def _model_content(path: str | None, model: PreTrainedModel) -> str | None:
    """What a stage starts from: a digest of a folder's weights and configuration, the commit of a hub id."""
    if path is None:
        return None
    folder = local_folder(path)
    if os.path.isdir(folder):
        return weights_fingerprint(folder)
    return f"{path}@{model.config._commit_hash}"


def _check_cluster(config: StageConfig) -> None:
    workers = config.workers
    require_capacity(
        f"stage {config.name}",
        cpus=workers.minimum * workers.cpus_per_worker,
        gpus=workers.minimum * workers.gpus_per_worker,
        where="workers.count x workers.cpus_per_worker, workers.gpus_per_worker",
        fix="lower workers.count (raise gradient_accumulation_steps to keep the batch), or add nodes",
    )


def _check_tokenizer(config: StageConfig, manifest: Manifest, tokenizer_folder: str) -> None:
    found = tokenizer_fingerprint(tokenizer_folder)
    if found != manifest.tokenizer_fingerprint:
        raise DataError(
            f"the prepared folder's tokenizer has fingerprint {found}, its manifest says "
            f"{manifest.tokenizer_fingerprint}",
            where=config.data,
            fix="the folder was changed after it was committed; prepare it again",
        )
    if config.model.path is None:
        return
    model_folder = local_folder(config.model.path)
    if not os.path.isdir(model_folder):
        return  # a hub id: only that its embedding has a row for every token is checked, when the model is built
    if not os.path.isfile(join(model_folder, "tokenizer.json")):
        raise ConfigurationError(
            "the model folder has no tokenizer.json, so its vocabulary cannot be compared with the data's",
            where=config.model.path,
            fix="put the model's tokenizer files into its folder",
        )
    of_model = tokenizer_fingerprint(model_folder)
    # Data may be written in the model's own tokenizer, or in one that `polysome tokens extend` made from it.
    if of_model not in (manifest.tokenizer_fingerprint, base_fingerprint(tokenizer_folder)):
        raise DataError(
            f"the data was tokenized with tokenizer {manifest.tokenizer_fingerprint}, and the model has {of_model}",
            where=f"data = {config.data}, model.path = {config.model.path}",
            fix="prepare the data with the model's tokenizer",
        )


def require_numbers(datasets: Sequence[str], tokenizer_folder: str) -> None:
    """Check that the number loss has numbers to look at.

    Raises:
        ConfigurationError: no data set asks for a number, or a digit has no token of its own.
    """
    from polysome.data.tokenizer_files import load_tokenizer
    from polysome.training.numbers import number_tokens

    if not any(_numeric(name) for name in datasets):
        raise ConfigurationError(
            "no source of the data asks for a number", where="number_loss", fix="take it out, or add a regression task"
        )
    number_tokens(load_tokenizer(tokenizer_folder))


def _check_dev(folder: str, trained: Manifest) -> None:
    manifest = read_manifest(folder)
    if manifest.tokenizer_fingerprint != trained.tokenizer_fingerprint:
        raise DataError(
            f"the dev data was tokenized with tokenizer {manifest.tokenizer_fingerprint}, and the training data with "
            f"{trained.tokenizer_fingerprint}",
            where=f"dev.data = {folder}",
            fix="prepare both with one tokenizer",
        )
    open_feed(folder, seed=0, cache=cache_folder("rows"))


def _write_table(config: StageConfig, model: PreTrainedModel, folder: str) -> None:
    """Log and store what trains."""
    choices = trainability.choose(model, config.trainability)
    if config.schedule.embedding_warmup_steps and not any("embedding" in choice.trains for choice in choices):
        raise ConfigurationError(
            "the embedding warm-up has nothing to train: no rule trains the embedding or the output layer in full",
            where="schedule.embedding_warmup_steps",
            fix="add a rule such as {match: embed_tokens|lm_head, mode: full}, or set it to 0",
        )
    rows = optimizer.table(choices, config.optimizer)
    trainable, total = sum(row.trainable for row in rows), sum(row.parameters for row in rows)
    write_json(
        join(folder, TRAINABILITY),
        {"trainable": trainable, "total": total, "modules": [asdict(row) for row in rows]},
    )
    for line in optimizer.format_table(rows).splitlines():
        logger.info("%s", line)
    logger.info("%s: %d of %d parameters train", config.name, trainable, total)


def _run(config: StageConfig, folder: str, fingerprint: str, questions: Questions | None) -> Outcome:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from polysome.training.health import source_names

    workers = config.workers
    manifest = read_manifest(config.data)
    # A node that goes away costs the updates since the newest checkpoint, unless Ray can tell in time.
    watched = can_grow()
    arguments = {
        "config": config.model_dump(mode="json"),
        "folder": folder,
        "fingerprint": fingerprint,
        "sources": source_names(manifest),
        "numeric": [_numeric(source.dataset) for source in manifest.sources] if config.number_loss else [],
        "questions": questions,
        "watched": watched,
    }
    with _ray_settings(watched), _ray_storage(folder) as storage:
        trainer = _trainer_class()(
            run_stage,  # type: ignore[arg-type]
            train_loop_config=arguments,
            # Ray goes by the GPUs that are reserved, which a rehearsal on CPUs does not compute on.
            torch_config=TorchConfig(backend="gloo" if workers.device == "cpu" else None),
            scaling_config=ScalingConfig(
                num_workers=workers.count,  # type: ignore[arg-type]
                use_gpu=workers.gpus_per_worker > 0,
                resources_per_worker={"CPU": workers.cpus_per_worker}
                | ({"GPU": workers.gpus_per_worker} if workers.gpus_per_worker else {}),
            ),
            run_config=RunConfig(
                name=config.name, failure_config=FailureConfig(max_failures=config.max_failures), **storage
            ),
        )
        return _fit(trainer)


def _numeric(name: str) -> bool:
    """Whether the answers of a data set are numbers."""
    task = dataset(name).task
    return task is not None and task.label.kind in ("regression", "multi_regression")


@contextmanager
def _stopping(folder: str) -> Iterator[None]:
    """While the block runs, a first SIGTERM asks the workers to stop after a checkpoint; a second one is as ever.

    After it Ctrl-C is what it was before: Ray Train sets a handler that tells its controller, and leaves it behind.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, interrupt = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, before)
        logger.warning("stopping after the update that is under way; a second SIGTERM stops at once")
        with open_atomic(join(folder, STOP), "w") as handle:
            handle.write("SIGTERM\n")

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, interrupt)


def _trainer_class() -> type[TorchTrainer]:
    """TorchTrainer, on a cluster without dashboard less the process that asks the dashboard whether training lives.

    There it could only log, every second, that it has no answer; what it guards, placement groups of a controller
    that died, ends with the local cluster.
    """
    from ray._private.worker import get_dashboard_url
    from ray.train.torch import TorchTrainer

    if get_dashboard_url():
        return TorchTrainer

    class LocalTrainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()  # type: ignore[misc]
            return [one for one in callbacks if type(one).__name__ != "PlacementGroupCleanerCallback"]

    return LocalTrainer


def _fit(trainer: Any) -> Outcome:
    from ray.train import TrainingFailedError

    try:
        result: Result = trainer.fit()
    except SystemExit as error:
        # So Ray Train's handler of Ctrl-C ends, with the status of success.
        raise KeyboardInterrupt from error
    except TrainingFailedError as error:
        cause = cause_of(error)
        if cause is not None:
            raise cause from error
        raise RuntimeError(f"training failed after all restarts that max_failures allows: {error}") from error
    outcome = result.return_value  # type: ignore[attr-defined]
    if not isinstance(outcome, Outcome):
        raise RuntimeError(f"worker 0 returned no outcome but {outcome!r}")
    return outcome


@contextmanager
def _ray_settings(watched: bool) -> Iterator[None]:
    """Ray Train reads these from the environment of the driver; a value that is set already wins."""
    wanted = {**_RAY_SETTINGS, "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": str(int(watched))}
    if not watched:
        # A cluster that grows needs longer than a local Ray to make room; there Ray's own patience holds.
        wanted["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "30"
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextmanager
def _ray_storage(folder: str) -> Iterator[dict[str, Any]]:
    """Where Ray Train keeps its own few files: below the run folder, removed afterwards, never in the home folder."""
    target = join(folder, _RAY_FOLDER)
    filesystem, path = url_to_fs(target)
    remove(target)
    try:
        if "file" in filesystem.protocol:
            yield {"storage_path": path}
        else:
            from pyarrow.fs import FSSpecHandler, PyFileSystem

            yield {"storage_path": path, "storage_filesystem": PyFileSystem(FSSpecHandler(filesystem))}
    finally:
        remove(target)


def _finished(folder: str, fingerprint: str) -> StageResult | None:
    if not exists(join(folder, RESULT)):
        return None
    content = read_json(join(folder, RESULT))
    found = content.pop("fingerprint")
    if found != fingerprint:
        raise DataError(
            f"the folder holds the result of a stage with fingerprint {found}, and this stage has {fingerprint}",
            where=folder,
            fix="give the changed stage a run folder of its own",
        )
    return StageResult(**content)


def _absolute_paths(config: StageConfig) -> StageConfig:
    """Local paths made absolute, so that they mean the same in every worker; hub ids and URLs stay."""
    changes: dict[str, Any] = {"data": absolute(config.data)}
    if config.dev is not None and config.dev.data is not None:
        changes["dev"] = config.dev.model_copy(update={"data": absolute(config.dev.data)})
    if config.model.path is not None and os.path.isdir(os.path.expanduser(config.model.path)):
        changes["model"] = config.model.model_copy(update={"path": absolute(config.model.path)})
    return config.model_copy(update=changes)
