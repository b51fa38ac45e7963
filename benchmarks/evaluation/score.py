"""Scoring thirteen choices: one forward pass with a token trie beside thirteen forward passes of their own.

    python benchmarks/evaluation/score.py [--quick]

A small random Llama scores the thirteen classes of `ncrna_family`, each in the task's first wording, for questions on
RNA of real lengths. Contenders: a forward pass per choice; the thirteen as one padded batch, the prompt computed
thirteen times; `BatchEngine.score` question by question; and of all questions at once. All must give the same numbers.
Every contender renders and tokenizes a question once. Writes `benchmarks/evaluation/results/score.json`.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import subject
import torch
from rich.console import Console
from rich.table import Table

from polysome.inference.batch import BatchEngine
from polysome.inference.engine import Conversation
from polysome.storage import write_json

RESULT = subject.RESULTS / "score.json"
WANTED = 4.0
TOLERANCE = 1e-4
QUESTIONS, ROUNDS = 48, 5
QUICK_QUESTIONS, QUICK_ROUNDS = 4, 1
SEPARATE, PADDED, ALONE, TOGETHER = (
    "a forward pass per choice",
    "thirteen rows, one padded batch",
    "trie, one question at a time",
    "trie, all questions at once",
)


def main() -> int:
    """Measure, print, write; 1 where less is reached than wanted."""
    options = parsed()
    count, rounds = (QUICK_QUESTIONS, QUICK_ROUNDS) if options.quick else (QUESTIONS, ROUNDS)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        model, tokenizer = subject.build(Path(folder))
    engine = BatchEngine.of(model, tokenizer)
    chats, choices = subject.questions(count), subject.answers()
    encoded = [tokenizer.encode(choice, add_special_tokens=False) for choice in choices]
    contenders: dict[str, Callable[[], list[Any]]] = {
        SEPARATE: lambda: [separate(model, prompt(tokenizer, chat), encoded) for chat in chats],
        PADDED: lambda: [padded(model, prompt(tokenizer, chat), encoded) for chat in chats],
        ALONE: lambda: [engine.score([chat], choices)[0].sums for chat in chats],
        TOGETHER: lambda: [scores.sums for scores in engine.score(chats, choices)],
    }
    engine.score(chats[:1], choices)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    found = {}
    for turn in range(rounds):
        for name in list(contenders) if turn % 2 == 0 else reversed(contenders):
            started = time.process_time()
            found[name] = np.array(contenders[name]())
            seconds[name].append(time.process_time() - started)
    off = {name: float(np.abs(values - found[SEPARATE]).max()) for name, values in found.items()}
    assert max(off.values()) <= TOLERANCE, f"the contenders disagree: {off}"
    ratios = {name: min(seconds[SEPARATE]) / min(values) for name, values in seconds.items()}
    results = [
        {
            "contender": name,
            "seconds_per_question": round(min(values) / count, 5),
            "seconds_of_rounds": [round(value, 3) for value in values],
            "times_as_fast": round(ratios[name], 2),
            "largest_difference": float(f"{off[name]:.2g}"),
        }
        for name, values in seconds.items()
    ]
    lengths = [len(prompt(tokenizer, chat)) for chat in chats]
    content = {
        "benchmark": "score of thirteen choices",
        "command": " ".join(["python", "benchmarks/evaluation/score.py", *sys.argv[1:]]),
        **subject.described(),
        "questions": count,
        "prompt_tokens": {"least": min(lengths), "median": float(np.median(lengths)), "most": max(lengths)},
        "choice_tokens": [len(choice) for choice in encoded],
        "trie_positions": trie_positions(encoded),
        "wanted": f"{ALONE} ≥ {WANTED:g} times as fast as {SEPARATE}",
        "results": results,
    }
    show(results, f"{count} questions, {np.median(lengths):.0f} prompt tokens in the median, {len(choices)} choices")
    if options.quick:
        return 0
    write_json(str(RESULT), content)
    print(f"written: {RESULT}")
    return int(ratios[ALONE] < WANTED)


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_QUESTIONS} questions, one round, no result file")
    return parser.parse_args()


def prompt(tokenizer: Any, chat: Conversation) -> list[int]:
    """Token ids of a question, up to where the answer begins."""
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    return list(tokenizer.encode(text, add_special_tokens=False))


@torch.inference_mode()
def separate(model: Any, question: list[int], choices: list[list[int]]) -> list[float]:
    """Log-likelihoods from a forward pass per choice."""
    sums = []
    for choice in choices:
        input_ids = torch.tensor([question + choice[:-1]])
        logits = model(input_ids=input_ids, use_cache=False, logits_to_keep=len(choice)).logits[0]
        targets = torch.tensor(choice)[:, None]
        sums.append(torch.log_softmax(logits, dim=-1).gather(-1, targets).double().sum().item())
    return sums


@torch.inference_mode()
def padded(model: Any, question: list[int], choices: list[list[int]]) -> list[float]:
    """Log-likelihoods from one batch with the question in every row; filled up on the right, where nothing sees it."""
    longest = max(map(len, choices))
    rows = [question + choice[:-1] + [0] * (longest - len(choice)) for choice in choices]
    logits = model(input_ids=torch.tensor(rows), use_cache=False, logits_to_keep=longest).logits
    likelihoods = torch.log_softmax(logits, dim=-1)
    return [
        row[torch.arange(len(choice)), torch.tensor(choice)].double().sum().item()
        for row, choice in zip(likelihoods, choices, strict=True)
    ]


def trie_positions(choices: list[list[int]]) -> int:
    """Positions after the prompt that the trie takes, where the choices by themselves take the sum of their lengths."""
    return len({tuple(choice[:size]) for choice in choices for size in range(1, len(choice))})


def show(results: list[dict[str, Any]], title: str) -> None:
    """The results as a table."""
    table = Table("contender", title=title)
    for column in ("s/question", "times as fast", "largest difference"):
        table.add_column(column, justify="right")
    for item in results:
        table.add_row(
            item["contender"],
            f"{item['seconds_per_question']:.4f}",
            f"{item['times_as_fast']:.2f}",
            f"{item['largest_difference']:.1e}",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    sys.exit(main())
