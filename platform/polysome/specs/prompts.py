"""The system prompts of the paper (A-70, A-71) and of its authors' code (AMB-28), by the name a recipe uses."""

from typing import Literal

Prompt = Literal["concise", "concise_reference", "reasoning", "none"]
"""`concise_reference` is the wording of the authors' training code; the others are those of the paper."""

CONCISE_SYSTEM_PROMPT = (
    "You are a knowledgeable and helpful biology assistant. Please answer my biology sequence-related questions "
    "clearly and concisely. For regression tasks, please return a number."
)
CONCISE_REFERENCE_SYSTEM_PROMPT = (
    "You are a knowledgeable and helpful biology assistant. Please answer my biology sequence-related questions "
    "in a clear and concise manner. For regression task, please return a number."
)
REASONING_SYSTEM_PROMPT = (
    "You are a highly knowledgeable AI assistant specializing in biology, particularly in sequence-related topics. "
    "Your primary task is to provide clear, accurate, and comprehensive answers to biology questions. When analyzing "
    "and interpreting sequences, ensure to provide step-by-step explanations to make your responses natural and easy "
    "to understand. Engage with the user by asking clarifying questions if needed and offer detailed insights into "
    "the biological sequences."
)


def system_prompt(prompt: Prompt) -> str | None:
    """The wording of `prompt`; None for `none`."""
    return {
        "concise": CONCISE_SYSTEM_PROMPT,
        "concise_reference": CONCISE_REFERENCE_SYSTEM_PROMPT,
        "reasoning": REASONING_SYSTEM_PROMPT,
        "none": None,
    }[prompt]
