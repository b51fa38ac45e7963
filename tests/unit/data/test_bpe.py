"""Tokens by the merges of a BPE tokenizer are those of the tokenizer itself, and only such tokenizers are taken."""

import dataclasses
import itertools
import json
import random

import numba
import numba.core.caching
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rendering import ALPHABETS, examples_of, write_bpe_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from polysome.data import bpe
from polysome.data.bpe import BytePairTokenizer
from polysome.data.encode import Encoder, Rendering
from polysome.data.frame import Spelling, tagged_sequence
from polysome.data.tokenizer_files import load_tokenizer
from polysome.specs import dataset

TAGS = ["<dna>", "</dna>", "<rna>", "</rna>", "<protein>", "</protein>"]
LETTERS_AS_ONE = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"


def texts(count=400, seed=0):
    """Repetitive ones, so that merges of runs (AA, AAAA, ACAC) are learned as well."""
    dice = random.Random(seed)
    found = []
    for _ in range(count):
        alphabet = dice.choice(list(ALPHABETS.values()))
        words = ["".join(dice.choices(alphabet, k=dice.randint(1, 6))) for _ in range(5)]
        found.append("".join(dice.choices([*words, "A" * 7, "AC", "G"], k=30)) + dice.choice(["", "*"]))
    return found


def trained(kind, size=700):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>" if kind == "characters" else None))
    alphabet = []
    if kind != "characters":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "gpt-2")
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    if kind == "llama":
        split = pre_tokenizers.Split(Regex(LETTERS_AS_ONE), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, tokenizer.pre_tokenizer])
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<unk>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    return tokenizer


def with_model(tokenizer, **changes):
    content = json.loads(tokenizer.to_str())
    content["model"] |= changes
    return json.dumps(content)


def by_table(table, molecule, sequences):
    offsets, ids = table.encode_sequences(pa.array(sequences, pa.string()), molecule)
    assert (offsets.dtype, ids.dtype) == (np.int64, np.int32)
    return [ids[begin:end].tolist() for begin, end in itertools.pairwise(offsets)]


def by_tokenizer(table, molecule, sequences):
    whole = [tagged_sequence(molecule, sequence) for sequence in sequences]
    return [item.ids[1:-1] for item in table.tokenizer.encode_batch_fast(whole, add_special_tokens=False)]


@pytest.fixture(scope="module", params=["characters", "bytes", "gpt-2", "llama"])
def table(request):
    found = BytePairTokenizer.of(trained(request.param).to_str())
    assert found is not None
    return found


@given(data=st.data())
def test_sequences_as_the_tokenizer_encodes_them(table, data):
    molecule = data.draw(st.sampled_from(list(ALPHABETS)))
    repeats = st.lists(st.sampled_from(["A", "AC", "AAAA", "G", "KA", "W"]), max_size=30).map("".join)
    plain = st.text(ALPHABETS[molecule], max_size=60)
    odd = st.text(ALPHABETS[molecule] + "NUTXZ*-acgtu 7\u00e9", max_size=20)
    sequences = data.draw(st.lists(st.one_of(plain, repeats, odd), max_size=6))
    assert by_table(table, molecule, sequences) == by_tokenizer(table, molecule, sequences)


def test_long_sequences_slices_and_nothing(table):
    sequences = ["", *texts(50, seed=1), "A" * 3000, "MKVX" * 900, "mkv", ""]
    assert by_table(table, "protein", sequences) == by_tokenizer(table, "protein", sequences)
    for values in (pa.array(sequences), pa.array(sequences, pa.large_string())):
        assert by_table(table, "protein", values.slice(3, 5)) == by_tokenizer(table, "protein", sequences[3:8])
    assert by_table(table, "dna", []) == []
    assert by_table(table, "dna", ["", ""]) == [[], []]


@given(data=st.data())
def test_any_merges(data):
    """Merges that no training gives: several for a token, tokens out of reach, ids in any order, pairs listed twice."""
    vocabulary, merges = ["A", "C"], []
    for _ in range(data.draw(st.integers(1, 12))):
        first, second = data.draw(st.sampled_from(vocabulary)), data.draw(st.sampled_from(vocabulary))
        if len(first + second) <= 8:
            merges.append((first, second))
            vocabulary += [first + second] if first + second not in vocabulary else []
    merges = data.draw(st.permutations(merges)) if data.draw(st.booleans()) else merges
    ids = {token: number for number, token in enumerate(data.draw(st.permutations(vocabulary)))}
    model = models.BPE(vocab=ids, merges=list(merges), ignore_merges=data.draw(st.booleans()))
    tokenizer = Tokenizer(model)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    # Not verified, so that what is right is so by its merges.
    made = bpe._table(tokenizer, json.loads(tokenizer.to_str())["model"], ["A", "C"])
    if made is None:
        return
    every = ["".join(letters) for size in range(1, 9) for letters in itertools.product("AC", repeat=size)]
    assert by_table(made, "dna", every) == by_tokenizer(made, "dna", every)


def test_whole_documents_of_tasks_and_corpora(tmp_path):
    write_bpe_tokenizer(tmp_path, [*texts(100), "Is there a promoter? Yes. No."])
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder = Encoder.of(tokenizer.to_str(), Spelling())
    assert isinstance(encoder.table, BytePairTokenizer)
    for name in ("core_promoter", "rna_protein_interaction"):
        spec = dataset(name)
        rendering = Rendering.of(load_tokenizer(tmp_path), chat=True, prompt="concise", seed=1)
        examples = examples_of(spec, 20)
        found = encoder.encode(examples, spec, rendering)
        wanted = dataclasses.replace(encoder, table=None).encode(examples, spec, rendering)
        assert np.array_equal(found.ids.values, wanted.ids.values)
        assert np.array_equal(found.ids.offsets, wanted.ids.offsets)
        assert np.array_equal(found.target_starts, wanted.target_starts)


def unlike():
    """Tokenizers that are none of this kind, each with what makes it so."""
    tokenizer = trained("bytes")
    yield "dropout", with_model(tokenizer, dropout=0.1)
    tokenizer.normalizer = normalizers.Lowercase()
    yield "letters are changed", tokenizer.to_str()
    tokenizer = trained("characters")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(".{1,40}"), "isolated")
    yield "runs are cut", tokenizer.to_str()
    tokenizer = trained("bytes")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    yield "a blank is put before", tokenizer.to_str()
    tokenizer = trained("bytes")
    tokenizer.add_tokens(["ACGT"])
    yield "an added token lies within", tokenizer.to_str()
    content = json.loads(trained("bytes").to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "</rna>"]
    yield "a tag is none", json.dumps(content)
    merges = [("AC", "AC"), ("A", "C"), ("ACAC", "A")]
    model = models.BPE(vocab={"A": 0, "C": 1, "AC": 2, "ACAC": 3, "ACACA": 4}, merges=merges)
    tokenizer = Tokenizer(model)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    yield "merged before its parts", tokenizer.to_str()
    for model in (models.WordPiece({"A": 0, "[UNK]": 1}, unk_token="[UNK]"), models.Unigram([("A", 0.0), ("C", -1.0)])):
        tokenizer = Tokenizer(model)
        tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
        yield type(model).__name__, tokenizer.to_str()


@pytest.mark.parametrize(("why", "tokenizer_json"), [pytest.param(*item, id=item[0]) for item in unlike()])
def test_others_are_left_to_the_tokenizer(why, tokenizer_json):
    assert BytePairTokenizer.of(tokenizer_json) is None, why


def test_too_many_tokens_and_spelled_sequences_are_left_to_the_tokenizer(monkeypatch):
    tokenizer_json = trained("bytes").to_str()
    assert Encoder.of(tokenizer_json, Spelling()).table is not None
    assert Encoder.of(tokenizer_json, Spelling(kmer=4)).table is None
    monkeypatch.setattr(bpe, "_MOST_TOKENS", 100)
    bpe._recognised.cache_clear()
    assert BytePairTokenizer.of(tokenizer_json) is None
    bpe._recognised.cache_clear()


def test_a_wrong_table_is_refused(monkeypatch):
    """Verification does not rest on how the table was made: one merge left out is found."""
    tokenizer_json = trained("bytes", 650).to_str()
    make = bpe._table

    def one_less(tokenizer, content, letters):
        return make(tokenizer, content | {"merges": content["merges"][:-1]}, letters)

    assert BytePairTokenizer.of(tokenizer_json) is not None
    bpe._recognised.cache_clear()
    monkeypatch.setattr(bpe, "_table", one_less)
    assert BytePairTokenizer.of(tokenizer_json) is None
    bpe._recognised.cache_clear()


def test_compiled_without_a_folder_to_keep_it_in(monkeypatch):
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    with pytest.raises(RuntimeError, match="no locator"):
        numba.njit(cache=True)(doubled)
    assert bpe._compiled(doubled)(21) == 42


def doubled(number):
    return 2 * number
