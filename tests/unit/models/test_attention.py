"""Packed attention equals attention over separate documents, and nothing leaks between them."""

import pytest
import torch

from polysome.config import ConfigurationError
from polysome.models.attention import pack, packed_sdpa
from polysome.models.backbone import ModelSource, build_model

LENGTHS = [17, 1, 40, 6, 64, 30, 33]


@pytest.fixture(scope="module")
def model(tiny_tokenizer: str):
    fields = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return build_model(ModelSource(config=fields), tiny_tokenizer, seed=7)


@pytest.fixture(scope="module")
def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(20, 270, (1, sum(LENGTHS)), generator=generator)
    return input_ids, torch.cat([torch.arange(length) for length in LENGTHS])[None]


def test_packed_logits_equal_those_of_separate_documents(model, tokens) -> None:
    input_ids, position_ids = tokens
    packed = model(input_ids=input_ids, position_ids=position_ids, packing=pack(LENGTHS)).logits[0]
    plain = type(model).from_pretrained(None, config=model.config, state_dict=model.state_dict())
    plain.set_attn_implementation("sdpa")
    separate = torch.cat([plain(input_ids=part).logits[0] for part in input_ids.split(LENGTHS, dim=1)])
    torch.testing.assert_close(packed, separate, atol=1e-5, rtol=0)


def test_gradient_stays_within_the_document_and_equals_the_separate_one(model, tokens) -> None:
    input_ids, position_ids = tokens
    embedded = model.get_input_embeddings()(input_ids).detach().requires_grad_(True)
    logits = model(inputs_embeds=embedded, position_ids=position_ids, packing=pack(LENGTHS)).logits[0]
    start, stop = sum(LENGTHS[:2]), sum(LENGTHS[:3])
    weights = torch.linspace(-1, 1, logits.shape[1])
    (gradient,) = torch.autograd.grad((logits[start:stop] * weights).sum(), embedded)
    outside = torch.cat([gradient[0, :start], gradient[0, stop:]])
    assert outside.abs().max() == 0
    alone = embedded[:, start:stop].detach().requires_grad_(True)
    logits = model(inputs_embeds=alone, position_ids=position_ids[:, start:stop], packing=pack([LENGTHS[2]])).logits[0]
    (expected,) = torch.autograd.grad((logits * weights).sum(), alone)
    torch.testing.assert_close(gradient[:, start:stop], expected, atol=1e-5, rtol=1e-4)


def test_buckets_bound_the_padding() -> None:
    lengths = [1000] + [10] * 50 + [9] * 50
    packing = pack(lengths)
    padded = sum(bucket.documents * bucket.length for bucket in packing.buckets)
    assert padded < 1.1 * sum(lengths)
    assert torch.equal(packing.tokens[packing.order], torch.arange(sum(lengths)))


@pytest.mark.parametrize("asked", [{"sliding_window": 4}, {"softcap": 50.0}, {"s_aux": torch.zeros(1)}])
def test_what_is_not_computed_is_not_ignored(asked) -> None:
    query = torch.zeros(1, 1, 5, 2)
    with pytest.raises(ConfigurationError, match="does not compute"):
        packed_sdpa(torch.nn.Identity(), query, query, query, None, packing=pack([5]), **asked)
    packed_sdpa(torch.nn.Identity(), query, query, query, None, packing=pack([5]), sliding_window=5)
