"""Made examples for any declared task or corpus, and small tokenizers of all kinds."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from polysome.data.schema import EXAMPLES
from polysome.data.tokenizer_files import tokenizer_fingerprint
from polysome.models.vocabulary import extend_tokenizer
from polysome.specs import Dataset

ALPHABETS = {"dna": "ACGT", "rna": "ACGU", "protein": "ACDEFGHIKLMNPQRSTVWY"}

_TURNS = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


def example(**changes: Any) -> dict[str, Any]:
    """One row of EXAMPLES."""
    row = {
        "id": "core_promoter/train/-/1",
        "dataset": "core_promoter",
        "split": "train",
        "subset": None,
        "sequences": ["ACGT"],
        "label": [1.0],
        "question": None,
        "answer": None,
    }
    return row | changes


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as a table."""
    return pa.Table.from_pylist(rows, schema=EXAMPLES)


def examples_of(spec: Dataset, count: int, *, lengths: tuple[int, int] = (1, 60), seed: int = 0) -> pa.Table:
    """Random examples of a data set: its molecules, a label of its kind, one of its subsets."""
    dice = random.Random(seed)
    subsets = [file.subset for files in spec.splits.values() for file in files]
    rows = []
    for number in range(count):
        sequences = [
            "".join(dice.choices(ALPHABETS[molecule.type], k=dice.randint(*lengths))) for molecule in spec.molecules
        ]
        rows.append(
            example(
                id=f"{spec.name}/train/-/{number}",
                dataset=spec.name,
                subset=dice.choice(subsets),
                sequences=sequences,
                label=_label(spec, dice),
                answer="It is said to bind zinc." if spec.task and spec.task.label.kind == "generation" else None,
            )
        )
    return table_of(rows)


def _label(spec: Dataset, dice: random.Random) -> list[float] | None:
    if spec.task is None or spec.task.label.kind == "generation":
        return None
    label: Any = spec.task.label
    if label.kind == "multiclass":
        return [float(dice.randrange(len(label.classes)))]
    if label.kind == "multilabel":
        return sorted(map(float, dice.sample(range(len(label.classes)), k=2)))
    if label.kind == "binary":
        return [float(dice.randint(0, 1))]
    return [dice.uniform(0, 1) for _ in getattr(label, "outputs", [0])]


def write_bpe_tokenizer(folder: Path, texts: list[str], *, size: int = 600) -> None:
    """A plain byte-level BPE with a chat template, such as a general model has; it knows nothing of molecules."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<|pad|>",
        "bos_token": "<|bos|>",
        "eos_token": "<|end|>",
        "chat_template": _TURNS,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def write_extended_tokenizer(folder: Path, texts: list[str]) -> Path:
    """Such a tokenizer in `<folder>/base`, and in `<folder>/extended` the same with tokens of letters; the latter."""
    write_bpe_tokenizer(folder / "base", texts)
    extend_tokenizer(folder / "base", folder / "extended", fingerprint=tokenizer_fingerprint(folder / "base"))
    return folder / "extended"
