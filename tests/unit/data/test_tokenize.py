"""Token documents: spans that are trained on, corpora split without loss, the same ids by table and through text."""

import re

import numpy as np
import pyarrow as pa
import pytest
from rendering import example, examples_of, table_of, write_bpe_tokenizer, write_extended_tokenizer

from polysome.config import DataError
from polysome.data.examples import read_examples
from polysome.data.frame import Spelling
from polysome.data.render import ChatFrame, Style, TaskTag, asked, chosen, told, wordings
from polysome.data.schema import TOKENS
from polysome.data.tokenize import Rendering, tokenize, trained_spans, verify_spans
from polysome.data.tokenizer_files import load_tokenizer
from polysome.models.tokenizer import build_per_base_tokenizer
from polysome.specs import CONCISE_SYSTEM_PROMPT, dataset

TEXTS = [CONCISE_SYSTEM_PROMPT, *wordings(dataset("core_promoter")), *wordings(dataset("planted_binding"))]


@pytest.fixture(scope="module", params=["bases", "4-mers", "bpe", "letters"])
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "bpe":
        sequences = ["".join(np.random.default_rng(0).choice(list("ACGT"), 2000))]
        write_bpe_tokenizer(folder, [*TEXTS, *sequences])
    elif request.param == "letters":
        folder = write_extended_tokenizer(folder, TEXTS)
    else:
        build_per_base_tokenizer(folder, TEXTS, vocabulary_size=400, kmer=4 if request.param == "4-mers" else 1)
    return load_tokenizer(folder), (folder / "tokenizer.json").read_text()


def rendering(tokenizer, *, chat=True, prompt="concise", **style):
    return Rendering.of(tokenizer[0], chat=chat, prompt=prompt, seed=5, style=Style(**style))


def texts(tokenizer, documents):
    return [tokenizer[0].decode(ids) for ids in documents["input_ids"].to_pylist()]


@pytest.mark.parametrize("prompt", ["concise", "reasoning"])
@pytest.mark.parametrize("name", ["core_promoter", "planted_binding"])
def test_a_document_is_the_chat_and_its_target_the_answer(tokenizer, name, prompt):
    spec, settings = dataset(name), rendering(tokenizer, prompt=prompt)
    examples = examples_of(spec, 20)
    made = tokenize(examples, spec, settings, tokenizer[1], 4096)
    assert made.documents.schema == TOKENS
    assert (made.cropped, made.split) == (0, 0)
    frame = ChatFrame.of(tokenizer[0], prompt)
    for row, document in zip(examples.to_pylist(), made.documents.to_pylist(), strict=True):
        draw = chosen(spec, row, settings.seed)
        prompt_text = frame.prompt(asked(spec, row, draw))
        answer_text = told(spec, row, draw, prompt) + frame.after
        start = document["target_start"]
        assert tokenizer[0].decode(document["input_ids"][:start]) == prompt_text
        assert tokenizer[0].decode(document["input_ids"][start:]) == answer_text
        assert document["input_ids"][:start] == tokenizer[0].encode(prompt_text, add_special_tokens=False)
    assert verify_spans(made.documents, examples, spec, settings, tokenizer[1]) == 20
    characters = {kind: 0 for kind in made.characters}
    for row in examples.to_pylist():
        for molecule, sequence in zip(spec.molecules, row["sequences"], strict=True):
            characters[molecule.type] += len(sequence)
    assert made.characters == characters


def test_a_corpus_is_split_and_nothing_is_lost(tokenizer):
    spec, settings = dataset("human_dna_sample"), rendering(tokenizer, chat=False)
    examples = examples_of(spec, 30, lengths=(1, 90))
    whole = tokenize(examples, spec, settings, tokenizer[1], 10_000)
    assert whole.split == 0
    assert whole.documents["target_start"].to_pylist() == [0] * 30
    for text, row in zip(texts(tokenizer, whole.documents), examples.to_pylist(), strict=True):
        text = re.sub("<dna:(.)>", r"\1", text.replace(" ", ""))
        assert text.startswith(f"{settings.bos}<dna>{row['sequences'][0][:1]}")
        assert text.endswith(f"</dna>{settings.eos}")
    pieces = tokenize(examples, spec, settings, tokenizer[1], 16)
    lengths = pieces.documents["input_ids"].combine_chunks().value_lengths().to_numpy()
    assert lengths.max() == 16
    assert pieces.split == sum(length > 16 for length in map(len, whole.documents["input_ids"].to_pylist()))
    joined: dict[str, list[int]] = {}
    for document in pieces.documents.to_pylist():
        record, _, start = document["id"].partition("/-/")[2].partition("/")
        ids = joined.setdefault(record, [])
        assert len(ids) == int(start or 0)
        ids += document["input_ids"]
    assert list(joined.values()) == whole.documents["input_ids"].to_pylist()
    assert verify_spans(pieces.documents, examples, spec, settings, tokenizer[1]) == 30


def test_a_chat_that_is_too_long_and_may_not_be_cropped_is_named(tokenizer):
    spec, settings = dataset("core_promoter"), rendering(tokenizer)
    examples = table_of([example(id="a"), example(id="b", sequences=["ACGT" * 500])])
    with pytest.raises(DataError, match="a row takes 400") as caught:
        tokenize(examples, spec, settings, tokenizer[1], 400)
    assert caught.value.where == "b"
    assert "max_length" in str(caught.value.fix)


def test_what_is_trained_on_is_shown(tokenizer):
    spec, settings = dataset("core_promoter"), rendering(tokenizer, task_tag=TaskTag(fraction=0))
    document = tokenize(table_of([example(answer="Yes, \u00e9\u4e2d.")]), spec, settings, tokenizer[1], 4096)
    row = document.documents.to_pylist()[0]
    spans = trained_spans(row["input_ids"], row["target_start"], tokenizer[1])
    assert "".join(text for text, trained in spans if trained) == "Yes, \u00e9\u4e2d.<|end|>"
    assert "".join(text for text, _ in spans) == tokenizer[0].decode(row["input_ids"])
    assert [trained for _, trained in spans] == sorted(trained for _, trained in spans)
    corpus = trained_spans(row["input_ids"], 0, tokenizer[1])
    assert [trained for _, trained in corpus][:2] == [False, True]


def test_documents_that_say_something_else_are_found(tokenizer):
    spec, settings = dataset("core_promoter"), rendering(tokenizer)
    examples = examples_of(spec, 4, lengths=(20, 30))
    documents = tokenize(examples, spec, settings, tokenizer[1], 4096).documents
    rows = documents.to_pylist()
    late = pa.Table.from_pylist([row | {"target_start": row["target_start"] + 1} for row in rows], schema=TOKENS)
    with pytest.raises(DataError, match="prompt"):
        verify_spans(late, examples, spec, settings, tokenizer[1])
    for row in rows:
        row["input_ids"] = row["input_ids"][:-1]
    with pytest.raises(DataError, match="answer"):
        verify_spans(pa.Table.from_pylist(rows, schema=TOKENS), examples, spec, settings, tokenizer[1])
    shuffled = documents.take(pa.array([1, 0, 2, 3]))
    with pytest.raises(DataError):
        verify_spans(shuffled, examples, spec, settings, tokenizer[1])


@pytest.mark.parametrize("changes", [{"answer": "Yes.<|end|>"}, {"question": "<|user|>{sequence} is it?"}])
def test_a_records_own_words_cannot_end_a_turn(tokenizer, changes):
    rows = table_of([example(id="a"), example(id="b", **changes)])
    with pytest.raises(DataError, match="special token") as caught:
        tokenize(rows, dataset("core_promoter"), rendering(tokenizer), tokenizer[1], 4096)
    assert caught.value.where == "b"


@pytest.mark.data
@pytest.mark.parametrize(
    "name", ["antibody_antigen_cov", "promoter_promoter_demo", "rpi_benchmarks", "solubility_sample", "stability"]
)
def test_real_chats_fit_into_a_row_of_the_paper_and_are_what_they_should_be(tokenizer, name):
    spec, settings = dataset(name), rendering(tokenizer)
    examples = read_examples(spec, "train" if "train" in spec.splits else next(iter(spec.splits)), limit=60)
    made = tokenize(examples, spec, settings, tokenizer[1], 1024)
    assert made.documents["input_ids"].combine_chunks().value_lengths().to_numpy().max() <= 1024
    assert verify_spans(made.documents, examples, spec, settings, tokenizer[1]) == examples.num_rows
    assert (made.cropped > 0) == any(made.cut.values())


def test_every_pass_draws_anew_and_the_first_is_the_recipes():
    settings = Rendering(None, Spelling(), "", "", "concise", 7)
    assert settings.for_pass(0) is settings
    assert len({settings.for_pass(number).seed for number in range(5)}) == 5
