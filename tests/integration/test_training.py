"""Stages on real Ray Train and real DeepSpeed ZeRO-2 with two CPU workers."""

import json
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from prepared import write_prepared

from polysome.config import ConfigurationError, DataError, ResourceError
from polysome.data.feed import Rows, open_feed
from polysome.data.manifest import read_manifest, write_manifest
from polysome.models import trainability
from polysome.models.backbone import ModelSource, build_model
from polysome.training import launch, native
from polysome.training.config import StageConfig
from polysome.training.launch import StageResult, train_stage

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


def documents(rows: Rows) -> list[tuple[torch.Tensor, torch.Tensor]]:
    found = []
    for row in range(len(rows)):
        for segment in range(1, rows.segment_ids[row].max() + 1):
            part = rows.segment_ids[row] == segment
            found.append(
                tuple(torch.from_numpy(values[row][part].astype(np.int64)) for values in (rows.input_ids, rows.labels))
            )
    return found


def separate_loss(model: torch.nn.Module, rows: Rows) -> torch.Tensor:
    """Mean cross-entropy over all targets, one document at a time."""
    losses = [
        torch.nn.functional.cross_entropy(
            model(input_ids=input_ids[None], use_cache=False).logits[0, :-1].float(), labels[1:], reduction="sum"
        )
        for input_ids, labels in documents(rows)
    ]
    return torch.stack(losses).sum() / int(rows.targets.sum())


def plain_curve(config: StageConfig, data: Path, updates: int, cache: Path) -> list[dict[str, float]]:
    """The same stage as one process, torch's plain AdamW, unpacked documents and no DeepSpeed."""
    model = build_model(ModelSource(config=LLAMA), str(data / "tokenizer"), seed=config.seed)
    trainability.apply(model, config.trainability, seed=config.seed)
    model.set_attn_implementation("sdpa")
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, value in model.named_parameters():
        if value.requires_grad:
            key = (1e-2 * (4 if "lora_B" in name else 1), 0.0 if value.ndim == 1 else 0.01)
            groups.setdefault(key, []).append(value)
    optimizer = torch.optim.AdamW(
        [{"params": values, "lr": rate, "weight_decay": decay} for (rate, decay), values in groups.items()], eps=1e-8
    )
    peaks = [group["lr"] for group in optimizer.param_groups]
    feed = open_feed(str(data), seed=config.seed, cache=str(cache))
    warmup, curve = round(0.1 * updates), []
    for update in range(updates):
        if update < 2:
            factor = 0.05
        elif update < 2 + warmup:
            factor = 0.05 + 0.95 * (update - 1) / (warmup + 1)
        else:
            factor = 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * (update - 2 - warmup) / (updates - 2 - warmup)))
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        loss = separate_loss(model, feed.rows(np.arange(8 * update, min(8 * update + 8, 385))))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([value for values in groups.values() for value in values], 0.5)
        optimizer.step()
        optimizer.zero_grad()
        curve.append({"loss": loss.item(), "grad_norm": norm.item()})
    return curve


def test_curve_equals_a_plain_single_process_loop(first, config: StageConfig, data: Path, tmp_path: Path) -> None:
    result, folder = first
    rows = rows_of(folder)
    assert (result.updates, result.rows, len(rows)) == (49, 385, 49)
    expected = plain_curve(config, data, 49, tmp_path)
    assert max(abs(row["loss"] - plain["loss"]) for row, plain in zip(rows, expected, strict=True)) < 1e-5
    for row, plain in zip(rows, expected, strict=True):
        assert row["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-3)
        assert row["learning_rate"]["lora_b"] == pytest.approx(4 * row["learning_rate"]["base"])
    assert rows[-2]["loss"] < rows[0]["loss"] - 0.3
    assert max(row["grad_norm"] for row in rows) > 0.5, "clipping never acted"
    assert result.tokens == rows[-1]["tokens"]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["update-00000048", "update-00000049"]
    assert {path.name for path in folder.iterdir()} == {
        "checkpoints", "export", "metrics.jsonl", "result.json", "trainability.json",
    }  # fmt: skip


def test_next_stage_starts_where_the_export_stands(first, config: StageConfig, data: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    result, _ = first
    second = config.model_copy(
        update={
            "name": "second",
            "model": ModelSource(path=result.export),
            "precision": "bf16",
            "offload": True,
            "epochs": None,
            "max_updates": 6,
            "schedule": config.schedule.model_copy(update={"prewarmup_steps": 0}),
        }
    )
    chained = train_stage(second, str(tmp_path / "second"))
    model = AutoModelForCausalLM.from_pretrained(result.export)
    feed = open_feed(str(data), seed=config.seed, cache=str(tmp_path / "rows"))
    with torch.no_grad():
        expected = separate_loss(model, feed.rows(np.arange(8))).item()
    assert rows_of(tmp_path / "second")[0]["loss"] == pytest.approx(expected, abs=5e-3)
    assert AutoModelForCausalLM.from_pretrained(chained.export).dtype == torch.bfloat16
    assert chained.optimizer == ("adamw" if native.obstacle() else "deepspeed_cpu_adam")


def test_kills_cost_only_the_updates_since_the_last_checkpoint(first, config: StageConfig, tmp_path: Path) -> None:
    """The first kill is mended by Ray Train, the second ends the job, and one worker finishes what two began."""
    _, uninterrupted = first
    folder = tmp_path / "killed"
    killer = Killer(folder / "metrics.jsonl", updates=[12, 30])
    with killer, pytest.raises(RuntimeError, match="max_failures"):
        train_stage(config, str(folder))
    assert killer.kills == 2
    assert not (folder / "export").exists()
    alone = config.model_copy(
        update={
            "workers": config.workers.model_copy(update={"count": 1}),
            "gradient_accumulation_steps": 4,
        }
    )
    result = train_stage(alone, str(folder))
    assert result.updates == 49
    resumed, expected = rows_of(folder), rows_of(uninterrupted)
    assert [row["update"] for row in resumed] == [row["update"] for row in expected]
    assert [row["position"] for row in resumed] == [row["position"] for row in expected]
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(resumed, expected, strict=True)) < 1e-5


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
    crowd = config.model_copy(update={"workers": config.workers.model_copy(update={"count": 64})})
    with pytest.raises(ResourceError, match="64 CPUs"):
        train_stage(crowd, str(tmp_path / "crowd"))
    rules = [trainability.Rule(match="nothing_like_it", mode="full")]
    with pytest.raises(ConfigurationError, match="matches no module"):
        train_stage(config.model_copy(update={"trainability": rules}), str(tmp_path / "rules"))
    other = write_prepared(tmp_path / "other", rows=8)
    settings = other / "tokenizer" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": "another"}))
    with pytest.raises(DataError, match="tokenizer"):
        train_stage(config.model_copy(update={"data": str(other)}), str(tmp_path / "tokenizer"))


class Killer:
    """Kills one training worker of this process's Ray each time the metrics reach the next of `updates`."""

    def __init__(self, metrics: Path, updates: list[int]) -> None:
        self.metrics, self.updates, self.kills = metrics, updates, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Killer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        for update in self.updates:
            while not self._reached(update):
                if self._stop.wait(0.01):
                    return
            workers = [
                process
                for process in psutil.Process().children(recursive=True)
                if "RayTrainWorker" in " ".join(process.cmdline())
            ]
            workers[-1].send_signal(signal.SIGKILL)
            self.kills += 1

    def _reached(self, update: int) -> bool:
        if not self.metrics.exists():
            return False
        lines = self.metrics.read_text().splitlines()
        return bool(lines) and f'"update": {update},' in "".join(lines)
