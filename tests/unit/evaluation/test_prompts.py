"""Baselines are asked as the paper asks them, our models as they were trained."""

import pytest

from polysome.config import ConfigurationError, validate
from polysome.evaluation.config import EvaluationConfig
from polysome.evaluation.prompts import conversation
from polysome.specs import CONCISE_SYSTEM_PROMPT, dataset

QUESTION = "<dna>ACGT</dna> Is there a promoter?"


def test_an_open_model_gets_the_papers_words_and_no_system_prompt() -> None:
    task = dataset("planted_promoter").task
    assert task is not None
    assert conversation("open_llm", "concise", task, QUESTION) == [
        {
            "role": "user",
            "content": f"My question is {QUESTION} This is a binary classification task. Return yes or no. Do not "
            "explain or repeat.",
        }
    ]


def test_a_closed_model_is_asked_for_json_with_the_hint() -> None:
    task = dataset("planted_thermostability").task
    assert task is not None
    system, user = conversation("closed_llm", "concise", task, QUESTION)
    assert '{"answer": "Yes"}' in system["content"]
    assert user["content"].startswith(f'Answer the question: "{QUESTION}". Task type: regression.')
    assert user["content"].endswith(f"hint: {task.hint.rstrip('.')}.")


def test_a_chat_has_the_system_prompt_that_the_recipe_names() -> None:
    task = dataset("planted_promoter").task
    assert task is not None
    system, user = conversation("chat", "concise", task, QUESTION)
    assert (system["content"], user["content"]) == (CONCISE_SYSTEM_PROMPT, QUESTION)


def test_two_system_prompts_are_refused() -> None:
    content = {"name": "e", "model": "m", "tasks": ["planted_promoter"], "style": "open_llm", "prompt": "reasoning"}
    with pytest.raises(ConfigurationError, match="brings its own system prompt"):
        validate(EvaluationConfig, content, where="recipe.yaml")
