"""Packed attention equals attention over separate documents, and nothing leaks between them."""

from collections.abc import Iterator

import pytest
import torch
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention

from polysome.config import ConfigurationError
from polysome.models import attention
from polysome.models.attention import pack, packed_sdpa, runs_varlen
from polysome.models.backbone import ModelSource, build_model

LENGTHS = [17, 1, 40, 6, 64, 30, 33]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "llama": {**SIZES, "num_key_value_heads": 2},
    "mistral": {**SIZES, "num_key_value_heads": 2, "sliding_window": None},
    "gemma": {**SIZES, "num_key_value_heads": 1, "head_dim": 16},
    "qwen2": {**SIZES, "num_key_value_heads": 2},
    "qwen3": {**SIZES, "num_key_value_heads": 2, "head_dim": 16},
    "glm": {**SIZES, "num_key_value_heads": 2, "head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "biogpt": SIZES,
}


def tiny(family: str, tokenizer: str) -> torch.nn.Module:
    """Weights are large enough for a leak to show: as drawn by transformers, attention hardly moves the logits."""
    model = build_model(ModelSource(config={"model_type": family, **FAMILIES[family]}), tokenizer, seed=7).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tiny_tokenizer: str) -> torch.nn.Module:
    return tiny(request.param, tiny_tokenizer)


@pytest.fixture(scope="module")
def llama(tiny_tokenizer: str) -> torch.nn.Module:
    return tiny("llama", tiny_tokenizer)


def packed_row(lengths: list[int] = LENGTHS) -> dict:
    input_ids = torch.randint(20, 270, (1, sum(lengths)), generator=torch.Generator().manual_seed(0))
    position_ids = torch.cat([torch.arange(length) for length in lengths])[None]
    return {"input_ids": input_ids, "position_ids": position_ids, "packing": pack(lengths)}


def assert_equals_separate_documents(model: torch.nn.Module) -> None:
    row = packed_row()
    packed = model(**row).logits[0]
    plain = type(model).from_pretrained(None, config=model.config, state_dict=model.state_dict()).eval()
    plain.set_attn_implementation("sdpa")
    parts = row["input_ids"].split(LENGTHS, dim=1)
    separate = torch.cat([plain(input_ids=part, use_cache=False).logits[0] for part in parts])
    model.set_attn_implementation(attention.ATTENTION)  # some families share one configuration among copies
    torch.testing.assert_close(packed, separate, atol=1e-5, rtol=1e-5)


def assert_gradient_stays_within_the_document(model: torch.nn.Module) -> None:
    row = packed_row()
    embedded = model.get_input_embeddings()(row.pop("input_ids")).detach().requires_grad_(True)
    logits = model(inputs_embeds=embedded, **row).logits[0]
    start, stop = sum(LENGTHS[:2]), sum(LENGTHS[:3])
    weights = torch.linspace(-1, 1, logits.shape[1])
    (gradient,) = torch.autograd.grad((logits[start:stop] * weights).sum(), embedded)
    outside = torch.cat([gradient[0, :start], gradient[0, stop:]])
    assert outside.abs().max() == 0
    alone = embedded[:, start:stop].detach().requires_grad_(True)
    logits = model(
        inputs_embeds=alone, position_ids=row["position_ids"][:, start:stop], packing=pack([LENGTHS[2]])
    ).logits[0]
    (expected,) = torch.autograd.grad((logits * weights).sum(), alone)
    torch.testing.assert_close(gradient[:, start:stop], expected, atol=1e-4, rtol=1e-4)


def test_packed_logits_equal_those_of_separate_documents(model: torch.nn.Module) -> None:
    assert_equals_separate_documents(model)


def test_gradient_stays_within_the_document_and_equals_the_separate_one(model: torch.nn.Module) -> None:
    assert_gradient_stays_within_the_document(model)


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


def each_document(tensors: list[torch.Tensor], cu_seqlens: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """[total, heads, head_dim] cut into documents, heads first."""
    assert cu_seqlens.dtype == torch.int32
    return zip(*(tensor.transpose(0, 1).split(cu_seqlens.diff().tolist(), dim=1) for tensor in tensors), strict=True)


def varlen_forward(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, scale=None, window_size=None,
    enable_gqa=False, seqused_k=None, block_table=None, num_splits=None,
):  # fmt: skip
    """What the variable-length kernel computes, one document after the other."""
    assert max_q == max_k == cu_seq_q.diff().max()
    assert list(window_size) == [-1, 0]
    outputs = [
        scaled_dot_product_attention(*parts, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa).transpose(0, 1)
        for parts in each_document([query, key, value], cu_seq_q)
    ]
    return torch.cat(outputs), query.new_zeros(query.shape[1::-1]), torch.zeros(2, dtype=torch.uint64)


def varlen_backward(
    grad_out, query, key, value, out, lse, cu_seq_q, cu_seq_k, max_q, max_k, is_causal, rng_state, scale=None,
    window_size=None,
):  # fmt: skip
    """Gradients by the formula, since autograd is switched off within an operator."""
    group = query.shape[1] // key.shape[1]
    scale = query.shape[2] ** -0.5 if scale is None else scale
    gradients = []
    for grad, q, k, v in each_document([grad_out, query, key, value], cu_seq_q):
        k, v = (part.repeat_interleave(group, dim=0) for part in (k, v))
        future = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).triu(1)
        weights = (q @ k.mT * scale).masked_fill(future, float("-inf")).softmax(-1)
        of_weights = grad @ v.mT
        of_scores = weights * (of_weights - (weights * of_weights).sum(-1, keepdim=True)) * scale
        per_head = (of_scores @ k, of_scores.mT @ q, weights.mT @ grad)
        gradients.append([part.transpose(0, 1) for part in per_head])
    of_query, of_key, of_value = (torch.cat(parts) for parts in zip(*gradients, strict=True))
    return of_query, *(part.unflatten(1, (-1, group)).sum(2) for part in (of_key, of_value))


@pytest.fixture
def varlen_on_cpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """torch's own operator with a CPU kernel, which it lacks, chosen for every device; counts its calls."""
    calls: list[int] = []

    def forward(*arguments, **named):
        calls.append(1)
        return varlen_forward(*arguments, **named)

    monkeypatch.setattr(attention, "runs_varlen", lambda query, value, dropout: True)
    varlen._varlen_attn.register_kernel("cpu", forward)
    varlen._varlen_attn_backward.register_kernel("cpu", varlen_backward)
    return calls


def test_variable_length_kernel_equals_separate_documents(varlen_on_cpu: list[int], model: torch.nn.Module) -> None:
    assert_equals_separate_documents(model)
    assert_gradient_stays_within_the_document(model)
    assert varlen_on_cpu


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "value_dim", "dropout", "capability", "expected"),
    [
        ("cuda", torch.bfloat16, 128, 128, 0.0, (8, 0), True),
        ("cuda", torch.float16, 64, 64, 0.0, (9, 0), True),
        ("cpu", torch.bfloat16, 128, 128, 0.0, (8, 0), False),
        ("cuda", torch.float32, 128, 128, 0.0, (8, 0), False),
        ("cuda", torch.bfloat16, 288, 288, 0.0, (8, 0), False),
        ("cuda", torch.bfloat16, 20, 20, 0.0, (8, 0), False),
        ("cuda", torch.bfloat16, 192, 128, 0.0, (8, 0), False),
        ("cuda", torch.bfloat16, 128, 128, 0.1, (8, 0), False),
        ("cuda", torch.bfloat16, 128, 128, 0.0, (7, 5), False),
    ],
)
def test_variable_length_kernel_is_chosen_where_it_can_run(
    device, dtype, head_dim, value_dim, dropout, capability, expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with FakeTensorMode():
        query = torch.empty(1, 4, 10, head_dim, dtype=dtype, device=device)
        value = torch.empty(1, 4, 10, value_dim, dtype=dtype, device=device)
    assert runs_varlen(query, value, dropout) is expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_variable_length_kernel_on_a_gpu_equals_separate_documents() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = ((1, heads, sum(LENGTHS), 64) for heads in (8, 2, 2))
    query, key, value = (
        torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16).requires_grad_(True)
        for shape in shapes
    )
    packing = pack(LENGTHS).to(query.device)
    assert runs_varlen(query, value, 0.0)
    output = packed_sdpa(torch.nn.Identity(), query, key, value, None, packing=packing)[0]
    exact = [tensor.detach().float().requires_grad_(True) for tensor in (query, key, value)]
    expected = packed_sdpa(torch.nn.Identity(), *exact, None, packing=packing)[0]
    torch.testing.assert_close(output.float(), expected, atol=2e-2, rtol=2e-2)
    places = torch.zeros_like(output)
    places[:, LENGTHS[0] : sum(LENGTHS[:3])] = 1
    output.backward(places)
    expected.backward(places.float())
    for ours, theirs in zip((query, key, value), exact, strict=True):
        torch.testing.assert_close(ours.grad.float(), theirs.grad, atol=5e-2, rtol=5e-2)
        assert ours.grad[:, :, sum(LENGTHS[:3]) :].abs().max() == 0


def gradients(model: torch.nn.Module, rows: list[dict]) -> list[torch.Tensor]:
    model.zero_grad()
    for row in rows:
        model(**row, use_cache=False).logits.square().mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_activation_checkpointing_passes_the_packing_on(llama: torch.nn.Module) -> None:
    rows = [packed_row()]
    expected = gradients(llama, rows)
    llama.train().activation_checkpointing_enable({"use_reentrant": False})
    try:
        found = gradients(llama, rows)
    finally:
        llama.eval().activation_checkpointing_disable()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("kernel", ["varlen", "buckets"])
def test_compiled_once_for_documents_of_any_number_and_length(
    kernel: str, llama: torch.nn.Module, request: pytest.FixtureRequest
) -> None:
    from torch._dynamo.utils import counters

    if kernel == "varlen":
        request.getfixturevalue("varlen_on_cpu")
    rows = [packed_row(lengths) for lengths in ([5, 3, 9], [17, 4], [8] * 4, [30], [12, 40, 3], [1, 2, 3, 4, 5])]
    expected = gradients(llama, rows)
    torch._dynamo.reset()
    compiled = torch.compile(llama, backend="eager", dynamic=True, fullgraph=kernel == "varlen")
    compiled(**rows[0], use_cache=False)
    counters.clear()
    found = gradients(compiled, rows)
    assert not counters["stats"], "later micro-batches were compiled anew"
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
