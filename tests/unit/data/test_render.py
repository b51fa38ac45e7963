"""Rendering: templates, tags, chat frames and k-mer spelling, against the tokenizer's own chat template."""

import pytest
from rendering import example, examples_of

from polysome.config import ConfigurationError, DataError
from polysome.data.frame import Spelling
from polysome.data.render import (
    ChatFrame,
    Chosen,
    Style,
    TaskTag,
    answer,
    asked,
    check_style,
    choose,
    choose_answer_template,
    choose_question_template,
    chosen,
    messages,
    question,
    reasoning_answer,
    render,
    spell,
    told,
)
from polysome.data.tokenizer_files import load_tokenizer, tokenizer_fingerprint
from polysome.models.tokenizer import build_per_base_tokenizer
from polysome.specs import CONCISE_SYSTEM_PROMPT, Dataset, dataset

TEXTS = [CONCISE_SYSTEM_PROMPT, "Is there a promoter? Yes, there is. No, there is not."]


def with_task(**changes) -> Dataset:
    """The core promoters with other fields in their task."""
    content = dataset("core_promoter").model_dump()
    for name, value in changes.items():
        within = content["task"]["templates"] if name in ("questions", "answers", "conditioned") else content["task"]
        within[name] = value
    if "label" in changes:
        content["task"]["reasoning"] = []
    return Dataset.model_validate(content)


@pytest.fixture(scope="module", params=[(1, 1), (4, 1), (4, 2)], ids=str)
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    kmer, protein_kmer = request.param
    build_per_base_tokenizer(folder, TEXTS, vocabulary_size=400, kmer=kmer, protein_kmer=protein_kmer)
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
    assert answer(spec, (1.0,)).startswith("Yes")
    assert answer(spec, (0.0,)).startswith("No")
    assert reasoning_answer(spec, ["TATAAAGGGCGG"], (1.0,)).endswith("Therefore the answer is yes.")
    assert answer(dataset("planted_thermostability"), (55.0,)) == "The melting temperature is 55."


def test_answers_of_several_numbers_names_and_free_text():
    switch = with_task(
        label={"kind": "multi_regression", "outputs": ["ON", "OFF", "ON_OFF"]},
        metric="mean_pearson_r2",
        answers={"any": ["ON {label_ON}, OFF {label_OFF}, ratio {label_ON_OFF}."]},
    )
    assert answer(switch, (0.5, 0.25, -0.001)) == "ON 0.50, OFF 0.25, ratio 0.00."
    marks = with_task(
        label={"kind": "multilabel", "classes": ["m6A", "Psi"], "none": "none"},
        metric="auc",
        answers={"any": ["Modified: {label}."]},
    )
    assert answer(marks, (0.0, 1.0)) == "Modified: m6A,Psi."
    assert answer(marks, ()) == "Modified: none."
    free = with_task(label={"kind": "generation"}, metric="rouge_l", answers={})
    row = example(label=None, answer="It is a kinase.")
    assert told(free, row, chosen(free, row, 1), "concise") == "It is a kinase."
    with pytest.raises(DataError, match="no answer"):
        told(free, example(label=None), Chosen(0, None, False), "concise")


@pytest.mark.parametrize(
    ("template", "position", "wanted"),
    [
        ("{sequence}: Evaluate it.", "before_question", "<dna>AC</dna>: [T] Evaluate it."),
        ("{sequence} Which one?", "before_question", "<dna>AC</dna> [T] Which one?"),
        ("{sequence} Which one?", "before_sequence", "[T] <dna>AC</dna> Which one?"),
        ("Is {sequence} one?", "before_question", "[T] Is <dna>AC</dna> one?"),
        ("{sequence}", "before_question", "[T] <dna>AC</dna>"),
    ],
)
def test_the_tag_stands_where_the_recipe_wants_it(template, position, wanted):
    spec = with_task(questions=[template], tag="[T]", release_tag="[release]")
    style = Style(TaskTag(position=position))
    assert question(spec, ["AC"], tagged=True, style=style) == wanted
    released = Style(TaskTag(position=position, style="release"), tag_style="release")
    assert question(spec, ["AC"], tagged=True, style=released) == wanted.replace("[T]", "[release]").replace("/", "")


def test_the_tag_follows_two_leading_molecules():
    pair = dataset("planted_binding")
    tagged = question(pair, ["ACGU", "MKV"], template=0, tagged=True)
    assert tagged.startswith("<rna>ACGU</rna> <protein>MKV</protein> [Classification: RNA-protein")


def test_conditioned_questions_name_the_subset():
    """AMB-12: the mark, factor or cell line that the faithful wording leaves out."""
    subset = dataset("core_promoter").splits["train"][0].subset
    spec = with_task(conditioned=["{sequence} Is {subset} here?"], subset_titles={subset: "a TATA promoter"})
    row = example(subset=subset)
    style = Style(TaskTag(fraction=0), wording="conditioned")
    assert asked(spec, row, chosen(spec, row, 1, style), style) == "<dna>ACGT</dna> Is a TATA promoter here?"
    assert question(spec, ["AC"], subset="other", style=style) == "<dna>AC</dna> Is other here?"
    with pytest.raises(DataError, match="subset"):
        question(spec, ["AC"], style=style)


def test_what_a_data_set_cannot_be_rendered_in_is_named_before_work_starts():
    spec = dataset("core_promoter")
    with pytest.raises(ConfigurationError, match="conditioned"):
        check_style(with_task(conditioned=[]), Style(wording="conditioned"))
    with pytest.raises(ConfigurationError, match="release"):
        check_style(with_task(release_tag=None), Style(TaskTag(style="release")))
    with pytest.raises(ConfigurationError, match="do not close"):
        check_style(spec, Style(tag_style="release"), spelling=Spelling(6))
    check_style(with_task(release_tag=None), Style(TaskTag(style="release", fraction=0)))


def test_a_records_own_question_keeps_its_wording():
    """Imported rows (A-5): places are named by type, in the order of the sequences; other braces are text."""
    rows = dataset("core_promoter").model_copy(update={"task": None, "molecules": []})
    text = "Does {dna1} {bind} {protein}, or {dna2}?"
    row = example(sequences=["AC", "MK", "GT"], question=text, label=None, answer="No.")
    drawn = chosen(rows, row, 1)
    assert drawn == Chosen(None, None, False)
    assert asked(rows, row, drawn) == "Does <dna>AC</dna> {bind} <protein>MK</protein>, or <dna>GT</dna>?"
    with pytest.raises(DataError, match="places"):
        asked(rows, row | {"sequences": ["AC"]}, drawn)


@pytest.mark.parametrize("prompt", ["concise", "reasoning"])
@pytest.mark.parametrize("name", ["core_promoter", "planted_binding", "planted_thermostability"])
def test_a_block_is_rendered_as_its_rows_are(name, prompt):
    spec = dataset(name)
    table = examples_of(spec, 60)
    block = render(table, spec, prompt=prompt, seed=3)
    for number, row in enumerate(table.to_pylist()):
        drawn = chosen(spec, row, 3)
        assert block.skeletons[block.skeleton_of[number]].fill(row["sequences"]) == asked(spec, row, drawn)
        assert block.answers[block.answer_of[number]] == told(spec, row, drawn, prompt)
        assert drawn.question_template == choose_question_template(spec, row["id"], 3)
        assert drawn.answer_template == choose_answer_template(spec, tuple(row["label"]), row["id"], 3)
    tagged = sum(chosen(spec, row, 3).tagged for row in table.to_pylist())
    assert 0 < tagged < table.num_rows


def test_choice_is_seeded_and_spread():
    values = [choose(f"id{number}", 1, "tag") for number in range(2000)]
    assert abs(sum(value < 0.3 for value in values) / 2000 - 0.3) < 0.03
    assert choose("id1", 1, "tag") != choose("id1", 2, "tag") != choose("id1", 1, "question")
    spec = dataset("core_promoter")
    assert {choose_question_template(spec, f"id{number}", 5) for number in range(200)} == set(range(10))


@pytest.mark.parametrize("prompt", ["concise", "concise_reference", "reasoning", "none"])
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
        spelled = spell(f"<dna>{sequence}</dna>", frame.spelling)
        assert len(tokenizer.encode(spelled, add_special_tokens=False)) == len(sequence) - frame.spelling.kmer + 3


def test_spelling():
    assert spell("<dna>ACGTA</dna>", Spelling(3)) == "<dna> ACG CGT GTA</dna>"
    assert spell("<dna>AC</dna> <protein>ACGTA</protein>", Spelling(3)) == "<dna>AC</dna> <protein>ACGTA</protein>"


def test_fingerprint_follows_vocabulary_and_template(tmp_path):
    for name, kmer in (("a", 1), ("b", 1), ("c", 3)):
        build_per_base_tokenizer(tmp_path / name, TEXTS, vocabulary_size=400, kmer=kmer)
    assert tokenizer_fingerprint(tmp_path / "a") == tokenizer_fingerprint(tmp_path / "b")
    assert tokenizer_fingerprint(tmp_path / "a") != tokenizer_fingerprint(tmp_path / "c")
    config = tmp_path / "b" / "tokenizer_config.json"
    config.write_text(config.read_text().replace("<|'", "<| '"))
    assert tokenizer_fingerprint(tmp_path / "a") != tokenizer_fingerprint(tmp_path / "b")
