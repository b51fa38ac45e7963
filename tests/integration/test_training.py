"""Stages on real Ray Train and real DeepSpeed ZeRO-2 with two CPU workers."""

import json
import random
import shutil
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from plain_loop import plain_curve, separate_loss
from prepared import write_prepared
from safetensors.torch import load_file

from polysome.config import ConfigurationError, DataError, ResourceError
from polysome.data.feed import open_feed
from polysome.data.manifest import read_manifest, write_manifest
from polysome.models import trainability
from polysome.training import launch, native
from polysome.training.config import Dev, StageConfig, Workers
from polysome.training.launch import StageResult, train_stage
from polysome.training.trackers import numbers_of

pytestmark = pytest.mark.ray

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# Published shape of stage 2: q and k in full, LoRA+ on the rest, norms; all four parameter groups.
RULES = [
    {"match": r"(q|k)_proj$", "mode": "full"},
    {"match": r"_proj$", "mode": "lora", "rank": 8, "alpha": 8},
    {"match": r"norm$", "mode": "full"},
    {"match": r"embed_tokens$", "mode": "full"},
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prepared(tmp_path_factory.mktemp("data") / "prepared", rows=110, max_length=64)


@pytest.fixture(scope="module")
def config(data: Path) -> StageConfig:
    # 3.5 epochs of 110 rows over 8 rows per update: the last update holds one row, and one worker has none.
    return StageConfig.model_validate(
        {
            "name": "first",
            "data": str(data),
            "model": {"config": LLAMA},
            "trainability": RULES,
            "optimizer": {"learning_rate": 1e-2, "lora_plus_ratio": 4, "clip": 0.5, "weight_decay": 0.01},
            "schedule": {"warmup_fraction": 0.1, "prewarmup_steps": 2},
            "epochs": 3.5,
            "micro_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "precision": "fp32",
            "checkpoint": {"every_updates": 8},
            "log_every_updates": 1,
            "max_failures": 1,
        }
    )


@pytest.fixture(scope="module")
def first(ray_cluster: Any, config: StageConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[StageResult, Path]:
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYSOME_CACHE", str(folder / "cache"))
        return train_stage(config, str(folder / "run")), folder / "run"


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POLYSOME_CACHE", str(tmp_path / "cache"))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_curve_equals_a_plain_single_process_loop(first, config: StageConfig, data: Path, tmp_path: Path) -> None:
    result, folder = first
    rows = rows_of(folder)
    assert (result.updates, result.rows, len(rows)) == (49, 385, 49)
    expected = plain_curve(config, 385, 49, tmp_path)
    assert max(abs(row["loss"] - plain["loss"]) for row, plain in zip(rows, expected, strict=True)) < 1e-5
    for row, plain in zip(rows, expected, strict=True):
        assert row["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-3)
        assert row["learning_rate"]["lora_b"] == pytest.approx(4 * row["learning_rate"]["base"])
    assert rows[-2]["loss"] < rows[0]["loss"] - 0.3
    assert max(row["grad_norm"] for row in rows) > 0.5, "clipping never acted"
    assert result.tokens == rows[-1]["tokens"]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["update-00000048", "update-00000049"]
    assert {path.name for path in folder.iterdir()} == {
        "adapter", "checkpoints", "export", "metrics.jsonl", "result.json", "trainability.json",
    }  # fmt: skip


def test_next_stage_starts_where_the_export_stands(first, config: StageConfig, data: Path, tmp_path: Path) -> None:
    """Stage 2, which also measures on dev data, keeps its best checkpoint and shows its rows elsewhere."""
    from transformers import AutoModelForCausalLM

    result, _ = first
    folder = tmp_path / "second"
    dev_data = write_prepared(tmp_path / "dev", rows=10, max_length=64, seed=1, fingerprint="dev-1")
    second = StageConfig.model_validate(
        {
            **config.model_dump(),
            "name": "second",
            "model": {"path": result.export},
            "offload": True,
            "epochs": None,
            "max_updates": 6,
            "schedule": {"warmup_fraction": 0.1},
            "checkpoint": {"every_updates": 2, "keep": 1, "keep_best": 1},
            "dev": {"data": str(dev_data), "tasks": ["asked"], "every_updates": 2},
            "trackers": ["tensorboard"],
        }
    )
    chained = train_stage(second, str(folder), questions=questions())
    rows = rows_of(folder)
    model = AutoModelForCausalLM.from_pretrained(result.export)
    feed = open_feed(str(data), seed=config.seed, cache=str(tmp_path / "rows"))
    with torch.no_grad():
        expected = separate_loss(model, feed.rows(np.arange(8))).item()
    assert rows[0]["loss"] == pytest.approx(expected, abs=1e-6)
    assert chained.optimizer == ("adamw" if native.obstacle() else "deepspeed_cpu_adam")

    # The last measure on the dev data is what the exported model is worth there.
    measured = {row["update"]: row["dev"] for row in rows if "dev" in row}
    assert list(measured) == [2, 4, 6]
    dev_feed = open_feed(str(dev_data), seed=config.seed, cache=str(tmp_path / "rows"))
    with torch.no_grad():
        exported = separate_loss(AutoModelForCausalLM.from_pretrained(chained.export), dev_feed.rows(np.arange(10)))
    assert measured[6]["loss"] == chained.dev_loss == pytest.approx(exported.item(), abs=1e-5)
    assert measured[6]["by_source"]["toy"]["loss"] == measured[6]["loss"]
    assert measured[6]["tasks"] == {"asked": {"metric": "share", "value": 1.0}}
    best = min(measured, key=lambda update: measured[update]["loss"])
    kept = {path.name for path in (folder / "checkpoints").iterdir()}
    assert kept == {f"update-{update:08d}" for update in (best, 6)}

    shown = {(path, step): value for path, step, value in scalars(folder / "tensorboard")}
    for row in rows:
        for number in numbers_of(row):
            assert shown[number.path, row["update"]] == pytest.approx(number.value, rel=1e-6)


def questions() -> Any:
    """Questions that every worker asks its share of; made here, so that they are pickled whole."""

    class Questions:
        def ask(self, engine: Any, rank: int, world_size: int) -> list[int]:
            mine = list(range(4))[rank::world_size]
            asked = [[{"role": "user", "content": "ACGT" * (1 + number)}] for number in mine]
            assert len(engine.generate(asked, max_new_tokens=2)) == len(mine)
            return mine

        def measure(self, parts: Any) -> dict[str, dict[str, Any]]:
            together = sorted(number for part in parts for number in part)
            return {"asked": {"metric": "share", "value": float(together == [0, 1, 2, 3] and len(parts) == 2)}}

    return Questions()


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    """What stands in the event files of TensorBoard: records of length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in folder.iterdir():
        content, place = file.read_bytes(), 0
        while place < len(content):
            (size,) = struct.unpack_from("<Q", content, place)
            event = Event.FromString(content[place + 12 : place + 12 + size])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            place += size + 16
    return found


SAME = ("update", "position", "rows_crc32", "loss", "by_source", "grad_norm", "learning_rate", "tokens", "skipped")
"""Of a row, what does not hang on when it was computed."""


@pytest.fixture(scope="module")
def killed(first, config: StageConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `first` once more, with a checkpoint after every update, killed twice."""
    folder = tmp_path_factory.mktemp("killed")
    often = config.model_copy(
        update={"checkpoint": config.checkpoint.model_copy(update={"every_updates": 1, "keep": 60}), "max_failures": 2}
    )
    with pytest.MonkeyPatch.context() as patch, Killer(folder, seed=1) as killer:
        patch.setenv("POLYSOME_CACHE", str(folder / "cache"))
        train_stage(often, str(folder))
    assert killer.kills == 2
    assert killer.uncommitted, "the second kill met no checkpoint that was being written"
    return folder


def test_killed_at_any_instant_it_ends_as_if_nothing_had_been(first, killed: Path) -> None:
    """One worker at some instant, then both while a checkpoint is written: equal rows and weights, bit for bit."""
    _, uninterrupted = first
    rows, expected = rows_of(killed), rows_of(uninterrupted)
    assert [[row[key] for key in SAME] for row in rows] == [[row[key] for key in SAME] for row in expected]
    assert all((path / "COMMITTED").exists() for path in (killed / "checkpoints").iterdir())
    weights, wanted = (load_file(folder / "export" / "model.safetensors") for folder in (killed, uninterrupted))
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in weights.items())


def test_another_number_of_workers_goes_on_alike(first, killed: Path, config: StageConfig, tmp_path: Path) -> None:
    """One worker where two stood at update 16, and one or two, which are two, where that one stood at update 32."""
    _, uninterrupted = first
    expected = rows_of(uninterrupted)
    changes = {"checkpoint": config.checkpoint.model_copy(update={"every_updates": 16, "keep": 4})}
    alone = config.model_copy(
        update={**changes, "workers": Workers(count=1), "gradient_accumulation_steps": 4, "name": "alone"}
    )
    either = config.model_copy(update={**changes, "workers": Workers(count=(1, 2)), "name": "either"})
    before = killed
    for stage, update in ((alone, 16), (either, 32)):
        folder, newest = tmp_path / stage.name, f"checkpoints/update-{update:08d}"
        shutil.copytree(before / newest, folder / newest)
        assert train_stage(stage, str(folder)).updates == 49
        rows = rows_of(folder)
        assert [row["update"] for row in rows] == list(range(update + 1, 50))
        for row, wanted in zip(rows, expected[update:], strict=True):
            assert [row[key] for key in SAME[:3]] == [wanted[key] for key in SAME[:3]]
            assert row["loss"] == pytest.approx(wanted["loss"], abs=1e-5)
        before = folder


def test_wrong_stages_are_refused_before_a_worker_starts(
    first, config: StageConfig, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, folder = first
    monkeypatch.setattr(launch, "_run", lambda *_: pytest.fail("a worker group was started"))
    assert train_stage(config, str(folder)) == result
    hotter = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"learning_rate": 2e-2})})
    with pytest.raises(DataError, match="fingerprint"):
        train_stage(hotter, str(folder))
    (folder / "result.json").rename(tmp_path / "result.json")
    with pytest.raises(DataError, match="checkpoint was written by"):
        train_stage(hotter, str(folder))
    manifest = read_manifest(str(data))
    write_manifest(str(data), manifest.model_copy(update={"fingerprint": "data-2"}))
    with pytest.raises(DataError, match="data differ"):
        train_stage(config, str(folder))
    write_manifest(str(data), manifest)
    (tmp_path / "result.json").rename(folder / "result.json")
    for workers, said in ((Workers(count=64), "64 CPUs"), (Workers(count=2, gpus_per_worker=1), "2 GPUs")):
        with pytest.raises(ResourceError, match=said):
            train_stage(config.model_copy(update={"workers": workers}), str(tmp_path / "crowd"))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot write below"):
        train_stage(config, str(tmp_path / "file" / "run"))
    rules = [trainability.Rule(match="nothing_like_it", mode="full")]
    with pytest.raises(ConfigurationError, match="matches no module"):
        train_stage(config.model_copy(update={"trainability": rules}), str(tmp_path / "rules"))
    other = write_prepared(tmp_path / "other", rows=8)
    settings = other / "tokenizer" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": "another"}))
    with pytest.raises(DataError, match="tokenizer"):
        train_stage(config.model_copy(update={"data": str(other)}), str(tmp_path / "tokenizer"))
    manifest = read_manifest(str(other))
    write_manifest(str(other), manifest.model_copy(update={"tokenizer_fingerprint": "another"}))
    measured = config.model_copy(update={"dev": Dev(data=str(other), every_updates=1)})
    with pytest.raises(DataError, match="dev data was tokenized with tokenizer another"):
        train_stage(measured, str(tmp_path / "dev"))
    asked = config.model_copy(update={"dev": Dev(tasks=["planted_promoter"], every_updates=1)})
    with pytest.raises(ConfigurationError, match="the dev tasks have no questions"):
        train_stage(asked, str(tmp_path / "dev"))
    mute = write_prepared(tmp_path / "mute", rows=8)
    write_manifest(str(mute), read_manifest(str(mute)).model_copy(update={"targets": 0}))
    with pytest.raises(DataError, match="nothing to train on: 8 rows with 0 targets"):
        train_stage(config.model_copy(update={"data": str(mute)}), str(tmp_path / "targets"))


class Killer:
    """Kills training workers of this process's Ray twice: one of them at some instant after update 10, and all of them
    while a checkpoint is being written after update 25."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        self._folder, self._random = folder, random.Random(seed)
        self.kills, self.uncommitted = 0, ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._kill, daemon=True)

    def __enter__(self) -> "Killer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _kill(self) -> None:
        self._wait_for(10)
        workers = self._workers()
        self._ended.wait(self._random.uniform(0, 0.2))
        self._random.choice(workers).kill()
        self.kills = 1
        self._wait_for(25)
        workers = self._workers()
        while not self._ended.is_set():
            if not self._being_written():
                continue
            # Held still, they cannot commit it before they are killed.
            for worker in workers:
                worker.suspend()
            time.sleep(0.02)
            if self._being_written():
                break
            for worker in workers:
                worker.resume()
        for worker in workers:
            worker.kill()
        psutil.wait_procs(workers)
        self.kills, self.uncommitted = 2, self._being_written()

    def _wait_for(self, update: int) -> None:
        metrics = self._folder / "metrics.jsonl"
        while not self._ended.wait(0.01):
            if metrics.exists() and f'"update": {update},' in metrics.read_text():
                return

    def _workers(self) -> list[psutil.Process]:
        found = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def _being_written(self) -> str:
        newest = max((self._folder / "checkpoints").iterdir())
        return "" if (newest / "COMMITTED").exists() else newest.name
