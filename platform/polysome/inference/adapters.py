"""Adapters: PEFT folders put on a loaded model by name, switched while it answers, and mixed within one batch."""

from collections.abc import Sequence
from typing import Any

import torch

from polysome.config import ConfigurationError
from polysome.models.adapter import check_base
from polysome.storage.local import local_folder


class Adapters:
    """The adapters of one model, which answers without any until `activate` names one.

    Args:
        model: a transformers model; its layers are wrapped in place when the first adapter comes.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._peft: Any = None
        self.active: str | None = None
        """Answers where a call does not say which."""
        self._applied: str | None = None
        self._mixes: dict[str, bool] = {}

    @property
    def names(self) -> list[str]:
        """Of the adapters that are loaded."""
        return [] if self._peft is None else list(self._peft.peft_config)

    def load(self, url: str, name: str) -> None:
        """Load the adapter of a folder (path or fsspec URL); which one is active does not change.

        Nothing is touched before `check_base` has passed.

        Raises:
            DataError: the folder holds no adapter with safetensors weights.
            ConfigurationError: the name is taken, or the adapter does not belong to the model.
        """
        from peft import PeftConfig, PeftModel

        if name in self.names:
            raise ConfigurationError(f"there is an adapter {name!r} already", where=url, fix="give it another name")
        check_base(self._model, url)
        folder = local_folder(url)
        config = PeftConfig.from_pretrained(folder)
        config.inference_mode = True
        device = str(self._model.get_input_embeddings().weight.device)
        if self._peft is None:
            self._peft = PeftModel(self._model, config, adapter_name=name)
        self._peft.load_adapter(folder, name, torch_device=device)
        self._peft.eval()
        self._mixes.clear()
        self._apply(self.active, anew=True)

    def unload(self, name: str) -> None:
        """Free an adapter's weights.

        Raises:
            ConfigurationError: it is not loaded, or answers.
        """
        self.require(name)
        if name == self.active:
            raise ConfigurationError(f"adapter {name!r} answers", where="adapter", fix="activate another one first")
        others = [other for other in self.names if other != name]
        if others:
            # PEFT deletes a module's copies only while another adapter's are in use.
            self._apply(others[0], anew=True)
        self._peft.delete_adapter(name)
        if others:
            self._apply(self.active, anew=True)
        else:
            # Without one, PEFT's layers take no further one.
            self._peft.base_model.unload()
            self._peft = self._applied = None
        self._mixes.clear()

    def activate(self, name: str | None) -> None:
        """Answer with one adapter from now on, or without any.

        Raises:
            ConfigurationError: no such adapter is loaded.
        """
        if name is not None:
            self.require(name)
        self.active = name
        self._apply(name)

    def call(self, names: Sequence[str | None] | None, inputs: dict[str, Any]) -> Any:
        """The model's output for a batch whose rows have adapters of their own; None: the active one has all rows.

        Raises:
            ConfigurationError: no such adapter is loaded.
        """
        distinct = {self.active} if names is None else set(names)
        for name in distinct - {None}:
            assert name is not None
            self.require(name)
        if len(distinct) == 1:
            (name,) = distinct
            self._apply(name)
            return self._model(**inputs)
        assert names is not None
        first = next(name for name in names if name is not None)
        self._apply(first)
        return self._peft(**inputs, adapter_names=[name or "__base__" for name in names])

    def mixes(self, name: str) -> bool:
        """Whether an adapter can share a batch with others: tried once, as not every kind of layer can."""
        if name not in self._mixes:
            others = [None, *(other for other in self.names if other != name)]
            self._mixes[name] = all(self._tried(*pair) for other in others for pair in ((name, other), (other, name)))
        return self._mixes[name]

    @torch.inference_mode()
    def _tried(self, first: str | None, second: str | None) -> bool:
        device = self._model.get_input_embeddings().weight.device
        ids = torch.tensor([[0, 1, 2], [0, 1, 2]], device=device)

        def logits(names: list[str | None]) -> torch.Tensor:
            found: torch.Tensor = self.call(names, {"input_ids": ids, "use_cache": False}).logits.float()
            return found

        apart = torch.stack([logits([first, first])[0], logits([second, second])[0]])
        try:
            together = logits([first, second])
        except (ValueError, TypeError, NotImplementedError, KeyError):
            # PEFT leaves what it hung on its layers for the pass that failed.
            for module in self._model.modules():
                module._forward_pre_hooks.clear()
                module._forward_pre_hooks_with_kwargs.clear()
            return False
        return bool((together - apart).abs().max() <= 1e-2 * apart.abs().max())

    def require(self, name: str) -> None:
        """Raise ConfigurationError unless the adapter is loaded."""
        if name not in self.names:
            raise ConfigurationError(
                f"no adapter {name!r} is loaded",
                where="adapter",
                fix=f"load it, or choose of: {', '.join(self.names)}",
            )

    def _apply(self, name: str | None, *, anew: bool = False) -> None:
        """Make the layers answer with one adapter, or without any."""
        if self._peft is None or (name == self._applied and not anew):
            return
        self._applied = name
        if name is None:
            self._peft.base_model.disable_adapter_layers()
        else:
            self._peft.base_model.enable_adapter_layers()
            self._peft.set_adapter(name, inference_mode=True)
