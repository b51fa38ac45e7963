"""The extent of a stage and its learning rates (A-93, AMB-8)."""

from itertools import pairwise

import pytest

from polysome.config import ConfigurationError
from polysome.training.config import Schedule, StageConfig
from polysome.training.schedule import Extent, extent, learns, rate_factor


def stage(**changes) -> StageConfig:
    fields = {
        "name": "s",
        "data": "d",
        "model": {"path": "m"},
        "trainability": [{"match": ".", "mode": "full"}],
        "optimizer": {"learning_rate": 1e-3},
        "epochs": 1.0,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 10,
        "workers": {"count": 20},
    }
    return StageConfig.model_validate({**fields, **changes})


def test_updates_follow_from_epochs_over_packed_rows() -> None:
    # AMB-8: stage 2 with 3,330,232 rows of data, 20 workers x 2 x 10 accumulation.
    assert extent(stage(), 3_330_232) == Extent(3_330_232, 8_326)
    assert extent(stage(epochs=0.5), 1000) == Extent(500, 2)
    assert extent(stage(epochs=None, max_updates=7), 100) == Extent(2800, 7)
    assert extent(stage(epochs=100.0, max_updates=3), 1000) == Extent(1200, 3)
    assert extent(stage(epochs=1.0, max_updates=3), 1000) == Extent(1000, 3)


def test_factor_holds_rises_and_falls_to_the_floor() -> None:
    factor = rate_factor(Schedule(warmup_fraction=0.1, prewarmup_steps=5, prewarmup_factor=0.05, floor=0.1), 100)
    values = [factor(done) for done in range(101)]
    assert values[:5] == [0.05] * 5
    assert all(a < b for a, b in pairwise(values[4:16]))
    assert values[15] == 1.0
    assert all(a > b for a, b in pairwise(values[15:]))
    assert values[15 + 85 // 2] == pytest.approx(0.55, abs=0.02)
    assert values[100] == pytest.approx(0.1)


def test_embeddings_learn_alone_before_the_rest_of_the_schedule() -> None:
    schedule = Schedule(embedding_warmup_steps=7, warmup_fraction=0.1, prewarmup_steps=5)
    factor, plain = rate_factor(schedule, 107), rate_factor(Schedule(warmup_fraction=0.11, prewarmup_steps=5), 100)
    assert [factor(done) for done in range(7)] == [1.0] * 7
    assert [factor(done) for done in range(7, 107)] == [plain(done) for done in range(100)]
    assert [learns(schedule, "embedding", done) for done in (0, 6, 7)] == [True, True, True]
    assert [learns(schedule, "lora_b", done) for done in (0, 6, 7)] == [False, False, True]
    with pytest.raises(ConfigurationError, match="warm-up takes 9 of the stage's 9 updates"):
        extent(stage(max_updates=9, schedule={"embedding_warmup_steps": 9}), 10_000)


def test_warm_up_longer_than_the_stage_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="warm-up takes 100 of the stage's 3 updates"):
        extent(stage(max_updates=3, schedule={"prewarmup_steps": 100}), 10_000)
