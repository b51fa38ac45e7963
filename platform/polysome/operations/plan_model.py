"""The model of a planned stage: its architecture on the meta device, what trains, what a step computes and keeps.

Nothing is downloaded and no weight is drawn. What the forward pass keeps for the backward pass is counted by running
the stage's own forward pass on the meta device and adding up the tensors that autograd saves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polysome.config import ConfigurationError
from polysome.models.backbone import ModelSource
from polysome.models.trainability import ModuleChoice, Rule
from polysome.training.devices import Precision
from polysome.training.flops import TokenFlops

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_LLAMA_31_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}
_LLAMA_2_7B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}
_MISTRAL_7B = {
    **_LLAMA_31_8B,
    "model_type": "mistral",
    "vocab_size": 32768,
    "max_position_embeddings": 32768,
    "sliding_window": None,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA_31_8B,
    "meta-llama/Llama-3.1-8B": _LLAMA_31_8B,
    "meta-llama/Meta-Llama-3-8B-Instruct": {**_LLAMA_31_8B, "max_position_embeddings": 8192},
    "meta-llama/Llama-2-7b-hf": _LLAMA_2_7B,
    "meta-llama/Llama-2-7b-chat-hf": _LLAMA_2_7B,
    "mistralai/Mistral-7B-Instruct-v0.3": _MISTRAL_7B,
}
"""Shapes of models on the hub (their published config.json), so that a plan of them needs no network (XP-6)."""


@dataclass(frozen=True)
class Batch:
    """The micro-batch that a plan reckons with.

    Attributes:
        documents: documents of one micro-batch.
        document_length: tokens of each.
        target_share: share of tokens that are trained on.
    """

    documents: int
    document_length: int
    target_share: float

    @property
    def tokens(self) -> int:
        """Tokens of one micro-batch on one worker."""
        return self.documents * self.document_length


@dataclass(frozen=True)
class Kept:
    """Bytes that the forward pass of one micro-batch keeps for its backward pass.

    Attributes:
        layers: by decoder layer.
        outside: before and behind the layers, the log-probabilities of all targets among them.
        layer_input: the hidden states that enter a layer, which is all that gradient checkpointing keeps of it.
        widest: the largest tensor inside a layer.
        logits: elements, targets x vocabulary.
    """

    layers: tuple[int, ...]
    outside: int
    layer_input: int
    widest: int
    logits: int


@dataclass(frozen=True)
class Model:
    """What is known of a stage's model.

    Attributes:
        choices: what trains, module by module.
        total: parameters without LoRA, shared ones counted once.
        held: parameters in memory, with LoRA.
        trainable: parameters that train.
        largest: of the largest single weight that trains.
        adapter: parameters of LoRA matrices.
        flops: per token.
        kept: of one micro-batch.
        fields: of the model's configuration, `model_type` among them.
    """

    choices: tuple[ModuleChoice, ...]
    total: int
    held: int
    trainable: int
    adapter: int
    largest: int
    flops: TokenFlops
    kept: Kept
    fields: dict[str, Any]


def examine(
    source: ModelSource,
    rules: Sequence[Rule],
    batch: Batch,
    precision: Precision,
    *,
    tokenizer: str | None = None,
    on_cpu: bool = False,
    seed: int = 42,
) -> Model:
    """Build a model without weights, apply the rules, and see what one micro-batch costs.

    Args:
        source: of the model.
        rules: what trains.
        batch: of one worker.
        tokenizer: local folder, for a model from a configuration that names no vocabulary size.
        on_cpu: attention computes in fp32 there, whatever the precision.

    Raises:
        ConfigurationError: the model's configuration cannot be found, or the rules do not fit the model.
    """
    import torch

    from polysome.models import trainability
    from polysome.models.backbone import parameter_count
    from polysome.training.flops import flops_per_token

    model = _architecture(source, tokenizer, seed)
    total = parameter_count(model)
    choices = trainability.apply(model, rules, seed=seed)
    torch.nn.Module.to(model, torch.bfloat16 if precision == "bf16" else torch.float32)
    training = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Model(
        choices=tuple(choices),
        total=total,
        held=parameter_count(model),
        trainable=sum(parameter.numel() for parameter in training),
        adapter=sum(choice.trainable for choice in choices if choice.mode == "lora"),
        largest=max(parameter.numel() for parameter in training),
        flops=flops_per_token(model, document_length=batch.document_length, target_share=batch.target_share),
        kept=_kept(model, batch, in_fp32=on_cpu),
        fields=model.config.to_dict(),
    )


def _architecture(source: ModelSource, tokenizer: str | None, seed: int) -> PreTrainedModel:
    import torch
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

    from polysome.models.attention import ATTENTION, register
    from polysome.models.backbone import build_model
    from polysome.storage.local import local_folder

    register()
    if source.config is not None and tokenizer is not None:
        return build_model(source, tokenizer, seed=seed, meta=True)
    if source.config is not None:
        fields = source.config
        if "vocab_size" not in fields:
            raise ConfigurationError(
                "the size of the model is not known: it has the tokenizer's vocabulary, and there is no tokenizer yet",
                where="model.config",
                fix="prepare the data first, or give model.config.vocab_size for the plan",
            )
    elif source.path in PUBLISHED:
        fields = PUBLISHED[source.path]
    else:
        path = local_folder(str(source.path))
        try:
            config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=os.path.isdir(path))
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"cannot read the configuration of {source.path}: {str(error).splitlines()[0]}",
                where="model.path",
                fix="name a local folder with its config.json, plan where the hub can be reached, or plan with "
                f"model={{config: …}}; known without it: {', '.join(PUBLISHED)}",
            ) from error
        fields = {}
    if fields:
        content = dict(fields)
        config = CONFIG_MAPPING[content.pop("model_type")](**content)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION, trust_remote_code=False)


def _kept(model: PreTrainedModel, batch: Batch, *, in_fp32: bool) -> Kept:
    """Run the stage's forward pass on the meta device and add up what autograd saves, by layer."""
    import numpy as np
    import torch

    from polysome.data.rows import Documents
    from polysome.training.batch import PackedLanguageModel, flatten

    length, count = batch.document_length, batch.documents
    first = length - round(batch.target_share * length)
    documents = Documents(
        np.zeros(length * count, np.int32), np.full(count, length, np.int32), np.full(count, first, np.int32)
    )
    micro_batch = flatten(documents, np.zeros(count, np.int64)).to(torch.device("meta"))
    found = _Saved(model)
    with _planned_attention(in_fp32), found.watching():
        PackedLanguageModel(model)(micro_batch)
    text = model.config.get_text_config()
    width = next(parameter.dtype.itemsize for parameter in model.parameters())
    return Kept(
        layers=tuple(found.layers),
        outside=found.outside,
        layer_input=batch.tokens * text.hidden_size * width,
        widest=found.widest,
        logits=len(micro_batch.targets) * text.vocab_size,
    )


class _Saved:
    """Bytes of what autograd saves, every storage once, and the model's own weights and buffers not at all."""

    def __init__(self, model: torch.nn.Module) -> None:
        import torch

        lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
        if not lists:
            raise ConfigurationError("the model has no list of layers", where="model", fix="choose a decoder model")
        self._blocks = max(lists, key=len)
        # Storages are kept, so that the identity of one that was freed is not taken for it.
        self._known: dict[int, Any] = {}
        for tensor in (*model.parameters(), *model.buffers()):
            self._known[tensor.untyped_storage()._cdata] = tensor
        self._layer: int | None = None
        self.layers = [0] * len(self._blocks)
        self.outside = self.widest = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        import torch

        handles = []
        for number, block in enumerate(self._blocks):
            handles.append(block.register_forward_pre_hook(lambda *_, number=number: self._enter(number)))
            handles.append(block.register_forward_hook(lambda *_: self._enter(None)))
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._save, lambda tensor: tensor):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, layer: int | None) -> None:
        self._layer = layer

    def _save(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known[storage._cdata] = storage
            size = storage.nbytes()
            if self._layer is None:
                self.outside += size
            else:
                self.layers[self._layer] += size
                self.widest = max(self.widest, size)
        return tensor


@contextmanager
def _planned_attention(in_fp32: bool) -> Iterator[None]:
    """In place of packed attention, whose kernels know no meta device: the same saved tensors, nothing computed."""
    import torch
    from transformers import AttentionInterface

    from polysome.models.attention import ATTENTION, packed_sdpa

    class Attention(torch.autograd.Function):
        """Saves what FlashAttention saves: query, key, value, output, and the logarithm of every row's sum."""

        @staticmethod
        def forward(context: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            output = query.new_empty((*query.shape[:2], value.shape[2]))
            context.save_for_backward(query, key, value, output, query.new_empty(query.shape[:2], dtype=torch.float32))
            return output

    def planned(
        module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, None]:
        parts = [tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value)]
        if in_fp32:
            # Gathered into buckets, each part is a copy.
            parts = [tensor.to(torch.float32, copy=True) for tensor in parts]
        # Scattered back from its buckets, the output is one as well.
        output = Attention.apply(*parts).to(query.dtype, copy=in_fp32)
        return output.unsqueeze(0), None

    AttentionInterface.register(ATTENTION, planned)
    try:
        yield
    finally:
        AttentionInterface.register(ATTENTION, packed_sdpa)
