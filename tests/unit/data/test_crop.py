"""Cropping (AMB-14): every chat fits, questions and answers stay whole, each rule keeps what it says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rendering import example, examples_of, table_of, write_bpe_tokenizer

from polysome.config import DataError
from polysome.data.crop import crop_to_fit, window
from polysome.data.render import wordings
from polysome.data.tokenize import Rendering, tokenize, verify_spans
from polysome.data.tokenizer_files import load_tokenizer
from polysome.models.tokenizer import build_per_base_tokenizer
from polysome.specs import Dataset, dataset

SPEC = dataset("planted_binding")
TEXTS = wordings(SPEC)


def with_crops(**crops) -> Dataset:
    """The planted pair with rules for its molecules, e.g. rna={"crop": "head"}."""
    content = SPEC.model_dump()
    for molecule in content["molecules"]:
        molecule |= {"maximum_length": 10**6} | crops.get(molecule["role"], {})
    content["task"]["reasoning"] = content["task"]["reasoning"] if crops.get("reasoning", True) else []
    return Dataset.model_validate(content)


def row(rna: str, protein: str):
    return example(id="x", sequences=[rna, protein])


@pytest.mark.parametrize(
    ("crop", "kept"), [("head", "ACGUAC"), ("tail", "GUACGU"), ("centre", "UACGUA")], ids=lambda value: str(value)
)
def test_the_rule_says_what_is_kept(crop, kept):
    spec = with_crops(rna={"crop": crop})
    assert window(["ACGUACGUACGU", "MK"], spec, 0, 6) == kept
    assert window(["ACGU", "MK"], spec, 0, 6) == "ACGU"


def paired() -> Dataset:
    """siRNA and its target, the target cropped around the match (A-43)."""
    content = SPEC.model_dump()
    content["molecules"][1] |= {"type": "dna", "crop": "match", "match_role": "rna", "maximum_length": 10**6}
    content["task"]["reasoning"] = []
    return Dataset.model_validate(content)


@given(
    left=st.text("ACGT", max_size=60),
    right=st.text("ACGT", max_size=60),
    guide=st.text("ACGU", min_size=12, max_size=20),
    antisense=st.booleans(),
    keep=st.integers(20, 60),
)
def test_a_match_stays_whole_within_the_window(left, right, guide, antisense, keep):
    complement = str.maketrans("ACGU", "TGCA")
    site = guide.translate(complement)[::-1] if antisense else guide.replace("U", "T")
    target = left + site + right
    kept = window([guide, target], paired(), 1, keep)
    assert len(kept) == min(keep, len(target))
    assert kept in target
    forms = (guide.translate(complement)[::-1], guide.replace("U", "T"))
    assert any(form in kept for form in forms)


@pytest.fixture(scope="module", params=["bases", "6-mers", "bpe"])
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "bpe":
        dice = np.random.default_rng(0)
        write_bpe_tokenizer(folder, [*TEXTS, "".join(dice.choice(list("ACGU"), 3000))], size=900)
    else:
        build_per_base_tokenizer(folder, TEXTS, vocabulary_size=400, kmer=6 if request.param == "6-mers" else 1)
    return load_tokenizer(folder), (folder / "tokenizer.json").read_text()


@pytest.mark.parametrize("prompt", ["concise", "reasoning"])
def test_every_chat_fits_and_keeps_its_question_and_answer(tokenizer, prompt):
    spec = with_crops(rna={"crop": "centre"}, protein={"crop": "head"})
    examples = examples_of(spec, 24, lengths=(1, 1500))
    settings = Rendering.of(tokenizer[0], chat=True, prompt=prompt, seed=1)
    limit = 640 if prompt == "concise" else 1100
    made = tokenize(examples, spec, settings, tokenizer[1], limit)
    lengths = made.documents["input_ids"].combine_chunks().value_lengths().to_numpy()
    assert lengths.max() <= limit
    whole = tokenize(examples, spec, settings, tokenizer[1], 100_000)
    before = whole.documents["input_ids"].combine_chunks().value_lengths().to_numpy()
    assert made.cropped == (before > limit).sum() > 5
    # Not cut to pieces: a cropped chat uses its room.
    assert lengths[before > limit].min() > 0.8 * limit
    assert (lengths == before)[before <= limit].all()
    assert verify_spans(made.documents, examples, spec, settings, tokenizer[1]) == 24
    assert {kind: made.characters[kind] + made.cut[kind] for kind in made.cut} == whole.characters


def test_the_budget_is_shared_by_length():
    spec = with_crops(rna={"crop": "head"}, protein={"crop": "head"})
    examples = table_of([row("A" * 300, "M" * 100)])

    def measure(table):
        return np.array([50 + sum(map(len, sequences)) for sequences in table["sequences"].to_pylist()], np.int64)

    fitting, count = crop_to_fit(examples, spec, np.array([450]), 250, measure)
    assert [len(text) for text in fitting["sequences"][0].as_py()] == pytest.approx([150, 50], abs=1)
    assert count.examples == 1
    assert count.cut["rna"] == pytest.approx(150, abs=1)
    only, _ = crop_to_fit(examples, with_crops(rna={"crop": "tail"}), np.array([450]), 250, measure)
    assert [len(text) for text in only["sequences"][0].as_py()] == [100, 100]


@given(
    lengths=st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), min_size=1, max_size=4),
    fixed=st.integers(0, 40),
    limit=st.integers(50, 200),
    cost=st.integers(1, 5),
)
def test_it_ends_for_any_tokenizer(lengths, fixed, limit, cost):
    """Tokens that depend on length in no smooth way: it ends, with chats that fit."""
    spec = with_crops(rna={"crop": "centre"}, protein={"crop": "tail"})

    def tokens(sequences):
        return fixed + sum(-(-len(text) // cost) + (len(text) * 7919) % 5 * (len(text) > 20) for text in sequences)

    def measure(table):
        return np.array([tokens(sequences) for sequences in table["sequences"].to_pylist()], np.int64)

    examples = table_of([row("A" * left, "M" * right) for left, right in lengths])
    counts = measure(examples)
    over = examples.filter([bool(count > limit) for count in counts])
    if over.num_rows:
        fitting, count = crop_to_fit(over, spec, counts[counts > limit], limit, measure)
        assert (measure(fitting) <= limit).all()
        assert count.examples == over.num_rows


def test_a_match_that_is_not_there_is_counted():
    spec = paired()
    settled = "ACGUACGGCAUU"
    rows = [row(settled, "G" * 200 + "ACGTACGGCATT" + "G" * 200), row("AAAAAAAAAAAA", "C" * 400)]

    def measure(table):
        return np.array([sum(map(len, sequences)) for sequences in table["sequences"].to_pylist()], np.int64)

    fitting, count = crop_to_fit(table_of(rows), spec, measure(table_of(rows)), 60, measure)
    assert (count.examples, count.unmatched) == (2, 1)
    assert "ACGTACGGCATT" in fitting["sequences"][0].as_py()[1]


def test_nothing_is_cropped_below_its_minimum_length():
    spec = with_crops(rna={"crop": "head", "minimum_length": 90})

    def measure(table):
        return np.array([sum(map(len, sequences)) for sequences in table["sequences"].to_pylist()], np.int64)

    with pytest.raises(DataError, match="500 tokens, a row takes 150"):
        crop_to_fit(table_of([row("A" * 400, "M" * 100)]), spec, np.array([500]), 150, measure)
    fitting, _ = crop_to_fit(table_of([row("A" * 400, "M" * 10)]), spec, np.array([410]), 100, measure)
    assert [len(text) for text in fitting["sequences"][0].as_py()] == [90, 10]


def test_it_fits_where_tokens_tell_nothing_of_length():
    """As many tokens for a million letters as for three hundred: at last a letter counts as one."""
    spec = with_crops(rna={"crop": "centre"})

    def measure(table):
        return np.array([min(len(rna), 300) + len(other) for rna, other in table["sequences"].to_pylist()], np.int64)

    examples = table_of([row("A" * 10**6, "M" * 20)])
    fitting, _ = crop_to_fit(examples, spec, measure(examples), 120, measure)
    assert 80 < measure(fitting)[0] <= 120
