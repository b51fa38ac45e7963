"""Prompts as token ids, and token ids as the pieces of text that they add."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from polysome.config import DataError
from polysome.inference.engine import Prompt

_SPELT_BEHIND = 8
"""Tokens before one that decide how it is spelt: a blank, or the other bytes of a character."""


def encode(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of a prompt: a conversation up to where the answer begins, a text as the tokenizer reads a document,
    ids as they are.

    Raises:
        DataError: the chat template cannot render the conversation; an id is none of the vocabulary.
    """
    from jinja2 import TemplateError

    if isinstance(prompt, str):
        return list(tokenizer.encode(prompt))
    if isinstance(prompt, tuple):
        size = len(tokenizer)  # Counted anew at every call: once, not for each id.
        if not all(0 <= token < size for token in prompt):
            raise DataError(f"a token id is none of the vocabulary's {size}", fix="use the tokenizer of this model")
        return list(prompt)
    if not prompt:
        raise DataError("the conversation is empty", fix="give it a message of the user")
    try:
        text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    except (TemplateError, TypeError, KeyError) as error:
        raise DataError(
            f"the chat template cannot render this conversation: {error}",
            where=f"roles {[message.get('role') for message in prompt]}",
            fix="use the roles that the model's chat template knows, each with text content",
        ) from error
    return list(tokenizer.encode(text, add_special_tokens=False))


def spelt(tokenizer: Any, ids: Sequence[int]) -> Iterator[str]:
    """The text that each token adds to those before it."""
    for index, token in enumerate(ids):
        before = ids[max(0, index - _SPELT_BEHIND) : index]
        known = tokenizer.decode(before)
        yield tokenizer.decode([*before, token])[len(known) :]
