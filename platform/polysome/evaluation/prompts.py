"""Prompts: a task's question in, the conversation that a kind of system is asked with out (A-70..74, A-131..133)."""

from polysome.data.render import messages
from polysome.evaluation.config import Style
from polysome.inference.engine import Conversation
from polysome.specs import Prompt, Task

TASK_TYPES = {
    "binary": "binary classification",
    "multiclass": "multi-class classification",
    "multilabel": "multi-label classification",
    "regression": "regression",
    "multi_regression": "regression",
    "generation": "text generation",
}
"""What `{task_type}` stands for, by kind of label."""

CLOSED_LLM_SYSTEM_PROMPT = """\
You are an expert assistant in biology who answers questions about sequences of DNA, RNA and proteins. Think of the \
molecule first, then give the answer at once, as a JSON object with the one key "answer", for example {"answer": "Yes"}.
Rules:
1. Binary classification: the answer is "Yes" or "No".
2. Multi-class and multi-label classification: the answer is the label, or the labels separated by commas.
3. Regression: the answer is a number, or a range of numbers.
4. Text generation: the answer is the text."""
"""In our words, to the outline of A-132: the preamble, the JSON answer and the three rules; the fourth is ours."""


def conversation(style: Style, prompt: Prompt, task: Task, question: str) -> Conversation:
    """What a system is asked.

    Args:
        style: `open_llm` is A-131 word for word, with no system prompt; `closed_llm` is A-132, whose
            answers are JSON. Both carry the task's hint (A-133).
        prompt: system prompt of `chat`; the other styles bring their own.
        question: the rendered question with the molecules in it.
    """
    task_type, hint = TASK_TYPES[task.label.kind], task.hint.rstrip(".")
    if style == "open_llm":
        text = f"My question is {question} This is a {task_type} task. {hint}. Do not explain or repeat."
        return messages("none", text)
    if style == "closed_llm":
        text = (
            f'Answer the question: "{question}". Task type: {task_type}. For a better understanding of the task, hint: '
            f"{hint}."
        )
        return [{"role": "system", "content": CLOSED_LLM_SYSTEM_PROMPT}, {"role": "user", "content": text}]
    return messages(prompt, question)
