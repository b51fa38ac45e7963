"""Numbers as numbers: does reading or training them as numbers order proteins better than text does?

    POLYSOME_MIRROR=<copy of the public data> python benchmarks/training/number_loss.py [--quick] [--task stability]

For every seed the same small model is trained from the same weights on the same real rows in the same order (`train`
of the task), once for each loss: cross-entropy alone, and with the number-token loss beside it. Its answers to the
questions of the `dev` split are read in two ways: as text, which is the greedy answer and what the strict parser finds
in it, and as a mean, the expectation over the numbers that it may answer, by their likelihoods. Both are correlated
with the labels (Spearman, with 95 % bootstrap intervals; gains over text trained by cross-entropy alone, with the
interval of a bootstrap that draws the same examples for both). `test` is never read. Writes
`benchmarks/training/results/number_loss.json`.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

import polysome
from polysome.data.encode import Encoder, Rendering
from polysome.data.examples import read_examples
from polysome.data.frame import Spelling
from polysome.data.ragged import Ragged
from polysome.data.render import messages, question, wordings
from polysome.evaluation.dev import DevEvaluation, DevTask
from polysome.evaluation.metrics import spearman
from polysome.evaluation.parsers import parser
from polysome.inference.batch import BatchEngine, asking
from polysome.inference.engine import Engine
from polysome.models.attention import Packing, pack
from polysome.models.backbone import ModelSource, build_model, parameter_count
from polysome.models.tokenizer import build_per_base_tokenizer
from polysome.operations.machine import inspect
from polysome.specs import Dataset, Templates, dataset
from polysome.storage import write_json
from polysome.training.numbers import NumberTokens, number_token_loss, number_tokens

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "training" / "results" / "number_loss.json"
LOSSES = {"cross-entropy": (0.0, 2), "+ 0.3 Wasserstein": (0.3, 1), "+ 1.0 squared": (1.0, 2)}
"""Weight of the number-token loss beside the cross-entropy, and its power."""
READ = ("text", "mean")
"""How an answer becomes a number."""
RESAMPLES = 2000

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, Packing]
"""Token ids and positions, int64 [1, total]; places that predict an answer token, int64 [n]; where documents lie."""


@dataclass(frozen=True)
class Size:
    """How much is trained; the model is a Llama of per-base tokens."""

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    updates: int = 4000
    documents: int = 16
    """Per update."""
    learning_rate: float = 2e-3
    warmup: int = 100
    asked: int = 1256
    seeds: tuple[int, ...] = (1, 2)


QUICK = Size(hidden=32, layers=1, updates=60, warmup=10, asked=32)


@dataclass(frozen=True)
class Documents:
    """Encoded training rows."""

    ids: Ragged
    target_starts: np.ndarray


def main() -> None:
    """Train every loss with every seed, ask, print the table, write the result file."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="a minute's run that shows nothing but that it works")
    arguments.add_argument("--task", default="stability", choices=["stability", "fluorescence"])
    arguments.add_argument("--seeds", type=int, nargs="+")
    arguments.add_argument("--updates", type=int)
    arguments.add_argument("--out", type=Path, default=RESULT)
    given = arguments.parse_args()
    size = QUICK if given.quick else Size()
    changed = {name: value for name in ("seeds", "updates") if (value := getattr(given, name)) is not None}
    size = Size(**{**vars(size), **changed})
    torch.set_num_threads(1)
    spec = one_wording(dataset(given.task))
    with tempfile.TemporaryDirectory() as folder:
        build_per_base_tokenizer(folder, wordings(spec))
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        documents = encoded(spec, tokenizer, (Path(folder) / "tokenizer.json").read_text())
        dev = dev_questions(spec, size.asked)
        numbers = number_tokens(tokenizer)
        runs = []
        for seed in size.seeds:
            for name, (weight, power) in LOSSES.items():
                began = time.process_time()
                run = one(size, folder, tokenizer, documents, dev, numbers, seed=seed, weight=weight, power=power)
                run = {"loss": name, "weight": weight, **run, "cpu_seconds": round(time.process_time() - began, 1)}
                print({key: value for key, value in run.items() if key not in READ}, flush=True)
                runs.append(run)
    summary = compare(np.array(dev.tasks[0].labels)[:, 0], runs)
    show(given.task, summary)
    write_json(
        str(given.out),
        {
            "benchmark": "number_loss",
            "command": "python benchmarks/training/number_loss.py",
            "date": datetime.now(UTC).date().isoformat(),
            "polysome": polysome.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "cpus": inspect().cpus,
            "task": given.task,
            "train_rows": len(documents.target_starts),
            "dev_rows": len(dev.tasks[0].labels),
            **vars(size),
            "resamples": RESAMPLES,
            "losses": summary,
            "runs": [{key: value for key, value in run.items() if key not in READ} for run in runs],
        },
    )


def one_wording(spec: Dataset) -> Dataset:
    """The task with its first question, and the number alone for an answer: little to learn but the number."""
    assert spec.task is not None
    templates = Templates(questions=spec.task.templates.questions[:1], answers={"any": ["{label}"]})
    return spec.model_copy(update={"task": spec.task.model_copy(update={"templates": templates})})


def dev_questions(spec: Dataset, limit: int) -> DevEvaluation:
    """The first `limit` examples of the dev split, asked in the task's one wording and without a system prompt."""
    examples = read_examples(spec, "dev", limit=limit).to_pylist()
    conversations = [messages("none", question(spec, example["sequences"])) for example in examples]
    labels = [tuple(example["label"]) for example in examples]
    return DevEvaluation((DevTask(spec, tuple(conversations), tuple(labels)),), max_new_tokens=8)


def encoded(spec: Dataset, tokenizer: Any, tokenizer_json: str) -> Documents:
    """The task's training chats as tokens."""
    rendering = Rendering.of(tokenizer, chat=True, prompt="none", seed=42)
    found = Encoder.of(tokenizer_json, Spelling()).encode(read_examples(spec, "train"), spec, rendering)
    return Documents(found.ids, found.target_starts)


def one(
    size: Size,
    tokenizer_folder: str,
    tokenizer: Any,
    documents: Documents,
    dev: DevEvaluation,
    numbers: NumberTokens,
    *,
    seed: int,
    weight: float,
    power: int,
) -> dict[str, Any]:
    """Train one model, and ask it."""
    fields = {
        "model_type": "llama",
        "hidden_size": size.hidden,
        "intermediate_size": 3 * size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    model: Any = build_model(ModelSource(config=fields), tokenizer_folder, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=size.learning_rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / size.warmup, 0.5 * (1 + np.cos(np.pi * step / size.updates)) * 0.95 + 0.05),
    )
    lately = []
    for input_ids, position_ids, predictors, packing in batches(documents, size, seed):
        logits = model(
            input_ids=input_ids,
            position_ids=position_ids,
            use_cache=False,
            logits_to_keep=predictors,
            packing=packing,
        ).logits[0]
        targets = input_ids[0, predictors + 1]
        cross_entropy = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        number_loss = number_token_loss(logits, targets, numbers, power=power)
        optimizer.zero_grad()
        ((cross_entropy + weight * number_loss) / len(targets)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        lately.append((cross_entropy.item() / len(targets), number_loss.item() / len(targets)))
    with asking(model):
        engine = BatchEngine.of(model, tokenizer)
        answers = dev.ask(engine)
        means = expected(engine, dev.tasks[0])
    measured = dev.measure([answers])[dev.tasks[0].spec.name]
    parse = parser(dev.tasks[0].spec.task)
    parsed = [told[0] if (told := parse(text or "")) else np.nan for _, text in answers]
    last = np.mean(lately[-50:], axis=0)
    return {
        "seed": seed,
        "parameters": parameter_count(model),
        "spearman": measured["value"],
        "parse_rate": measured["parse_rate"],
        "dominant_answer_share": measured["dominant_answer_share"],
        "prediction_spread": measured["prediction_spread"],
        "train_cross_entropy": last[0],
        "train_number_loss": last[1],
        "text": np.array(parsed),
        "mean": means,
    }


def expected(engine: Engine, task: DevTask) -> np.ndarray:
    """The mean of the numbers that the model may answer, float64 [examples], each cut after its first decimal."""
    labels = np.array(task.labels)
    tenths = np.arange(int(10 * labels.min()) - 1, int(10 * labels.max()) + 2)
    choices = {f"{sign}{tenth // 10}.{tenth % 10}" for tenth in abs(tenths).tolist() for sign in ("", "-")}
    cells = sorted(choices)
    centres = np.array([float(cell) + (-0.045 if cell.startswith("-") else 0.045) for cell in cells])
    likely = np.exp([scores.sums for scores in engine.score(task.conversations, cells)])
    return likely @ centres / likely.sum(axis=1)


def batches(documents: Documents, size: Size, seed: int) -> Iterator[Batch]:
    """Flattened batches in the order of `seed`."""
    order = np.random.default_rng(seed).permutation(len(documents.target_starts))
    order = np.resize(order, size.updates * size.documents)
    for chosen in order.reshape(size.updates, size.documents):
        starts, ends = documents.ids.offsets[chosen], documents.ids.offsets[chosen + 1]
        lengths = ends - starts
        ids = np.concatenate([documents.ids.values[first:last] for first, last in zip(starts, ends, strict=True)])
        positions = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        targets = np.flatnonzero(positions >= np.repeat(documents.target_starts[chosen], lengths))
        yield (
            torch.from_numpy(ids.astype(np.int64))[None],
            torch.from_numpy(positions)[None],
            torch.from_numpy(targets - 1),
            pack(lengths.tolist()),
        )


def compare(labels: np.ndarray, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per loss and way of reading the mean Spearman over the seeds and its gain over the first, both with intervals.

    A resample draws dev examples, the same ones for all runs; seeds are not resampled, so that the intervals are about
    the examples, and the values of the single seeds stand beside them.
    """
    generator = np.random.default_rng(0)
    chosen = generator.integers(0, len(labels), size=(RESAMPLES, len(labels)))
    rows, first = [], np.zeros(RESAMPLES)
    for name, read in itertools.product(LOSSES, READ):
        mine = [run[read] for run in runs if run["loss"] == name]
        resampled = np.mean([[spearman(labels[rows], values[rows]) for rows in chosen] for values in mine], axis=0)
        seeds = [spearman(labels, values) for values in mine]
        row = {
            "loss": name,
            "read": read,
            "spearman": np.mean(seeds),
            "interval": np.percentile(resampled, [2.5, 97.5]).tolist(),
            "seeds": seeds,
        }
        if rows:
            gains = resampled - first
            row |= {
                "gain": row["spearman"] - rows[0]["spearman"],
                "gain_interval": np.percentile(gains, [2.5, 97.5]).tolist(),
            }
        else:
            first = resampled
        rows.append(row)
    return rows


def show(task: str, rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(title=f"Spearman on dev of {task}")
    for column in ("loss", "read as", "spearman", "95 %", "seeds", "gain", "95 % of the gain"):
        table.add_column(column)
    for row in rows:
        table.add_row(
            row["loss"],
            row["read"],
            f"{row['spearman']:.3f}",
            "{:.3f} to {:.3f}".format(*row["interval"]),
            ", ".join(f"{value:.3f}" for value in row["seeds"]),
            f"{row['gain']:+.3f}" if "gain" in row else "",
            "{:+.3f} to {:+.3f}".format(*row["gain_interval"]) if "gain" in row else "",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
