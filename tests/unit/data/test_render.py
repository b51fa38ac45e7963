"""Rendering: templates, tags, chat frames and k-mer spelling, against the tokenizer's own chat template."""

import pytest

from polysome.data.render import (
    ChatFrame,
    answer,
    choose,
    choose_question_template,
    messages,
    question,
    reasoning_answer,
    spell,
)
from polysome.data.tokenizer_files import load_tokenizer, tokenizer_fingerprint
from polysome.models.tokenizer import build_per_base_tokenizer
from polysome.specs import CONCISE_SYSTEM_PROMPT, dataset

TEXTS = [CONCISE_SYSTEM_PROMPT, "Is there a promoter? Yes, there is. No, there is not."]


@pytest.fixture(scope="module", params=[1, 4])
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"k{request.param}")
    build_per_base_tokenizer(folder, TEXTS, vocabulary_size=400, kmer=request.param)
    return load_tokenizer(folder)


def test_question_keeps_the_sequence_first_and_the_tag_between():
    spec = dataset("core_promoter")
    assert question(spec, ["ACGT"]) == "<dna>ACGT</dna> Is there a core promoter in this sequence?"
    tagged = question(spec, ["ACGT"], tagged=True)
    assert tagged.startswith("<dna>ACGT</dna> [Classification: core promoter detection] Is")
    pair = dataset("planted_binding")
    assert question(pair, ["ACGU", "MKV"], template=2, tagged=True).startswith("[Classification: RNA-protein")


def test_answers_come_from_the_pool_of_their_label():
    spec = dataset("core_promoter")
    assert answer(spec, 1.0).startswith("Yes")
    assert answer(spec, 0.0).startswith("No")
    assert reasoning_answer(spec, ["TATAAAGGGCGG"], 1.0).endswith("Therefore the answer is yes.")
    assert answer(dataset("planted_thermostability"), 55.0) == "The melting temperature is 55."


def test_choice_is_seeded_and_spread():
    values = [choose(f"id{number}", 1, "tag") for number in range(2000)]
    assert abs(sum(value < 0.3 for value in values) / 2000 - 0.3) < 0.03
    assert choose("id1", 1, "tag") != choose("id1", 2, "tag") != choose("id1", 1, "question")
    spec = dataset("core_promoter")
    assert {choose_question_template(spec, f"id{number}", 5) for number in range(200)} == set(range(10))


@pytest.mark.parametrize("prompt", ["concise", "reasoning", "none"])
def test_frame_is_the_chat_template_taken_apart(tokenizer, prompt):
    frame = ChatFrame.of(tokenizer, prompt)
    asked = "<dna>ACGTACGT</dna> near <rna>AC</rna> and <protein>MK</protein> ?"
    assert frame.prompt(asked) == tokenizer.apply_chat_template(
        messages(prompt, asked), add_generation_prompt=True, tokenize=False
    )
    told = tokenizer.apply_chat_template(messages(prompt, asked, "Yes."), tokenize=False)
    assert told == frame.prompt(asked) + "Yes." + frame.after
    assert frame.after == tokenizer.eos_token


def test_encoding_is_lossless_and_one_token_per_base(tokenizer):
    frame = ChatFrame.of(tokenizer, "concise")
    text = frame.prompt("<dna>ACGTNACGTTAC</dna> Ünïcode {x} 3.14 <rna>ACGUACGU</rna>") + "TATAAA, yes." + frame.after
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    for sequence in ("ACGTACGTACGTACGT", "A" * 40):
        spelled = spell(f"<dna>{sequence}</dna>", frame.kmer)
        assert len(tokenizer.encode(spelled, add_special_tokens=False)) == len(sequence) - frame.kmer + 3


def test_spelling():
    assert spell("<dna>ACGTA</dna>", 3) == "<dna> ACG CGT GTA</dna>"
    assert spell("<dna>AC</dna> <protein>ACGTA</protein>", 3) == "<dna>AC</dna> <protein>ACGTA</protein>"


def test_fingerprint_follows_vocabulary_and_template(tmp_path):
    for name, kmer in (("a", 1), ("b", 1), ("c", 3)):
        build_per_base_tokenizer(tmp_path / name, TEXTS, vocabulary_size=400, kmer=kmer)
    assert tokenizer_fingerprint(tmp_path / "a") == tokenizer_fingerprint(tmp_path / "b")
    assert tokenizer_fingerprint(tmp_path / "a") != tokenizer_fingerprint(tmp_path / "c")
    config = tmp_path / "b" / "tokenizer_config.json"
    config.write_text(config.read_text().replace("<|'", "<| '"))
    assert tokenizer_fingerprint(tmp_path / "a") != tokenizer_fingerprint(tmp_path / "b")
