"""Greedy answers: the batch engine beside `model.generate` one by one, and beside `model.generate` of padded batches.

    python benchmarks/evaluation/generate.py [--quick]

A small random Llama answers questions on RNA of real lengths, in fp32 on one thread. It hardly ever ends a turn, so
every answer has all tokens that it may have. The engine's answers must be those of `model.generate` one by one, token for
token. Padded batches take the questions as they come, as many at once as stands in the table. Writes
`benchmarks/evaluation/results/generate.json`.
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
from polysome.storage import write_json

RESULT = subject.RESULTS / "generate.json"
WANTED = 4.0
QUESTIONS, NEW_TOKENS, ROUNDS = 64, 32, 3
QUICK_QUESTIONS, QUICK_NEW_TOKENS, QUICK_ROUNDS = 16, 16, 1
PADDED_ROWS = 16
ONE_BY_ONE, PADDED, ENGINE = (
    "model.generate, one by one",
    f"model.generate, padded batches of {PADDED_ROWS}",
    "batch engine",
)


def main() -> int:
    """Measure, print, write; 1 where less is reached than wanted."""
    options = parsed()
    count, new_tokens, rounds = (
        (QUICK_QUESTIONS, QUICK_NEW_TOKENS, QUICK_ROUNDS) if options.quick else (QUESTIONS, NEW_TOKENS, ROUNDS)
    )
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        model, tokenizer = subject.build(Path(folder))
    engine = BatchEngine.of(model, tokenizer)
    chats = subject.questions(count)
    prompts = [prompt(tokenizer, chat) for chat in chats]
    contenders: dict[str, Callable[[], list[str]]] = {
        ONE_BY_ONE: lambda: generated(model, tokenizer, prompts, 1, new_tokens),
        PADDED: lambda: generated(model, tokenizer, prompts, PADDED_ROWS, new_tokens),
        ENGINE: lambda: [answer.text for answer in engine.generate(chats, max_new_tokens=new_tokens)],
    }
    generated(model, tokenizer, prompts[:1], 1, 2)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    found: dict[str, list[str]] = {}
    for turn in range(rounds):
        for name in list(contenders) if turn % 2 == 0 else reversed(contenders):
            started = time.process_time()
            found[name] = contenders[name]()
            seconds[name].append(time.process_time() - started)
    assert found[ENGINE] == found[ONE_BY_ONE], "the engine's answers are not those of model.generate"
    tokens = sum(answer.completion_tokens for answer in engine.generate(chats, max_new_tokens=new_tokens))
    ratios = {name: min(seconds[ONE_BY_ONE]) / min(values) for name, values in seconds.items()}
    results = [
        {
            "contender": name,
            "tokens_per_second": round(tokens / min(values), 1),
            "seconds_of_rounds": [round(value, 3) for value in values],
            "times_as_fast": round(ratios[name], 2),
            "answers_as_one_by_one": sum(map(str.__eq__, found[name], found[ONE_BY_ONE])),
        }
        for name, values in seconds.items()
    ]
    lengths = [len(ids) for ids in prompts]
    content = {
        "benchmark": "greedy answers",
        "command": " ".join(["python", "benchmarks/evaluation/generate.py", *sys.argv[1:]]),
        **subject.described(),
        "questions": count,
        "max_new_tokens": new_tokens,
        "tokens": tokens,
        "prompt_tokens": {"least": min(lengths), "median": float(np.median(lengths)), "most": max(lengths)},
        "wanted": f"{ENGINE} ≥ {WANTED:g} times as fast as {ONE_BY_ONE}",
        "results": results,
    }
    show(results, f"{count} questions, {np.median(lengths):.0f} prompt tokens in the median, {new_tokens} new tokens")
    if options.quick:
        return 0
    write_json(str(RESULT), content)
    print(f"written: {RESULT}")
    return int(ratios[ENGINE] < WANTED)


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
    for column in ("tokens/s", "times as fast", "same answers"):
        table.add_column(column, justify="right")
    for item in results:
        table.add_row(
            item["contender"],
            f"{item['tokens_per_second']:,.0f}",
            f"{item['times_as_fast']:.2f}",
            str(item["answers_as_one_by_one"]),
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    sys.exit(main())
