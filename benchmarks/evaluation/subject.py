"""What `score.py` and `generate.py` ask: a small random Llama, and questions on non-coding RNA of real lengths."""

import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import polysome
from polysome.data.render import answer, messages, question, wordings
from polysome.inference.engine import Conversation
from polysome.models.tokenizer import build_per_base_tokenizer
from polysome.operations.machine import inspect
from polysome.specs import MulticlassLabel, dataset
from polysome.specs.prompts import system_prompt

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "evaluation" / "results"
SEED = 42
TASK = "ncrna_family"
LENGTHS = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1), (43, 75, 98, 130, 178, 323, 1136)
"""Quantiles of the lengths of the published sequences."""
MODEL = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}


def build(folder: Path) -> tuple[Any, Any]:
    """The model, in fp32 on the CPU with one thread, and its per-base tokenizer."""
    torch.set_num_threads(1)
    spec = dataset(TASK)
    build_per_base_tokenizer(folder, [*wordings(spec), str(system_prompt("concise"))])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(SEED)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **MODEL, **ids)).eval()
    return model, tokenizer


def questions(count: int) -> list[Conversation]:
    """Questions on random RNA whose lengths are those of the task."""
    generator = np.random.default_rng(SEED)
    spec = dataset(TASK)
    lengths = np.interp(generator.random(count), *LENGTHS).astype(int)
    return [
        messages("concise", question(spec, ["".join(generator.choice(list("ACGU"), length))], template=index % 4))
        for index, length in enumerate(lengths)
    ]


def answers() -> list[str]:
    """The thirteen classes, each in the task's first wording."""
    spec = dataset(TASK)
    assert spec.task is not None
    assert isinstance(spec.task.label, MulticlassLabel)
    return [answer(spec, (float(index),)) for index in range(len(spec.task.label.classes))]


def described() -> dict[str, Any]:
    """What a result file says of the machine and the versions."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "python": platform.python_version(),
        "polysome": polysome.__version__,
        **{package: version(package) for package in ("torch", "transformers", "numpy")},
        "cpus": inspect(ROOT).cpus,
        "seed": SEED,
        "task": TASK,
        "model": MODEL,
        "precision": "fp32",
        "threads": 1,
        "seconds_are": "of CPU, in one process; contenders take turns, the best round of each counts",
    }
