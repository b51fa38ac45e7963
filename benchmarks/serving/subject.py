"""What the programs of this folder serve and ask: a random Llama for the CPU, and questions on RNA of real lengths."""

import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import polysome
from polysome.operations.machine import inspect
from polysome.specs import dataset

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "serving" / "results"
NAME = "served"
SEED = 42
TASK = "ncrna_family"
NUMBER_TASK = "mean_ribosome_loading"
LENGTHS = {
    TASK: ((0, 0.1, 0.25, 0.5, 0.75, 0.9, 1), (43, 75, 98, 130, 178, 323, 1136)),
    NUMBER_TASK: ((0, 1), (25, 100)),
}
"""Quantiles of the lengths of the published sequences."""
MODEL: dict[str, Any] = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    # Wider than usual, so that the answers to different questions differ.
    "initializer_range": 0.1,
}


def build(folder: Path) -> str:
    """Write the model, random in fp32, with its per-base tokenizer; returns the folder.

    It says plain letters, digits and words and never ends a turn: every answer is as long as it may be, and every token
    of a stream is text that can be told at once.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from polysome.data.render import wordings
    from polysome.models.tokenizer import build_per_base_tokenizer
    from polysome.specs.prompts import system_prompt

    texts = [wording for task in LENGTHS for wording in wordings(dataset(task))]
    build_per_base_tokenizer(folder, [*texts, str(system_prompt("concise"))])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(SEED)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **MODEL, **ids))
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))], skip_special_tokens=True)
    unsaid = [token for token, text in enumerate(texts) if not (text.isascii() and text.isprintable() and text.strip())]
    # The likeliest token's logit is above 0, theirs is 0.
    model.lm_head.weight.data[unsaid] = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def sequences(count: int, *, task: str = TASK, seed: int = SEED) -> list[str]:
    """Random RNA whose lengths are those of a task."""
    generator = np.random.default_rng(seed)
    lengths = np.interp(generator.random(count), *LENGTHS[task]).astype(int)
    return ["".join(generator.choice(list("ACGU"), length)) for length in lengths]


def chats(count: int, *, seed: int = SEED) -> list[list[dict[str, str]]]:
    """Questions of the task on `sequences`."""
    from polysome.data.render import messages, question

    spec = dataset(TASK)
    return [
        messages("concise", question(spec, [sequence], template=index % 4))
        for index, sequence in enumerate(sequences(count, seed=seed))
    ]


def settings(model: str, **fields: Any) -> dict[str, Any]:
    """The serving configuration of a benchmark: one replica with one thread that takes sixteen requests at once."""
    return {
        "model": model,
        "name": NAME,
        "autoscaling": {"min_replicas": 1, "max_replicas": 1},
        "cpus_per_replica": 1,
        "max_batch_size": 16,
        "request_timeout_seconds": 300,
        **fields,
    }


def described() -> dict[str, Any]:
    """What a result file says of the machine and the versions."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "python": platform.python_version(),
        "polysome": polysome.__version__,
        **{package: version(package) for package in ("torch", "transformers", "ray", "fastapi", "uvicorn", "aiohttp")},
        "cpus": inspect(str(ROOT)).cpus,
        "seed": SEED,
        "task": TASK,
        "model": MODEL,
        "precision": "fp32",
        "threads": 1,
        "seconds_are": "of the clock, at the client; contenders take turns, the best round of each counts",
    }
