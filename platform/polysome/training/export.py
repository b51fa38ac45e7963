"""Export: the trained model as a plain Hugging Face folder, adapters merged in fp32, weights cast once; and the adapter
alone."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsspec.core import url_to_fs

from polysome.config import ConfigurationError, ResourceError
from polysome.models import trainability
from polysome.models.adapter import ADAPTER_CONFIG
from polysome.models.backbone import load_weights
from polysome.storage import join, make_folder, remove, write_json
from polysome.training.adapter import write_adapter
from polysome.training.model_card import Card, readme
from polysome.training.provenance import PROVENANCE, README, provenance_content

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

EXPORT = "export"
ADAPTER = "adapter"

_LAST = {EXPORT: "config.json", ADAPTER: ADAPTER_CONFIG}
"""Of each folder the file without which nothing loads it."""


def export(
    model: PreTrainedModel,
    masters: dict[str, torch.Tensor],
    *,
    tokenizer_folder: str,
    folder: str,
    dtype: torch.dtype,
    probe: torch.Tensor,
    card: Card | None = None,
    adapter: bool = True,
) -> str:
    """Write `<folder>/export`: safetensors, config, tokenizer with chat template, generation_config (greedy), and with
    a card README.md and polysome.json; and, where LoRA trained, `<folder>/adapter` (`polysome.training.adapter`) with
    the tokenizer.

    Args:
        model: the trained model; it is merged in place and cannot train on.
        masters: fp32 weights of the parameters that trained, by name.
        tokenizer_folder: local folder whose files are copied unchanged.
        dtype: of the written weights; LoRA is merged in fp32 first and the sum is cast once.
        probe: int64 [1, n] token ids on which the export is read back and compared.
        card: what is told of the model; without it nothing is.
        adapter: whether the adapter is written as well.

    Returns:
        The export's folder. A local folder appears whole or not at all; a remote one gets its config.json (the adapter
        its adapter_config.json) last, without which nothing loads it.

    Raises:
        RuntimeError: the export read back is not the model in memory, or a master belongs to no parameter.
        ResourceError: the files could not be written.
    """
    import torch

    torch.nn.Module.to(model, "cpu", torch.float32)
    # A compiled model computes with other roundings than the export that is read back.
    model._compiled_call_impl = None
    model.activation_checkpointing_disable()
    _take_masters(model, masters)
    make_folder(folder)
    with _scratch(folder) as scratch:
        with _told_where(folder):
            told = "not written, as was asked"
            if adapter:
                told = _write_adapter(model, join(scratch, ADAPTER), tokenizer_folder, card)
        trainability.merge(model)
        _settle(model, dtype)
        written = join(scratch, EXPORT)
        with _told_where(folder):
            # Tokenizer files first: a model folder may hold a config.json of its own, and ours must win.
            _copy_files(tokenizer_folder, written)
            model.save_pretrained(written)
            if card is not None:
                _write_card(model, scratch, card, told)
        _check(model, written, dtype, probe)
        with _told_where(folder):
            for name in (ADAPTER, EXPORT):
                remove(join(folder, name))
                if os.path.isdir(join(scratch, name)):
                    _publish(join(scratch, name), join(folder, name), last=_LAST[name])
    return join(folder, EXPORT)


def _take_masters(model: PreTrainedModel, masters: dict[str, torch.Tensor]) -> None:
    import torch

    parameters = dict(model.named_parameters())
    if lost := sorted(set(masters) - set(parameters)):
        raise RuntimeError(f"{len(lost)} trained weights belong to no parameter of the model, the first is {lost[0]}")
    with torch.no_grad():
        for name, value in masters.items():
            parameters[name].copy_(value)


def _settle(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Cast the merged model, and set it up to answer."""
    from transformers import GenerationConfig

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


def _write_adapter(model: PreTrainedModel, folder: str, tokenizer_folder: str, card: Card | None) -> str:
    """Write the adapter where there is one; returns what the card says of it."""
    try:
        written = write_adapter(model, folder, base=card.config.model.path if card else None)
    except ConfigurationError as error:
        # Said at the end of a training whose merged model is whole: no reason to lose that.
        logger.warning("no adapter is written: %s", error)
        return f"none; {error.what}"
    if not written:
        return "none; no module trained by LoRA"
    _copy_files(tokenizer_folder, folder)
    return "in the folder adapter/ beside this one, in PEFT's format"


def _copy_files(source: str, folder: str) -> None:
    os.makedirs(folder, exist_ok=True)
    for file in sorted(Path(source).iterdir()):
        if file.is_file():
            (Path(folder) / file.name).write_bytes(file.read_bytes())


def _write_card(model: PreTrainedModel, scratch: str, card: Card, told: str) -> None:
    text = model.config.get_text_config()
    architecture: dict[str, Any] = {
        "Architecture": f"{type(model).__name__} ({model.config.model_type}), {text.num_hidden_layers} layers, hidden "
        f"size {text.hidden_size}, vocabulary {text.vocab_size}"
    }
    merged = {**architecture, "Weights": f"{model.dtype}".removeprefix("torch.")}
    (Path(scratch) / EXPORT / README).write_text(readme(card, architecture=merged, adapter=told), encoding="utf-8")
    write_json(join(scratch, EXPORT, PROVENANCE), provenance_content(card.provenance))
    if os.path.isdir(join(scratch, ADAPTER)):
        alone = {**architecture, "Weights": "float32"}
        content = readme(card, architecture=alone, adapter="this folder, in PEFT's format", is_adapter=True)
        (Path(scratch) / ADAPTER / README).write_text(content, encoding="utf-8")
        write_json(join(scratch, ADAPTER, PROVENANCE), provenance_content(card.provenance))


def _check(model: PreTrainedModel, folder: str, dtype: torch.dtype, probe: torch.Tensor) -> None:
    import torch

    reloaded = load_weights(folder, where=folder, dtype=dtype).eval()
    ours, theirs = model.state_dict(), reloaded.state_dict()
    if different := [name for name in {**ours, **theirs} if not _equal(ours.get(name), theirs.get(name))]:
        raise RuntimeError(f"the export read back has {len(different)} other weights, the first is {different[0]}")
    model.set_attn_implementation(reloaded.config._attn_implementation)
    with torch.no_grad():
        trained, read = (net(input_ids=probe, use_cache=False).logits for net in (model, reloaded))
    if not torch.equal(trained, read):
        difference = (trained.float() - read.float()).abs().max().item()
        raise RuntimeError(f"the export read back differs from the trained model: logits by up to {difference:.3g}")


def _equal(ours: torch.Tensor | None, theirs: torch.Tensor | None) -> bool:
    import torch

    return ours is not None and theirs is not None and torch.equal(ours, theirs)


@contextmanager
def _scratch(folder: str) -> Iterator[str]:
    """A local folder to write to: on the file system of `folder` where that is local, so that a rename publishes."""
    filesystem, path = url_to_fs(folder)
    local = "file" in filesystem.protocol
    if local:
        for left in Path(path).glob(".export-*"):  # of an attempt that was killed
            shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=path if local else None, prefix=".export-") as scratch:
        yield scratch


@contextmanager
def _told_where(folder: str) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ResourceError(
            f"the trained model could not be written: {error}",
            where=folder,
            fix="make space or mend the access there, and run the same command again: the stage goes on from its "
            "newest checkpoint and exports at once",
        ) from error


def _publish(written: str, target: str, *, last: str) -> None:
    filesystem, path = url_to_fs(target)
    if "file" in filesystem.protocol:
        os.rename(written, path)
        return
    for name in sorted(os.listdir(written), key=lambda name: (name == last, name)):
        filesystem.put_file(join(written, name), join(path, name))
