"""What makes two stages the same course of training, and what is refused at the edge."""

import pytest
from test_schedule import stage

from polysome.config import ConfigurationError, validate
from polysome.training.config import StageConfig


def test_fingerprint_ignores_where_and_how_often_but_not_what() -> None:
    same = stage().fingerprint("data")
    fewer = stage(workers={"count": 10}, gradient_accumulation_steps=20, checkpoint={"every_updates": 7})
    assert fewer.fingerprint("data") == same
    assert stage(log_every_updates=1, max_failures=5, offload=True).fingerprint("data") == same
    different = [
        stage(seed=1),
        stage(optimizer={"learning_rate": 2e-3}),
        stage(micro_batch_size=4),
        stage(precision="fp32"),
        stage(trainability=[{"match": "norm", "mode": "full"}]),
        stage(model={"path": "other"}),
        stage(epochs=2.0),
    ]
    assert same not in {config.fingerprint("data") for config in different}
    assert stage().fingerprint("other data") != same


def test_fingerprint_goes_by_what_stands_at_the_models_path() -> None:
    here, there = (stage(model={"path": path}) for path in ("here", "there"))
    assert here.fingerprint("data", "weights") == there.fingerprint("data", "weights")
    assert here.fingerprint("data", "weights") != here.fingerprint("data", "other weights")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": None}, "epochs, max_updates, or both"),
        ({"model": {"path": "m", "config": {"model_type": "llama"}}}, "exactly one of path"),
        ({"trainability": [{"match": "(", "mode": "full"}]}, "not a regular expression"),
        ({"trainability": [{"match": ".", "mode": "lora"}]}, "needs rank and alpha"),
        ({"zero": 3}, "zero"),
        ({"zero": 0, "offload": True}, "needs zero: 2"),
        ({"checkpoint": {"keep_best": 1}}, "needs dev.data"),
        ({"checkpoint": {"keep_best": 1}, "dev": {"tasks": ["t"], "every_updates": 1}}, "needs dev.data"),
        ({"dev": {"every_updates": 1}}, "data .a prepared folder., tasks, or both"),
        ({"workers": {"count": [3, 2]}}, "the larger first"),
        ({"optimizer": {"learning_rate": 1e-3, "lora_plus": 4}}, "lora_plus_ratio"),
    ],
)
def test_wrong_stages_are_refused_with_the_field(changes: dict, said: str) -> None:
    content = {**stage().model_dump(), **changes}
    with pytest.raises(ConfigurationError, match=said):
        validate(StageConfig, content, where="recipe.yaml")
