"""The template lint: what the paper got wrong is found, and what it means is not (A-56)."""

import pytest

from polysome.specs import Dataset, dataset, names
from polysome.specs.lint import lint

LABELS = {
    "binary": {"kind": "binary"},
    "regression": {"kind": "regression"},
    "multiclass": {"kind": "multiclass", "classes": ["tRNA", "miRNA"]},
    "multilabel": {"kind": "multilabel", "classes": ["m6A", "Psi"]},
    "prs": {"kind": "multi_regression", "outputs": ["ON", "OFF", "ON_OFF"]},
    "ea": {"kind": "multi_regression", "outputs": ["Dev_enrichment", "Hk_enrichment"]},
}
METRICS = {"binary": "mcc", "regression": "spearman", "multiclass": "accuracy", "multilabel": "auc"}


def problems(kind: str, *questions: str, level: str = "error", **answers: list[str]) -> list[str]:
    """What the lint says of these questions and answers."""
    label = LABELS[kind]
    numbers = "".join(f"{{label_{name}}} " for name in label.get("outputs", []))
    pools = answers or {"any": [numbers or "It is {label}."]}
    if kind == "binary" and not answers:
        pools = {"positive": ["Yes."], "negative": ["No."]}
    content = dataset("core_promoter").model_dump()
    content["task"] |= {
        "label": label,
        "metric": METRICS.get(kind, "mean_pearson_r2"),
        "reasoning": [],
        "subset_titles": {},
        "templates": {
            "questions": [f"{{sequence}} {text}" for text in questions] or ["{sequence} ?"],
            "answers": pools,
        },
    }
    return [found.problem for found in lint(Dataset.model_validate(content)) if found.level == level]


@pytest.mark.parametrize(
    ("kind", "question"),
    [
        # the question asks only for the ratio, and the answer gives three numbers.
        ("binary", "Predict the value of the cell entry as a number."),
        ("binary", "Rate the uptake from 1 to 10."),
        ("binary", "What is the uptake percentage?"),
        ("prs", "What ON/OFF ratio can be expected from the sequence?"),
        ("prs", "How strong is the ON state?"),
        ("ea", "Predict the developmental enhancer activity."),
        ("prs", "Do ON, OFF and ON/OFF differ?"),
        ("binary", "Which promoter is this?"),
        ("binary", "How strong is the promoter?"),
        ("binary", "What is the value of the binding score?"),
        ("regression", "Is this protein stable?"),
        ("regression", "Does it melt, yes or no?"),
        ("regression", "Which class of stability does it have?"),
        ("multiclass", "Is this a tRNA?"),
        ("multiclass", "How many stems does it have?"),
        ("multilabel", "Does this RNA carry a modification?"),
    ],
)
def test_a_question_that_asks_for_something_else_is_refused(kind, question):
    assert len(problems(kind, question)) == 1


@pytest.mark.parametrize(
    ("kind", "question"),
    [
        # Wordings printed in the paper.
        ("binary", "Are there any characteristic epigenetic marks in this DNA?"),
        ("binary", ": Evaluate this sequence for potential promoter regions."),
        ("binary", "Can solubility be confirmed for this protein?"),
        ("binary", "promoter + enhancer: connected?"),
        ("ea", "Enhancer activity in this sequence - what's the deal?"),
        ("regression", "How effective is the predicted fluorescence for this GFP sequence?"),
        ("multilabel", "What is the specific activity of this protein as an enzyme?"),
        # Other ways to ask.
        ("binary", "Tell me which it is: promoter or not?"),
        ("binary", "How about this one: is it a promoter?"),
        ("prs", "What are the ON, OFF and ON/OFF values?"),
        ("prs", "Predict all three values."),
        ("prs", "ON state, OFF state and the ratio of the two?"),
        ("ea", "Housekeeping and developmental activity?"),
        ("regression", "Could you estimate the melting temperature?"),
        ("regression", "Can the melting temperature be predicted?"),
        ("multiclass", "Is this a tRNA or a miRNA?"),
        ("multiclass", "Can you name the family?"),
    ],
)
def test_a_question_that_asks_for_its_label_is_let_pass(kind, question):
    assert problems(kind, question) == []


@pytest.mark.parametrize(
    ("positive", "negative"),
    [
        ("No, it is not.", "No."),
        ("Yes.", "Yes, it is."),
        ("Yes.", "A promoter is present."),
        ("It is.", "It is."),
    ],
)
def test_an_answer_in_the_wrong_pool_is_refused(positive, negative):
    assert problems("binary", "Is it?", positive=[positive], negative=[negative])


def test_answers_that_fit_their_pool_are_let_pass():
    positive = ["Yes, no doubt.", "This protein shows positive solubility.", "A promoter is found."]
    negative = ["No.", "The two don't bind.", "Absent.", "It lacks a promoter.", "This is a non-promoter."]
    assert problems("binary", "Is it?", positive=positive, negative=negative) == []


def test_a_number_is_not_told_with_yes():
    assert problems("regression", "How much?", any=["Yes, {label}."]) == ["says yes or no, and the label is regression"]


def test_equal_wordings_and_short_pools_are_found():
    assert len(problems("binary", "Is it a promoter?", "is it a  Promoter ?")) == 1
    assert "1 wordings, 10 or more teach more" in problems("binary", "Is it?", level="warning")


@pytest.mark.parametrize("name", names())
def test_every_declared_template_passes(name):
    assert [found for found in lint(dataset(name)) if found.level == "error"] == []
