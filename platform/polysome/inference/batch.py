"""The batch engine: static batches on transformers, the reference for what a model answers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Literal

import numpy as np
import torch

from polysome.config import ConfigurationError, DataError, ResourceError
from polysome.inference.engine import Conversation, Generation
from polysome.inference.folder import require_model_folder
from polysome.models.backbone import load_weights
from polysome.storage.local import local_folder


@dataclass
class _Row:
    """One conversation on its way through a batch."""

    prompt: list[int]
    limit: int
    """Most tokens to generate."""
    draws: np.random.Generator | None
    answer: list[int] = field(default_factory=list)
    stopped: bool = False

    @property
    def done(self) -> bool:
        return self.stopped or len(self.answer) >= self.limit


class BatchEngine:
    """An Engine for one Hugging Face folder: safetensors only, no remote code, the dtype that the weights are saved in.

    Conversations are sorted by length, cut into left-padded batches of a token budget, and decoded together; rows that
    ended leave the batch as soon as half of it has. Greedy answers equal those of `model.generate` one by one.

    Args:
        path: model folder, local or any fsspec URL.
        max_batch_tokens: most positions (prompt and answer, padding included) of one batch; one row always fits.
        threads: torch threads. Set to the CPUs that the process owns: more slow every forward down.
        device: `cpu`, `cuda`, `cuda:1`, …

    Raises:
        DataError: the folder is no model folder, its weights are not whole, or tokenizer and weights do not fit each
            other.
    """

    def __init__(self, path: str, *, max_batch_tokens: int = 16384, threads: int = 1, device: str = "cpu") -> None:
        from transformers import AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        if max_batch_tokens < 1 or threads < 1:
            raise ConfigurationError(
                f"max_batch_tokens ({max_batch_tokens}) and threads ({threads}) must be at least 1", fix="raise them"
            )
        require_model_folder(path)
        folder = local_folder(path)
        torch.set_num_threads(threads)
        # Engines load in workers, where a progress bar only clutters the log.
        disable_progress_bar()
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        model: Any = load_weights(folder, where=path, dtype="auto", local_files_only=True)
        self._take(model.to(device).eval(), tokenizer, max_batch_tokens, where=path)

    @classmethod
    def of(cls, model: Any, tokenizer: Any, *, max_batch_tokens: int = 16384) -> "BatchEngine":
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
        self._model, self._tokenizer = model, tokenizer
        embedding = model.get_input_embeddings().weight
        self._device = embedding.device
        self._max_batch_tokens = max_batch_tokens
        text_config = model.config.get_text_config()
        self.context = int(getattr(text_config, "max_position_embeddings", 0) or tokenizer.model_max_length)
        """Most tokens of prompt and answer together."""
        if len(tokenizer) > embedding.shape[0]:
            raise DataError(
                f"the tokenizer knows {len(tokenizer)} tokens, the weights {embedding.shape[0]}",
                where=where,
                fix="use the tokenizer that the model was trained with",
            )
        self._stop = _stop_tokens(model, tokenizer)
        pad = tokenizer.pad_token_id
        self._pad = int(pad) if pad is not None else min(self._stop, default=0)
        accepted = signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._takes_logits_to_keep = "logits_to_keep" in accepted

    def generate(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> list[Generation]:
        """See `Engine.generate`."""
        if max_new_tokens < 1 or not 0 <= temperature < float("inf") or not 0 < top_p <= 1:
            raise ConfigurationError(
                f"cannot generate with max_new_tokens={max_new_tokens}, temperature={temperature}, top_p={top_p}",
                fix="max_new_tokens is at least 1, temperature at least 0, top_p above 0 and at most 1",
            )
        entropy = np.random.SeedSequence(seed).entropy if temperature > 0 else None
        rows = []
        for index, conversation in enumerate(conversations):
            prompt = self._encode_prompt(conversation)
            room = self.context - len(prompt)
            if room < 1:
                raise DataError(
                    f"the prompt has {len(prompt)} tokens, the model's context is {self.context} "
                    "and must hold at least one token of an answer",
                    where=f"conversation {index}",
                    fix="shorten the sequence or the question, or use a model with a longer context",
                )
            draws = np.random.default_rng([entropy, index]) if entropy is not None else None
            rows.append(_Row(prompt, min(max_new_tokens, room), draws))
        for batch in self._batches(rows):
            self._decode(batch, temperature, top_p)
        return [self._generation(row) for row in rows]

    def score(self, conversation: Conversation, choices: Sequence[str]) -> list[float]:
        """See `Engine.score`. Prompt and choice are tokenized apart, as the turn start is a special token."""
        if not choices or not all(choices):
            raise DataError(
                f"choices must be one or more texts that are not empty, got {list(choices)}", fix="fill them"
            )
        prompt = self._encode_prompt(conversation)
        encoded = [self._tokenizer.encode(choice, add_special_tokens=False) for choice in choices]
        longest = max(len(choice) for choice in encoded)
        if len(prompt) + longest > self.context:
            raise DataError(
                f"the prompt has {len(prompt)} tokens and the longest choice {longest}, the model's context is "
                f"{self.context}",
                fix="shorten the sequence, the question or the choices, or use a model with a longer context",
            )
        rows_per_batch = max(1, self._max_batch_tokens // (len(prompt) + longest))
        scores: list[float] = []
        for start in range(0, len(encoded), rows_per_batch):
            scores += self._score_batch(prompt, encoded[start : start + rows_per_batch])
        return scores

    def health(self) -> None:
        """See `Engine.health`."""
        try:
            prompt = [min(self._stop, default=self._pad)]
            logits = self._forward(*self._padded([prompt]), cache=None, keep=1)[0]
        except RuntimeError as error:
            raise ResourceError(
                f"the model cannot run: {error}", where=str(self._device), fix="free memory or restart the process"
            ) from error
        if not bool(torch.isfinite(logits).all()):
            raise ResourceError(
                "the model's output is not finite",
                where=str(self._device),
                fix="check the weights; restart the process",
            )

    def _encode_prompt(self, conversation: Conversation) -> list[int]:
        from jinja2 import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        except (TemplateError, TypeError, KeyError) as error:
            raise DataError(
                f"the chat template cannot render this conversation: {error}",
                where=f"roles {[message.get('role') for message in conversation]}",
                fix="use the roles that the model's chat template knows, each with text content",
            ) from error
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _batches(self, rows: list[_Row]) -> list[list[_Row]]:
        """Longest first, so that memory peaks at the start; each batch within the token budget."""
        batches: list[list[_Row]] = []
        longest = 0
        for row in sorted(rows, key=lambda row: len(row.prompt) + row.limit, reverse=True):
            if batches and (len(batches[-1]) + 1) * longest <= self._max_batch_tokens:
                batches[-1].append(row)
            else:
                batches.append([row])
                longest = len(row.prompt) + row.limit
        return batches

    @torch.inference_mode()
    def _decode(self, rows: list[_Row], temperature: float, top_p: float) -> None:
        """Fill the rows' answers: prefill once, then one token per row and step until every row is done."""
        input_ids, mask = self._padded([row.prompt for row in rows])
        cache: Any = None
        while True:
            logits, cache = self._forward(input_ids, mask, cache=cache, keep=1)
            last = logits[:, -1].float()
            if temperature == 0:
                tokens = last.argmax(dim=-1)
            else:
                uniform = np.array([row.draws.random() if row.draws else 0.0 for row in rows])
                tokens = _sample(last / temperature, top_p, torch.from_numpy(uniform).to(self._device))
            for row, token in zip(rows, tokens.tolist(), strict=True):
                if not row.done:
                    row.answer.append(token)
                    row.stopped = token in self._stop
            open_rows = [index for index, row in enumerate(rows) if not row.done]
            if not open_rows:
                return
            if 2 * len(open_rows) <= len(rows):
                kept = torch.tensor(open_rows, device=self._device)
                cache.batch_select_indices(kept)
                tokens, mask = tokens[kept], mask[kept]
                rows = [rows[index] for index in open_rows]
            input_ids = tokens[:, None]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)

    @torch.inference_mode()
    def _score_batch(self, prompt: list[int], choices: list[list[int]]) -> list[float]:
        longest = max(len(choice) for choice in choices)
        input_ids, mask = self._padded([prompt + choice for choice in choices])
        logits, _ = self._forward(input_ids, mask, cache=None, keep=longest + 1)
        # Left padding aligns the choices' ends; the logits at position t predict token t + 1.
        likelihoods = torch.log_softmax(logits[:, :-1].float(), dim=-1)
        targets = input_ids[:, -longest:]
        per_token = likelihoods.gather(-1, targets[:, :, None])[:, :, 0].double().cpu()
        return [float(row[longest - len(choice) :].sum()) for row, choice in zip(per_token, choices, strict=True)]

    def _padded(self, sequences: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """`input_ids` and attention mask, int64 [rows, longest], padded on the left."""
        longest = max(len(sequence) for sequence in sequences)
        input_ids = np.full((len(sequences), longest), self._pad, dtype=np.int64)
        mask = np.zeros((len(sequences), longest), dtype=np.int64)
        for index, sequence in enumerate(sequences):
            input_ids[index, longest - len(sequence) :] = sequence
            mask[index, longest - len(sequence) :] = 1
        return torch.from_numpy(input_ids).to(self._device), torch.from_numpy(mask).to(self._device)

    @torch.inference_mode()
    def _forward(
        self, input_ids: torch.Tensor, mask: torch.Tensor, *, cache: Any, keep: int
    ) -> tuple[torch.Tensor, Any]:
        """Logits [rows, keep, vocabulary] of the last `keep` positions, and the cache grown by `input_ids`."""
        options: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
        if self._takes_positions:
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
            options["position_ids"] = positions[:, -input_ids.shape[1] :]
        if self._takes_logits_to_keep:
            options["logits_to_keep"] = keep
        output = self._model(input_ids=input_ids, attention_mask=mask, **options)
        return output.logits[:, -keep:], output.past_key_values

    def _generation(self, row: _Row) -> Generation:
        text = str(self._tokenizer.decode(row.answer, skip_special_tokens=True))
        reason: Literal["stop", "length"] = "stop" if row.stopped else "length"
        return Generation(text, len(row.prompt), len(row.answer), reason)


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


def _sample(logits: torch.Tensor, top_p: float, uniform: torch.Tensor) -> torch.Tensor:
    """One token per row by inversion: logits [rows, vocabulary], float64 uniform [rows] in [0, 1) -> int64 [rows]."""
    probabilities, order = torch.softmax(logits.double(), dim=-1).sort(dim=-1, descending=True, stable=True)
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    cumulative = probabilities.cumsum(dim=-1)
    chosen = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    # Rounding may carry a draw just below 1 past the last token that is allowed.
    last_allowed = (probabilities > 0).sum(dim=-1, keepdim=True) - 1
    return order.gather(-1, chosen.minimum(last_allowed))[:, 0]
