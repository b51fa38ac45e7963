"""Tokens by table are those of the tokenizer itself: every letter, k-mer, template and odd character."""

import dataclasses
import itertools
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rendering import ALPHABETS, examples_of, write_bpe_tokenizer, write_extended_tokenizer
from tokenizers import Tokenizer

from polysome.data.encode import Encoder, Rendering
from polysome.data.frame import Spelling, sequence_spelling, spell_sequence, tagged_sequence
from polysome.data.lookup import LookupTokenizer
from polysome.data.molecule_table import LETTERS, TYPES
from polysome.data.ragged import Ragged
from polysome.data.render import TaskTag
from polysome.data.skeleton import Style
from polysome.data.tokenizer_files import load_tokenizer
from polysome.models.tokenizer import build_per_base_tokenizer
from polysome.specs import CONCISE_SYSTEM_PROMPT, dataset, names

TEXTS = [CONCISE_SYSTEM_PROMPT, "Is there a promoter? Yes, TATAAA and GGGCGG. No, there is not."]


@pytest.fixture(scope="module", params=[(1, 1), (4, 1), (1, 2), (3, 3), "letters"], ids=str)
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "letters":
        folder = write_extended_tokenizer(folder, TEXTS)
    else:
        kmer, protein_kmer = request.param
        build_per_base_tokenizer(folder, TEXTS, vocabulary_size=400, kmer=kmer, protein_kmer=protein_kmer)
    return folder, sequence_spelling(load_tokenizer(folder))


@pytest.fixture(scope="module")
def lookup(folder):
    path, spelling = folder
    found = LookupTokenizer.of((path / "tokenizer.json").read_text(), spelling)
    assert found is not None
    return found


def encoded_whole(lookup, molecule, sequences):
    texts = [tagged_sequence(molecule, spell_sequence(molecule, text, lookup.spelling)) for text in sequences]
    return [item.ids[1:-1] for item in lookup.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def encoded_by_table(lookup, molecule, sequences):
    offsets, ids = lookup.encode_sequences(pa.array(sequences, pa.string()), molecule)
    assert (offsets.dtype, ids.dtype) == (np.int64, np.int32)
    return [ids[begin:end].tolist() for begin, end in itertools.pairwise(offsets)]


@given(data=st.data())
def test_sequences_as_the_tokenizer_encodes_them(lookup, data):
    molecule = data.draw(st.sampled_from(list(ALPHABETS)))
    plain = st.text(ALPHABETS[molecule], max_size=40)
    # Ambiguity codes, U in DNA, lower case, gaps, digits and other scripts take the slow way, amid the others.
    odd = st.text(ALPHABETS[molecule] + "NUTXZ*-acgtu 7\u00e9", max_size=20)
    sequences = data.draw(st.lists(st.one_of(plain, odd), max_size=6))
    assert encoded_by_table(lookup, molecule, sequences) == encoded_whole(lookup, molecule, sequences)


def test_sliced_columns_and_chunks_of_any_size(lookup, monkeypatch):
    values = pa.array(["ACGTACGTNACGT", "ACGTACGT", "", "A", "GATTACAGATTACA"] * 40)
    wanted = encoded_whole(lookup, "dna", values.to_pylist())
    for chunk in (1, 7, 64):
        monkeypatch.setattr("polysome.data.ragged._CHUNK_VALUES", chunk)
        assert encoded_by_table(lookup, "dna", values) == wanted
    offsets, ids = lookup.encode_sequences(values.slice(3, 2), "dna")
    assert [ids[: offsets[1]].tolist(), ids[offsets[1] :].tolist()] == wanted[3:5]


def test_gathering_pieces():
    source = np.arange(10, dtype=np.int32)
    rows = Ragged.gather(source, np.array([[2, 0], [9, 5]]), np.array([[3, 0], [1, 2]]))
    assert rows.values.tolist() == [2, 3, 4, 9, 5, 6]
    assert rows.offsets.tolist() == [0, 3, 6]
    assert Ragged.gather(source, np.zeros((0, 2), np.int64), np.zeros((0, 2), np.int64)).offsets.tolist() == [0]


@pytest.mark.parametrize("tag_style", ["xml", "release"])
def test_every_declared_template_as_the_tokenizer_encodes_the_whole_text(folder, tag_style):
    """All tasks and corpora in datasets_spec: pieces encoded apart are the whole text encoded at once."""
    path, spelling = folder
    if tag_style == "release" and not spelling.plain:
        pytest.skip("refused: release tags hide sequences that must be spelled")
    tokenizer, tokenizer_json = load_tokenizer(path), (path / "tokenizer.json").read_text()
    encoder = Encoder.of(tokenizer_json, spelling)
    assert encoder.table is not None
    seen = 0
    for name in names():
        spec = dataset(name)
        if spec.kind == "instructions":
            continue
        style = Style(TaskTag(fraction=0.5), tag_style=tag_style)
        rendering = Rendering.of(tokenizer, chat=spec.kind == "task", prompt="concise", seed=1, style=style)
        examples = examples_of(spec, 6)
        by_table = encoder.encode(examples, spec, rendering)
        by_text = dataclasses.replace(encoder, table=None).encode(examples, spec, rendering)
        assert np.array_equal(by_table.ids.values, by_text.ids.values), name
        assert np.array_equal(by_table.ids.offsets, by_text.ids.offsets), name
        assert np.array_equal(by_table.target_starts, by_text.target_starts), name
        assert by_table.characters == by_text.characters
        seen += 1
    assert seen > 5


def test_letter_tokens_of_molecules_of_all_types_at_once(tmp_path):
    path = write_extended_tokenizer(tmp_path, TEXTS)
    spelling = sequence_spelling(load_tokenizer(path))
    lookup = LookupTokenizer.of((path / "tokenizer.json").read_text(), spelling)
    dice, molecules = np.random.default_rng(1), ("dna", "protein", "rna", "protein", "dna", "rna")
    for alphabet in (LETTERS, LETTERS + "acgtn- 7\u00e9"):
        sequences = ["".join(dice.choice(list(alphabet), size)) for size in (3, 500, 0, 70_000, 1, 20)]
        types = np.array([TYPES.index(molecule) for molecule in molecules], np.int8)
        starts, lengths, source = lookup.locate(pa.array(sequences, pa.string()), types)
        for molecule, sequence, start, length in zip(molecules, sequences, starts, lengths, strict=True):
            (wanted,) = encoded_whole(lookup, molecule, [sequence])
            assert source[start : start + length].tolist() == wanted
    # An adenine is no alanine, and what has no token in the one has one in the other.
    tokens = [lookup.tokenizer.encode(f"<{kind}:A>").tokens for kind in ("dna", "protein")]
    assert tokens == [["<dna:A>"], ["<protein:A>"]]
    assert spell_sequence("dna", "AJMg", spelling) == "<dna:A>JMg"
    assert spell_sequence("protein", "AJMg", spelling) == "<protein:A>J<protein:M>g"
    # Letters of another tokenizer are none of this one's.
    assert LookupTokenizer.of((path.parent / "base/tokenizer.json").read_text(), spelling) is None


@pytest.mark.parametrize("kmer", [1, 4])
def test_other_tokenizers_are_not_taken_for_one_with_tables(tmp_path, kmer):
    write_bpe_tokenizer(tmp_path, [*TEXTS, "<dna>ACGTACGT</dna>"])
    assert LookupTokenizer.of((tmp_path / "tokenizer.json").read_text(), Spelling()) is None
    build_per_base_tokenizer(tmp_path / "own", TEXTS, vocabulary_size=400, kmer=kmer)
    content = json.loads((tmp_path / "own/tokenizer.json").read_text())
    without_tag = dict(content, added_tokens=[t for t in content["added_tokens"] if t["content"] != "<rna>"])
    assert LookupTokenizer.of(json.dumps(without_tag), Spelling(kmer)) is None
    # Tags as tokens are not enough: this one joins letters, so a letter is not always one token.
    joining = dict(
        content,
        pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False, "use_regex": False, "trim_offsets": True},
    )
    joining["model"] = dict(content["model"], merges=[*content["model"]["merges"], ["G", "A"]])
    joining["model"]["vocab"] = content["model"]["vocab"] | {"GA": len(content["model"]["vocab"]) + 100_000}
    assert Tokenizer.from_str(json.dumps(joining)).encode("<dna>GA</dna>").tokens == ["<dna>", "GA", "</dna>"]
    assert LookupTokenizer.of(json.dumps(joining), Spelling(kmer)) is None
