"""Greedy answers: the batch engine beside `model.generate` one by one, and beside `model.generate` of padded batches.

    python benchmarks/evaluation/generate.py [--quick]

A small random Llama answers questions on RNA of real lengths, in fp32 on one thread. It hardly ever ends a turn, so
every answer has all tokens that it may have. The engine's answers must be those of `model.generate` one by one, letter
for letter. Padded batches take the questions as they come. Writes `benchmarks/evaluation/results/generate.json`.
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
from score import prompt

from polysome.inference.batch import BatchEngine
from polysome.inference.engine import Conversation
from polysome.storage import write_json

RESULT = subject.RESULTS / "generate.json"
WANTED, WANTED_AT = 4.0, 64
"""With the 64 tokens of A-134; shorter answers have more of the prompt in them, which costs either of them the same."""
QUESTIONS, NEW_TOKENS, ROUNDS = 64, (32, 64), 3
QUICK_QUESTIONS, QUICK_NEW_TOKENS, QUICK_ROUNDS = 16, (16,), 1
PADDED_ROWS = 16
ONE_BY_ONE, PADDED, ENGINE = (
    "model.generate, one by one",
    f"model.generate, padded batches of {PADDED_ROWS}",
    "batch engine",
)


def main() -> int:
    """Measure, print, write; 1 where less is reached than wanted."""
    options = parsed()
    count, bounds, rounds = (
        (QUICK_QUESTIONS, QUICK_NEW_TOKENS, QUICK_ROUNDS) if options.quick else (QUESTIONS, NEW_TOKENS, ROUNDS)
    )
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        model, tokenizer = subject.build(Path(folder))
    chats = subject.questions(count)
    lengths = [len(prompt(tokenizer, chat)) for chat in chats]
    results = [result for bound in bounds for result in measured(model, tokenizer, chats, bound, rounds)]
    content = {
        "benchmark": "greedy answers",
        "command": " ".join(["python", "benchmarks/evaluation/generate.py", *sys.argv[1:]]),
        **subject.described(),
        "questions": count,
        "prompt_tokens": {"least": min(lengths), "median": float(np.median(lengths)), "most": max(lengths)},
        "wanted": f"{ENGINE} ≥ {WANTED:g} times as fast as {ONE_BY_ONE}, with {WANTED_AT} new tokens",
        "results": results,
    }
    show(results, f"{count} questions, {np.median(lengths):.0f} prompt tokens in the median")
    if options.quick:
        return 0
    write_json(str(RESULT), content)
    print(f"written: {RESULT}")
    (reached,) = (
        item["times_as_fast"] for item in results if (item["contender"], item["max_new_tokens"]) == (ENGINE, WANTED_AT)
    )
    return int(reached < WANTED)


def measured(model: Any, tokenizer: Any, chats: list[Conversation], bound: int, rounds: int) -> list[dict[str, Any]]:
    """A result for each contender with answers of so many tokens."""
    engine = BatchEngine.of(model, tokenizer)
    prompts = [prompt(tokenizer, chat) for chat in chats]
    contenders: dict[str, Callable[[], list[str]]] = {
        ONE_BY_ONE: lambda: generated(model, tokenizer, prompts, 1, bound),
        PADDED: lambda: generated(model, tokenizer, prompts, PADDED_ROWS, bound),
        ENGINE: lambda: [answer.text for answer in engine.generate(chats, max_new_tokens=bound)],
    }
    generated(model, tokenizer, prompts[:1], 1, 2)
    engine.generate(chats[:1], max_new_tokens=2)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    found: dict[str, list[str]] = {}
    for turn in range(rounds):
        for name in list(contenders) if turn % 2 == 0 else reversed(contenders):
            started = time.process_time()
            found[name] = contenders[name]()
            seconds[name].append(time.process_time() - started)
    assert found[ENGINE] == found[ONE_BY_ONE], "the engine's answers are not those of model.generate"
    tokens = sum(answer.completion_tokens for answer in engine.generate(chats, max_new_tokens=bound))
    return [
        {
            "contender": name,
            "max_new_tokens": bound,
            "tokens": tokens,
            "tokens_per_second": round(tokens / min(values), 1),
            "seconds_of_rounds": [round(value, 3) for value in values],
            "times_as_fast": round(min(seconds[ONE_BY_ONE]) / min(values), 2),
            "answers_as_one_by_one": sum(map(str.__eq__, found[name], found[ONE_BY_ONE])),
        }
        for name, values in seconds.items()
    ]


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_QUESTIONS} questions, one round, no result file")
    return parser.parse_args()


@torch.inference_mode()
def generated(model: Any, tokenizer: Any, prompts: list[list[int]], rows: int, new_tokens: int) -> list[str]:
    """Greedy answers of transformers' own `generate`, so many rows at once, padded on the left."""
    texts = []
    for start in range(0, len(prompts), rows):
        part = prompts[start : start + rows]
        longest = max(map(len, part))
        fill = tokenizer.pad_token_id
        input_ids = torch.tensor([[fill] * (longest - len(ids)) + ids for ids in part])
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in part])
        found = model.generate(input_ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False)
        texts += tokenizer.batch_decode(found[:, longest:], skip_special_tokens=True)
    return texts


def show(results: list[dict[str, Any]], title: str) -> None:
    """The results as a table."""
    table = Table("contender", title=title)
    for column in ("new tokens", "tokens/s", "times as fast", "same answers"):
        table.add_column(column, justify="right")
    for item in results:
        table.add_row(
            item["contender"],
            str(item["max_new_tokens"]),
            f"{item['tokens_per_second']:,.0f}",
            f"{item['times_as_fast']:.2f}",
            str(item["answers_as_one_by_one"]),
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    sys.exit(main())
