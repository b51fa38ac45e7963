"""Export: the trained model as a plain Hugging Face folder, adapters merged in fp32, weights cast once."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from fsspec.core import url_to_fs

from polysome.models import trainability
from polysome.storage import join, remove

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

EXPORT = "export"


def export(
    model: PreTrainedModel,
    masters: dict[str, torch.Tensor],
    *,
    tokenizer_folder: str,
    folder: str,
    dtype: torch.dtype,
    probe: torch.Tensor,
) -> str:
    """Write `<folder>/export`: safetensors, config, tokenizer with chat template, generation_config (greedy).

    Args:
        model: the trained model; it is merged in place and cannot train on.
        masters: fp32 weights of the parameters that trained, by name.
        tokenizer_folder: local folder whose files are copied unchanged.
        dtype: of the written weights; LoRA is merged in fp32 first and the sum is cast once.
        probe: int64 [1, n] token ids on which the export is read back and compared.

    Returns:
        The export's folder. A local one appears whole or not at all; a remote one gets its config.json last, without
        which nothing loads it.

    Raises:
        RuntimeError: the export read back does not compute what the model in memory computes.
    """
    import torch
    from transformers import GenerationConfig

    torch.nn.Module.to(model, "cpu", torch.float32)
    model.activation_checkpointing_disable()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in masters:
                parameter.copy_(masters[name])
    trainability.merge(model)
    model.requires_grad_(False).eval()
    for parameter in model.parameters():
        # Parameters alone: rotary frequencies are buffers that stay fp32, as they are when the export is loaded.
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    model.config.use_cache = True
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    target = join(folder, EXPORT)
    filesystem, path = url_to_fs(target)
    local = "file" in filesystem.protocol
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path) if local else None, prefix=".export-") as scratch:
        written = os.path.join(scratch, EXPORT)
        # Tokenizer files first: a model folder may hold a config.json of its own, and ours must win.
        os.makedirs(written)
        for file in sorted(Path(tokenizer_folder).iterdir()):
            if file.is_file():
                (Path(written) / file.name).write_bytes(file.read_bytes())
        model.save_pretrained(written)
        _check(model, written, dtype, probe)
        remove(target)
        if local:
            os.rename(written, path)
        else:
            for name in sorted(os.listdir(written), key=lambda name: (name == "config.json", name)):
                filesystem.put_file(os.path.join(written, name), join(path, name))
    return target


def _check(model: PreTrainedModel, folder: str, dtype: torch.dtype, probe: torch.Tensor) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model.set_attn_implementation("sdpa")
    reloaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True).eval()
    with torch.no_grad():
        ours, theirs = (net(input_ids=probe, use_cache=False).logits for net in (model, reloaded))
    if not torch.equal(ours, theirs):
        difference = (ours.float() - theirs.float()).abs().max().item()
        raise RuntimeError(f"the export read back differs from the trained model: logits by up to {difference:.3g}")
