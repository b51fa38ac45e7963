"""The batch engine: static batches on transformers, the reference for what a model answers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import numpy as np
import torch

from polysome.config import ConfigurationError, DataError, ResourceError
from polysome.data.tokenizer_files import load_tokenizer
from polysome.inference import prompts
from polysome.inference.adapters import Adapters
from polysome.inference.asynchronous import Traced
from polysome.inference.decoding import Decoder, Row
from polysome.inference.engine import Embeddings, Generation, Pool, Prompt, Sampling, Scores, check_choices
from polysome.inference.folder import require_adapter_folder, require_model_folder
from polysome.inference.forward import Forward, batches
from polysome.inference.scoring import Scorer
from polysome.inference.text import Pieces, cut
from polysome.models import vocabulary
from polysome.models.backbone import load_weights
from polysome.storage.local import local_folder

ADAPTER = "default"
"""Name of the adapter that an engine is opened with."""

_TRACED_AT_ONCE = 256


class BatchEngine:
    """An Engine for one Hugging Face folder: safetensors only, no remote code, the dtype that the weights are saved in.

    Conversations are sorted by length, cut into left-padded batches of a token budget, and decoded together: prompts of
    like lengths are read together first, and rows that ended leave the batch. Greedy answers
    equal those of `model.generate` one by one. A `score` computes the prompt once, and once what choices have in common
    (`polysome.inference.trie`), where the architecture allows it: few choices in one forward pass, many in parts. A
    batch that the device has no memory for is halved; a question that does not fit by itself is a DataError.

    Args:
        path: model folder, local or any fsspec URL.
        adapter: folder of a PEFT adapter, which answers from the start; where it brings a tokenizer, that is used.
        max_batch_tokens: most positions (prompt and answer, padding included) of one batch; one row always fits.
        threads: torch threads. Set to the CPUs that the process owns: more slow every forward down.
        device: `cpu`, `cuda`, `cuda:1`, …

    Raises:
        DataError: the folder is no model folder, its weights are not whole, or tokenizer and weights do not fit each
            other.
        ConfigurationError: the adapter does not belong to the model: other shapes, or a base of other weights.
    """

    def __init__(
        self,
        path: str,
        *,
        adapter: str | None = None,
        max_batch_tokens: int = 16384,
        threads: int = 1,
        device: str = "cpu",
    ) -> None:
        from transformers.utils.logging import disable_progress_bar

        if max_batch_tokens < 1 or threads < 1:
            raise ConfigurationError(
                f"max_batch_tokens ({max_batch_tokens}) and threads ({threads}) must be at least 1", fix="raise them"
            )
        brings_tokenizer = adapter is not None and require_adapter_folder(adapter)
        require_model_folder(path, tokenizer=not brings_tokenizer)
        folder = local_folder(path)
        torch.set_num_threads(threads)
        # Engines load in workers, where a progress bar only clutters the log.
        disable_progress_bar()
        words = local_folder(adapter) if adapter is not None and brings_tokenizer else folder
        # As in training: AutoTokenizer adds tokens of its own to what tokenizer.json holds, for some model types.
        tokenizer = load_tokenizer(words)
        model: Any = load_weights(folder, where=path, dtype="auto", local_files_only=True)
        if brings_tokenizer and (added := vocabulary.new_rows(tokenizer, folder)):
            vocabulary.grow(model, added)
        self._take(model.to(device).eval(), tokenizer, max_batch_tokens, where=path)
        if adapter is not None:
            self.load_adapter(adapter, name=ADAPTER)
            self._adapters.activate(ADAPTER)

    @classmethod
    def of(cls, model: Any, tokenizer: Any, *, max_batch_tokens: int = 16384) -> BatchEngine:
        """An engine for a model in memory, where and as it is; use it inside `asking(model)` when the model trains.

        Args:
            model: a transformers causal language model.
            tokenizer: the tokenizer that it reads, with a chat template.
            max_batch_tokens: as for a folder.

        Raises:
            DataError: the tokenizer knows more tokens than the model.
        """
        engine = cls.__new__(cls)
        engine._take(model, tokenizer, max_batch_tokens, where="the model in memory")
        return engine

    def _take(self, model: Any, tokenizer: Any, max_batch_tokens: int, *, where: str) -> None:
        self._tokenizer = tokenizer
        self.max_batch_tokens = max_batch_tokens
        text_config = model.config.get_text_config()
        self.context = int(getattr(text_config, "max_position_embeddings", 0) or tokenizer.model_max_length)
        """Most tokens of prompt and answer together."""
        rows = model.get_input_embeddings().weight.shape[0]
        if len(tokenizer) > rows:
            raise DataError(
                f"the tokenizer knows {len(tokenizer)} tokens, the weights {rows}",
                where=where,
                fix="use the tokenizer that the model was trained with",
            )
        stop_tokens = _stop_tokens(model, tokenizer)
        pad = tokenizer.pad_token_id
        self._adapters = Adapters(model)
        self._forward = Forward(model, int(pad) if pad is not None else min(stop_tokens, default=0), self._adapters)
        self._decoder = Decoder(self._forward, tokenizer, stop_tokens)
        self._scorer = Scorer(self._forward, self.context, max_batch_tokens)

    @property
    def decoder(self) -> Decoder:
        """What fills rows' answers."""
        return self._decoder

    @property
    def adapters(self) -> Adapters:
        """Those that are loaded."""
        return self._adapters

    def load_adapter(self, folder: str, *, name: str) -> None:
        """Load a PEFT adapter beside others; it answers inside `using(name)`. It must read the engine's tokenizer.

        Raises:
            DataError: the folder holds no adapter with safetensors weights.
            ConfigurationError: the name is taken, or the adapter does not belong to the model.
        """
        self._adapters.load(folder, name)

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[BatchEngine]:
        """While inside, the engine answers with another adapter; None: with the base alone.

        Raises:
            ConfigurationError: no such adapter is loaded.
        """
        before = self._adapters.active
        self._adapters.activate(adapter)
        try:
            yield self
        finally:
            self._adapters.activate(before)

    def generate(
        self,
        conversations: Sequence[Prompt],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | Sequence[int] | None = None,
        stop: Sequence[str] = (),
    ) -> list[Generation]:
        """See `Engine.generate`."""
        sampling = Sampling.of(max_new_tokens, temperature, top_p, seed, stop)
        fresh = np.random.SeedSequence().generate_state(4).tolist()
        rows = [
            self.row(conversation, sampling, index, fresh=fresh) for index, conversation in enumerate(conversations)
        ]

        def answer(batch: list[int]) -> None:
            # Copies, as memory may run out when half of an answer is there.
            tried = copy.deepcopy([rows[index] for index in batch])
            for _ in self._decoder.steps(tried):
                pass
            for index, row in zip(batch, tried, strict=True):
                rows[index] = row

        self._forward.run(self._decoder.batches(rows, self.max_batch_tokens), answer)
        return [self.generation(row) for row in rows]

    def stream(
        self,
        conversation: Prompt,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """See `Engine.stream`."""
        sampling = Sampling.of(max_new_tokens, temperature, top_p, seed, stop)
        row = self.row(conversation, sampling)

        def pieces() -> Iterator[str]:
            told = Pieces(sampling.stop)
            try:
                for _ in self._decoder.steps([row]):
                    if piece := told.push(self._decoder.text(row.answer)):
                        yield piece
            except torch.OutOfMemoryError as error:
                raise self._forward.too_large(error) from error
            if piece := told.finish(self._decoder.text(row.answer)):
                yield piece

        return pieces()

    def score(self, conversations: Sequence[Prompt], choices: Sequence[str]) -> list[Scores]:
        """See `Engine.score`. Prompt and choice are tokenized apart, as the turn start is a special token."""
        check_choices(choices)
        encoded_prompts = [self.encode(conversation) for conversation in conversations]
        encoded = [self._tokenizer.encode(choice, add_special_tokens=False) for choice in choices]
        return self._scorer.score(encoded_prompts, encoded)

    def embed(self, texts: Sequence[Prompt], *, pool: Pool) -> Embeddings:
        """See `Engine.embed`."""
        rows = [self.encode(text) for text in texts]
        for index, row in enumerate(rows):
            if not 1 <= len(row) <= self.context:
                raise DataError(
                    f"the text has {len(row)} tokens; it needs one at least, and the model's context is {self.context}",
                    where=f"text {index}",
                    fix="leave it out, or shorten it",
                )
        found = np.empty((len(rows), self._forward.model.config.get_text_config().hidden_size), dtype=np.float32)
        sizes = [len(row) for row in rows]

        def read(batch: list[int]) -> None:
            input_ids, mask = self._forward.padded([rows[index] for index in batch])
            states = self._forward.hidden(input_ids, mask).float()
            if pool == "mean":
                vectors = (states * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
            else:
                vectors = states[:, -1]
            found[batch] = vectors.cpu().numpy()

        self._forward.run(batches(sizes, budget=self.max_batch_tokens, padding=self._forward.overhead), read)
        return Embeddings(found, tuple(sizes))

    def health(self) -> None:
        """See `Engine.health`."""
        device = str(self._forward.device)
        try:
            logits, _ = self._forward.logits(*self._forward.padded([[0]]), keep=1)
        except RuntimeError as error:
            raise ResourceError(
                f"the model cannot run: {error}", where=device, fix="free memory or restart the process"
            ) from error
        if not bool(torch.isfinite(logits).all()):
            raise ResourceError(
                "the model's output is not finite", where=device, fix="check the weights; restart the process"
            )

    @torch.inference_mode()
    def trace(self, prompt: Prompt, answer: Sequence[int], *, top: int) -> Traced:
        """See `AsyncEngine.trace`."""
        ids = [*self.encode(prompt), *self.encode(tuple(answer))]
        if not 1 <= len(ids) <= self.context:
            raise DataError(
                f"prompt and answer have {len(ids)} tokens; the model's context is {self.context}",
                fix="shorten the prompt, or use a model with a longer context",
            )
        logits, _ = self._forward.logits(*self._forward.padded([ids]), keep=len(ids), use_cache=False)
        logprobs: list[float | None] = [None]
        best: list[tuple[tuple[str, float], ...]] = [()]
        for start in range(0, len(ids) - 1, _TRACED_AT_ONCE):
            targets = torch.tensor(ids[start + 1 : start + 1 + _TRACED_AT_ONCE], device=logits.device)
            likelihoods = torch.log_softmax(logits[0, start : start + len(targets)].float(), dim=-1)
            logprobs += likelihoods.gather(-1, targets[:, None])[:, 0].tolist()
            values, places = likelihoods.topk(min(top, likelihoods.shape[-1]), dim=-1)
            best += [
                tuple((self._tokenizer.decode([token]), value) for token, value in zip(*pair, strict=True))
                for pair in zip(places.tolist(), values.tolist(), strict=True)
            ]
        return Traced(tuple(ids), tuple(prompts.spelt(self._tokenizer, ids)), tuple(logprobs), tuple(best))

    def encode(self, prompt: Prompt) -> list[int]:
        """See `prompts.encode`."""
        return prompts.encode(self._tokenizer, prompt)

    def row(self, prompt: Prompt, sampling: Sampling, index: int = 0, *, fresh: Sequence[int] | None = None) -> Row:
        """A prompt on its way, answered by the active adapter.

        Args:
            prompt: what is answered.
            sampling: how.
            index: of the prompt among those that share `sampling`.
            fresh: entropy of the draws where `sampling` has no seed.

        Raises:
            DataError: the prompt cannot be rendered, is empty, or leaves no room for a token in the context.
        """
        ids = self.encode(prompt)
        room = self.context - len(ids)
        if room < 1 or not ids:
            raise DataError(
                f"the prompt has {len(ids)} tokens, the model's context is {self.context} "
                "and must hold at least one token of prompt and one of an answer",
                where=f"conversation {index}",
                fix="shorten the sequence or the question, or use a model with a longer context",
            )
        draws = None
        if sampling.temperature > 0:
            own = fresh if fresh is not None else np.random.SeedSequence().generate_state(4).tolist()
            draws = np.random.default_rng(sampling.entropy(index) or [*own, index])
        limit = min(sampling.max_new_tokens, room)
        return Row(ids, limit, sampling, draws, adapter=self._adapters.active)

    def generation(self, row: Row) -> Generation:
        """What a row that is done says."""
        text, said_stop = cut(self._decoder.text(row.answer), row.sampling.stop)
        reason: Literal["stop", "length"] = "stop" if row.stopped or said_stop else "length"
        return Generation(text, len(row.prompt), len(row.answer), reason, tuple(row.answer))


@contextmanager
def asking(model: Any, *, attention: str = "sdpa") -> Iterator[None]:
    """While inside, a model that trains answers: no dropout, padded batches instead of packed ones, not compiled.

    Whatever was set before is set again at the end, also after an error: train or eval of every module, and the
    attention. Weights and gradients are not touched.

    Args:
        model: a transformers causal language model.
        attention: a transformers attention that knows padding masks.
    """
    modes = [(module, module.training) for module in model.modules()]
    trained_with = model.config._attn_implementation
    # Every batch has another shape, and each would be compiled anew.
    eager = torch.compiler.set_stance("force_eager") if model._compiled_call_impl is not None else nullcontext()
    model.eval()
    model.set_attn_implementation(attention)
    try:
        with eager:
            yield
    finally:
        model.set_attn_implementation(trained_with)
        for module, training in modes:
            module.training = training


def _stop_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a turn: of the generation config, the model config and the tokenizer."""
    declared: set[int] = set()
    for source in (model.generation_config.eos_token_id, model.config.eos_token_id, tokenizer.eos_token_id):
        declared |= set(source) if isinstance(source, list) else {source} if source is not None else set()
    return frozenset(declared)
