"""A stage from its data to its export, in one process: what its settings reach."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from in_process import train_here
from prepared import commit_rows
from test_schedule import stage
from transformers import AutoTokenizer

from polysome.data.schema import PACKED
from polysome.data.tokenizer_files import tokenizer_fingerprint
from polysome.models.tokenizer import build_per_base_tokenizer
from polysome.training import launch

MODEL = {"config": {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                    "num_attention_heads": 2}}  # fmt: skip


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared rows of one document each, a sequence and a number that is trained on."""
    folder = tmp_path_factory.mktemp("numbers") / "prepared"
    build_per_base_tokenizer(folder / "tokenizer", ["The value is 0.43."])
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    generator = np.random.default_rng(0)
    columns: list[list[Any]] = [[] for _ in PACKED]
    for _ in range(12):
        question = tokenizer.encode("ACGTACG", add_special_tokens=False)
        value = tokenizer.encode(f"{generator.random():.4f}", add_special_tokens=False)
        ids = [tokenizer.bos_token_id, *question, *value, tokenizer.eos_token_id]
        row = [ids, [len(ids)], [1 + len(question)], len(ids), len(value) + 1, 1]
        for column, content in zip(columns, row, strict=True):
            column.append(content)
    table = pa.Table.from_arrays([pa.array(v, f.type) for v, f in zip(columns, PACKED, strict=True)], schema=PACKED)
    return commit_rows(
        folder, [table], max_length=32, pad_id=tokenizer.pad_token_id, vocabulary_size=len(tokenizer),
        tokenizer=tokenizer_fingerprint(folder / "tokenizer"),
    )  # fmt: skip


def test_the_number_loss_meets_sources_whose_answers_are_numbers(numbers: Path, tmp_path: Path) -> None:
    def rows(name: str, number_loss: Any, numeric: bool) -> list[tuple[float, float]]:
        config = stage(data=str(numbers), model=MODEL, number_loss=number_loss, max_updates=2, log_every_updates=1,
                       workers={"count": 1}, gradient_accumulation_steps=2, precision="fp32")  # fmt: skip
        assert train_here(config, tmp_path / name, numeric=[numeric]).updates == 2
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [(json.loads(line)["loss"], json.loads(line)["grad_norm"]) for line in lines]

    without = rows("without", None, True)
    (first, steep), (second, _) = rows("with", {"weight": 2.0}, True)
    assert rows("names", {"weight": 2.0}, False) == without
    # What is shown is the cross-entropy alone; what is followed is both.
    assert first == without[0][0]
    assert steep != pytest.approx(without[0][1], rel=1e-2)
    assert second != without[1][0]


@pytest.mark.parametrize(("name", "numeric"), [("planted_thermostability", True), ("planted_promoter", False)])
def test_sources_whose_answers_are_numbers_are_known_by_their_declaration(name: str, numeric: bool) -> None:
    assert launch._numeric(name) is numeric
