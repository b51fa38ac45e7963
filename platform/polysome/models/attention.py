"""Packed attention: documents of one flattened micro-batch attend to themselves alone, without a dense mask.

A micro-batch arrives as one sequence of `total` tokens, documents one after another. Where a CUDA device can run it,
attention is one call of torch's variable-length kernel, which is told where documents begin. Elsewhere `pack` has
grouped the documents into buckets of similar length once per micro-batch; every layer gathers each bucket into a
right-padded [documents, heads, length, head_dim] block, runs one causal scaled-dot-product attention over it, and
scatters back. Right padding under a causal mask is never seen by a real token, so no mask is built either way.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn

from polysome.config import ConfigurationError

ATTENTION = "packed_sdpa"
"""Name under which transformers knows this attention."""

SHORTEST_IN_BUCKET = 0.75
"""A document joins a bucket when it is at least this share of its longest; bounds padded work at 1/0.75²."""


@dataclass(frozen=True)
class Bucket:
    """Documents that are attended together.

    Attributes:
        index: int64 [documents * length], the token at each place of the padded block; padding repeats token 0.
        places: int64 [tokens], the places of the block that hold a token.
        documents: number of documents.
        length: tokens of the longest.
    """

    index: torch.Tensor
    places: torch.Tensor
    documents: int
    length: int


@dataclass(frozen=True)
class Packing:
    """Where the documents of one flattened micro-batch lie, and how they fall into buckets.

    Attributes:
        cu_seqlens: int32 [documents + 1], where each document begins, and at last `total`.
        longest: tokens of the longest document.
        buckets: longest documents first.
        order: int64 [total], for each token its place in the concatenation of all buckets' tokens.
        tokens: int64 [total], the tokens in the order of that concatenation (the inverse of `order`).
    """

    cu_seqlens: torch.Tensor
    longest: int
    buckets: tuple[Bucket, ...]
    order: torch.Tensor
    tokens: torch.Tensor

    def to(self, device: torch.device) -> "Packing":
        """The same packing with its index tensors on `device`."""
        if self.order.device == device:
            return self
        buckets = tuple(
            Bucket(bucket.index.to(device), bucket.places.to(device), bucket.documents, bucket.length)
            for bucket in self.buckets
        )
        return Packing(self.cu_seqlens.to(device), self.longest, buckets, self.order.to(device), self.tokens.to(device))


def pack(lengths: list[int]) -> Packing:
    """Plan the attention of a flattened micro-batch.

    Args:
        lengths: tokens of each document, in their order in the micro-batch; all positive.
    """
    document_lengths = torch.tensor(lengths, dtype=torch.int64)
    ends = torch.cumsum(document_lengths, 0)
    starts = ends - document_lengths
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    buckets, first = [], 0
    while first < len(by_length):
        longest = lengths[by_length[first]]
        last = first
        while last < len(by_length) and lengths[by_length[last]] >= SHORTEST_IN_BUCKET * longest:
            last += 1
        members = torch.tensor(by_length[first:last], dtype=torch.int64)
        offsets = torch.arange(longest)
        is_token = (offsets < document_lengths[members, None]).flatten()
        index = torch.where(is_token, (starts[members, None] + offsets).flatten(), 0)
        buckets.append(Bucket(index, is_token.nonzero().flatten(), last - first, longest))
        first = last
    tokens = torch.cat([bucket.index[bucket.places] for bucket in buckets])
    order = torch.empty_like(tokens)
    order[tokens] = torch.arange(len(tokens))
    cu_seqlens = torch.nn.functional.pad(ends, (1, 0)).to(torch.int32)
    return Packing(cu_seqlens, max(lengths), tuple(buckets), order, tokens)


def packed_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packing: Packing,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document of a flattened micro-batch.

    Args:
        module: the attention layer; unused, part of transformers' calling convention.
        query: [1, heads, total, head_dim]; `key` and `value` [1, kv_heads, total, head_dim], heads a multiple.
        packing: from `pack`, for exactly these `total` tokens.
        sliding_window, softcap, s_aux: windows, soft-capping and sinks of other attentions.

    Returns:
        [1, total, heads, head_dim] and no attention weights.

    Raises:
        ConfigurationError: the model asks for soft-capping, sinks, or a window shorter than a document.
    """
    if softcap is not None or s_aux is not None or (sliding_window is not None and sliding_window < packing.longest):
        raise ConfigurationError(
            f"{type(module).__name__} asks for soft-capping, attention sinks or a sliding window shorter than the "
            f"longest document ({packing.longest} tokens), which packed attention does not compute",
            where="model",
            fix="use a model with full attention in every layer",
        )
    grouped = query.shape[1] != key.shape[1]
    queries, keys, values = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    if runs_varlen(query, value, dropout):
        output: Any = varlen_attn(
            queries,
            keys,
            values,
            packing.cu_seqlens,
            packing.cu_seqlens,
            packing.longest,
            packing.longest,
            scale=scaling,
            window_size=(-1, 0),  # causal
            enable_gqa=grouped,
        )
    else:
        output = _per_bucket(queries, keys, values, packing, dropout, scaling, grouped)
    return output.unsqueeze(0), None


def runs_varlen(query: torch.Tensor, value: torch.Tensor, dropout: float) -> bool:
    """Whether torch's variable-length kernel (FlashAttention-2) computes this attention.

    It needs CUDA of compute capability 8.0, fp16 or bf16, equal head dimensions of keys and values that are a multiple
    of 8 and at most 256, and no dropout.

    Args:
        query, value: [1, heads, total, head_dim].
    """
    head_dim = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and dropout == 0.0
        and head_dim == value.shape[-1]
        and head_dim % 8 == 0
        and head_dim <= 256
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def register() -> None:
    """Make the name `packed_sdpa` known to transformers; repeated calls do nothing new."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, packed_sdpa)


# Buckets differ from micro-batch to micro-batch: traced, each would be compiled anew.
@torch.compiler.disable
def _per_bucket(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packing: Packing,
    dropout: float,
    scaling: float | None,
    grouped: bool,
) -> torch.Tensor:
    """Attention of [total, heads, head_dim] bucket by bucket."""
    dtype = query.dtype
    # The CPU kernel is 2-3 times slower in bfloat16 than in float32, and less exact.
    compute_dtype = torch.float32 if query.device.type == "cpu" else dtype
    parts = [tensor.to(compute_dtype) for tensor in (query, key, value)]
    outputs = []
    for bucket in packing.buckets:
        blocks = [
            _Gather.apply(part, bucket.index, bucket).view(bucket.documents, bucket.length, *part.shape[1:])
            for part in parts
        ]
        queries, keys, values = (block.transpose(1, 2) for block in blocks)
        output = torch.nn.functional.scaled_dot_product_attention(
            queries,
            keys,
            values,
            dropout_p=dropout,
            is_causal=True,
            scale=scaling,
            enable_gqa=grouped,
        )
        flat = output.transpose(1, 2).reshape(bucket.documents * bucket.length, *output.shape[1::2])
        outputs.append(_Drop.apply(flat, bucket.places))
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return _Permute.apply(joined, packing.order, packing.tokens).to(dtype)


class _Gather(torch.autograd.Function):
    """Rows of `values` at `index`; the gradient is copied back, not summed, since each real row is taken once.

    The places that padding filled must receive zero gradient; causal attention guarantees it, because no real query
    sees a padded key and the outputs of padded queries are dropped.
    """

    @staticmethod
    def forward(context: Any, values: torch.Tensor, index: torch.Tensor, bucket: Bucket) -> torch.Tensor:
        context.bucket, context.shape = bucket, values.shape
        return values.index_select(0, index)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        bucket = context.bucket
        result = gradient.new_zeros(context.shape)
        result.index_copy_(0, bucket.index.index_select(0, bucket.places), gradient.index_select(0, bucket.places))
        return result, None, None


class _Permute(torch.autograd.Function):
    """Rows of `values` in another order; `inverse` undoes it."""

    @staticmethod
    def forward(context: Any, values: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        context.inverse = inverse
        return values.index_select(0, order)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradient.index_select(0, context.inverse), None, None


class _Drop(torch.autograd.Function):
    """The rows of a padded block that hold tokens; padding gets zero gradient."""

    @staticmethod
    def forward(context: Any, block: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        context.places, context.shape = places, block.shape
        return block.index_select(0, places)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        result = gradient.new_zeros(context.shape)
        result.index_copy_(0, context.places, gradient)
        return result, None
