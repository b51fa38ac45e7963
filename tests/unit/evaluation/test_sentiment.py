"""A sentiment model from a folder: its two labels by name, long texts cut, another kind of model refused."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from polysome.config import ConfigurationError
from polysome.evaluation.sentiment import sentiment_model


def save(folder: Path, labels: list[str]) -> str:
    """A tiny classifier of two words whose label is decided by the word."""
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "[PAD]": 1, "good": 2, "bad": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=4,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=512,
        id2label=dict(enumerate(labels)),
        label2id={label: place for place, label in enumerate(labels)},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


def test_probabilities_are_those_of_the_two_labels(tmp_path: Path) -> None:
    judge = sentiment_model(save(tmp_path, ["NEGATIVE", "neutral", "Positive"]))
    first, long = judge("good"), judge("bad " * 2000)
    assert all(0 < share < 1 for share in (*first, *long))
    assert sum(first) < 1
    turned = sentiment_model(save(tmp_path, ["positive", "neutral", "negative"]))("good")
    assert turned == pytest.approx(first[::-1])


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no sentiment model"):
        sentiment_model(str(tmp_path / "absent"))
    with pytest.raises(ConfigurationError, match="joy, sorrow"):
        sentiment_model(save(tmp_path, ["joy", "sorrow"]))
