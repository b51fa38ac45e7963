"""Flattened micro-batches: no padding, every target once, loss as over separate documents."""

import numpy as np
import pytest
import torch
from prepared import write_prepared

from polysome.data.feed import Feed, open_feed
from polysome.data.rows import Documents
from polysome.models.backbone import ModelSource, build_model
from polysome.training.batch import Objective, PackedLanguageModel, flatten


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Feed:
    folder = write_prepared(tmp_path_factory.mktemp("batch") / "prepared", rows=8)
    return open_feed(str(folder), seed=1, cache=str(folder / "cache"))


def test_padding_is_dropped_and_targets_are_all_there(feed: Feed) -> None:
    rows = feed.rows(np.arange(8))
    batch = flatten(*feed.documents(np.arange(8)))
    assert batch.input_ids.shape == (1, rows.tokens.sum())
    assert len(batch.targets) == rows.targets.sum()
    assert (
        sum(bucket.documents for bucket in batch.packing.buckets)
        == (rows.position_ids == 0)[rows.segment_ids > 0].sum()
    )
    assert torch.equal(batch.input_ids[0, batch.predictors + 1], batch.targets)


def test_loss_equals_the_sum_over_separate_documents(feed: Feed, tiny_tokenizer: str) -> None:
    fields = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
              "num_attention_heads": 2, "vocab_size": feed.manifest.vocabulary_size + 50}  # fmt: skip
    causal = build_model(ModelSource(config=fields), tiny_tokenizer, seed=3)
    rows = feed.rows(np.arange(5))
    packed, sums = PackedLanguageModel(causal)(flatten(*feed.documents(np.arange(5))))
    causal.set_attn_implementation("sdpa")
    separate = 0.0
    for row in range(5):
        for segment in range(1, rows.segment_ids[row].max() + 1):
            part = rows.segment_ids[row] == segment
            input_ids, labels = (
                torch.from_numpy(values[row][part].astype(np.int64)) for values in (rows.input_ids, rows.labels)
            )
            logits = causal(input_ids=input_ids[None]).logits[0, :-1]
            separate += torch.nn.functional.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum")
    torch.testing.assert_close(packed, separate, rtol=1e-5, atol=1e-4)
    assert sums[0, 0] == pytest.approx(packed.item())
    assert sums[0, 1] == rows.targets.sum()


def test_no_rows_are_a_batch_without_targets_that_still_reaches_every_weight(feed: Feed, tiny_tokenizer: str) -> None:
    fields = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
              "num_attention_heads": 2}  # fmt: skip
    causal = build_model(ModelSource(config=fields), tiny_tokenizer, seed=3)
    loss, sums = PackedLanguageModel(causal)(flatten(*feed.documents(np.arange(0))))
    loss.backward()
    assert loss == 0
    assert not sums.any()
    assert all(value.grad is not None and not value.grad.any() for value in causal.parameters())


def test_sums_are_told_by_source_and_the_number_loss_meets_numeric_sources_alone(tiny_tokenizer: str) -> None:
    documents = Documents(
        np.arange(10, 22, dtype=np.int32), np.array([5, 4, 3], np.int32), np.array([2, 3, 1], np.int32)
    )
    fields = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
              "num_attention_heads": 2}  # fmt: skip
    causal = build_model(ModelSource(config=fields), tiny_tokenizer, seed=3)

    def number_loss(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return (targets * weights).sum()

    batch = flatten(documents, np.array([1, 0, 1]))
    plain, sums = PackedLanguageModel(causal, Objective(sources=2))(batch)
    assert sums[:, 1].tolist() == [1, 5]
    assert sums[:, 0].sum() == pytest.approx(plain.item())
    objective = Objective(sources=2, number_loss=number_loss, number_weights=torch.tensor([0.0, 0.5]))
    more, _ = PackedLanguageModel(causal, objective)(batch)
    assert more.item() == pytest.approx(plain.item() + (12 + 13 + 14 + 20 + 21) / 2)
