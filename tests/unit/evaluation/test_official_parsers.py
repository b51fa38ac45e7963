"""What both parsers make of answers as models give them: the paper's mistakes kept, ours without (F-3..F-5, AMB-9)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polysome.evaluation.json_answers import json_answer
from polysome.evaluation.official import DENIED, WRONG, official_parser, read_binary, read_class, read_numbers
from polysome.evaluation.parsers import Prediction, parser
from polysome.specs import Label, MulticlassLabel, MultilabelLabel, Task, dataset

BINARY, CLASS, NUMBER, TWO, THREE = (
    "core_promoter",
    "ncrna_family",
    "fluorescence",
    "enhancer_activity",
    "toehold_switches",
)
MODIFICATION, EC, TEXT = "rna_modification", "ec_number", "mol_instructions_general_function"

RECORDED = [
    # task, answer, strict, official
    (BINARY, "Yes", 1.0, 1.0),
    (BINARY, "Yes, this sequence contains a core promoter.", 1.0, 1.0),
    (BINARY, "There is no evidence", 0.0, 0.0),
    (BINARY, "Yesterday nothing", None, 1.0),
    (BINARY, "unknown", None, 0.0),
    (BINARY, "I don't know.", None, 0.0),
    (BINARY, "I am unsure about this one.", None, WRONG),
    (BINARY, "A promoter is present.", 1.0, None),
    (BINARY, "The adenosine-rich region contains a promoter.", 1.0, 0.0),
    (BINARY, "It is not clear, yes or no?", None, 1.0),
    (BINARY, "A promoter is not absent.", 1.0, 0.0),
    (BINARY, '{"answer": "Yes"}\nThere is no doubt about it.', 1.0, 1.0),
    (BINARY, '```json\n{"Answer": false}\n```', 0.0, 0.0),
    (BINARY, "{'answer': 'No'}", 0.0, 0.0),
    (BINARY, '{"answer": "unsure"}', None, WRONG),
    (BINARY, '{"answer": null, "reason": "yes it binds"}', 1.0, 1.0),
    (BINARY, "The answer is \\boxed{\\text{no}}.", 0.0, 0.0),
    (BINARY, "<think>No TATA box, so no.</think>Yes.", 1.0, 1.0),
    (BINARY, "<think>It looks like yes, because", None, 1.0),
    (BINARY, "", None, None),
    (CLASS, "The class is tRNA.", "tRNA", "tRNA"),
    (CLASS, "Intron_gpII", "Intron_gpII", "Intron_gpII"),
    (CLASS, "an intron gpI", "Intron_gpI", None),
    (CLASS, "Either tRNA or scaRNA.", None, "scaRNA"),
    (CLASS, "It is not a tRNA but a HACA-box.", "HACA-box", "HACA-box"),
    (CLASS, "It is not a tRNA.", None, "tRNA"),
    (CLASS, "misleadering", None, "leader"),
    (CLASS, '{"answer": "miRNA"}', "miRNA", "miRNA"),
    (NUMBER, "The GFP's fluorescence is calculated to be 3.52.", 3.52, 3.52),
    (NUMBER, "5' UTR loading is 6.10", 6.1, 5.0),
    (NUMBER, "1e-3", 0.001, 1.0),
    (NUMBER, "0.123456789", 0.123457, 0.123457),
    (NUMBER, "27 of 40 residues are charged. Therefore the answer is 3.4.", 3.4, 27.0),
    (NUMBER, '{"answer": "3.1"} because 5 mutations', 3.1, 3.1),
    (NUMBER, '{"answer": 2.75}', 2.75, 2.75),
    (NUMBER, "<think>5 mutations</think>2.9", 2.9, 2.9),
    (NUMBER, "<think>5 mutations", None, 5.0),
    (NUMBER, "very bright", None, None),
    (NUMBER, "9" * 400, None, None),
    (TWO, "HK - 0.53, Dev - -1.2", (0.53, -1.2), (0.53, -1.2)),
    (TWO, "0.53, -1.2", (0.53, -1.2), (0.53, -1.2)),
    (TWO, "Dev: 0.1, HK: 0.9", (0.9, 0.1), (0.1, 0.9)),
    (TWO, "0.1 (developmental) and 0.9 (housekeeping)", (0.9, 0.1), (0.1, 0.9)),
    (TWO, "Dev and HK are 0.1 and 0.9", (0.9, 0.1), (0.1, 0.9)),
    (TWO, "HK: 0.5, HK: 0.7", None, (0.5, 0.7)),
    (TWO, "HK: 0.5", None, None),
    (TWO, "HK is 0.5, and HK twice would be 0.7", (0.5, 0.7), (0.5, 0.7)),
    (TWO, "0.5, 0.6, 0.7", None, None),
    (TWO, '{"answer": {"dev": -0.25, "hk": 0.5}}', (0.5, -0.25), (-0.25, 0.5)),
    (TWO, "Of 249 bases. Final answer: 0.5 and 0.6", (0.5, 0.6), None),
    (THREE, "ON/OFF: 0.3, ON: 0.8, OFF: 0.5", (0.8, 0.5, 0.3), (0.3, 0.8, 0.5)),
    (THREE, "With its trigger it reaches 0.8; without it, 0.5; ON/OFF is 0.3.", (0.8, 0.5, 0.3), (0.8, 0.5, 0.3)),
    (THREE, "0.8 and 0.5", None, None),
    (MODIFICATION, "m6A,m5C", ["m5C", "m6A"], ["m5C", "m6A"]),
    (MODIFICATION, "The RNA modifications are predicted as m6Am.", ["m6Am"], ["m6Am"]),
    (MODIFICATION, "none", [], []),
    (MODIFICATION, "None.", [], DENIED),
    (MODIFICATION, "No modifications are present.", [], DENIED),
    (MODIFICATION, "It carries m6A, not m5C.", ["m6A"], ["m5C", "m6A"]),
    (MODIFICATION, "I am sure that it is M6A.", ["m6A"], None),
    (MODIFICATION, "m6A and none of the others", None, ["m6A", "none"]),
    (MODIFICATION, "unknown", None, DENIED),
    (MODIFICATION, "pseudouridine", None, None),
    (MODIFICATION, '{"answer": ["Psi", "AtoI"]}', ["Psi", "AtoI"], ["Psi", "AtoI"]),
    (MODIFICATION, '{"answer": []}', [], []),
    (EC, "The EC number is EC2.7.11.1,EC2.7.11.-.", ["2.7.11.-", "2.7.11.1"], ["2.7.11.-", "2.7.11.1"]),
    (EC, "2.7.7.n1", ["2.7.7.n1"], None),
    (EC, "EC 4.2.1.1 and EC 9.9.9.9", ["4.2.1.1"], ["4.2.1.1"]),
    (EC, "9.9.9.9", [], None),
    (EC, "Rather 3.4.25.1 than a kinase. It is not 2.7.11.1.", ["3.4.25.1"], ["2.7.11.1", "3.4.25.1"]),
    (EC, "This is no enzyme.", None, None),
    (TEXT, "<think>a kinase?</think> It binds ATP.", "It binds ATP.", "It binds ATP."),
    (TEXT, "<think>a kinase?", None, "<think>a kinase?"),
    (TEXT, "  \n", None, None),
]


def task_of(name: str) -> Task:
    task = dataset(name).task
    assert task is not None
    return task


def prediction(label: Label, expected: object) -> Prediction:
    """The expectation of the table as the parsers write it."""
    if isinstance(expected, float):
        return (expected,)
    if isinstance(expected, str) and isinstance(label, MulticlassLabel):
        return (float(label.classes.index(expected)),)
    if isinstance(expected, list):
        assert isinstance(label, MultilabelLabel)
        names = [*label.classes, "none"] if "none" not in label.classes else label.classes
        return tuple(sorted(float(names.index(name)) for name in expected))
    return expected  # type: ignore[return-value]


@pytest.mark.parametrize(("name", "text", "strict", "official"), RECORDED)
def test_recorded_answers(name: str, text: str, strict: object, official: object) -> None:
    task = task_of(name)
    assert parser(task)(text) == prediction(task.label, strict)
    told = parser(task, style="official")(text)
    if official in (WRONG, DENIED):
        assert told is official
    else:
        assert told == prediction(task.label, official)


def test_a_sentiment_model_judges_only_what_no_keyword_decides() -> None:
    """A-101: neutral is ignored, the larger of the two counts."""
    asked = []

    def sentiment(text: str) -> tuple[float, float]:
        asked.append(text)
        return (0.2, 0.3) if "positive" in text else (0.3, 0.2)

    parse = parser(task_of(BINARY), style="official", sentiment=sentiment)
    assert [parse(text) for text in ("This shows positive activity.", "It is a spacer.", "Yes", "unsure", " ")] == [
        (1.0,),
        (0.0,),
        (1.0,),
        WRONG,
        None,
    ]
    assert asked == ["This shows positive activity.", "It is a spacer."]
    names = parser(task_of(MODIFICATION), style="official", sentiment=sentiment)
    assert names("A plain transcript.") is DENIED
    assert names("A positive transcript.") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("HK - 0.53, Dev - -1.2", [0.53, -1.2]),
        ("5' UTR loading is 6.10", [5, 6.1]),
        ("1e-3", [1, -3]),
        ("between 1-2", [1, -2]),
        ("0.123456789", [0.123457]),
    ],
)
def test_official_numbers(text: str, expected: list[float]) -> None:
    """F-3."""
    assert read_numbers(text) == expected


@given(st.text(max_size=40))
def test_official_keywords_go_by_substring_in_order(text: str) -> None:
    """A-101: whatever stands around it, "yes" wins over "no", and "no" over all the rest."""
    assert read_binary(f"{text}yes no unknown") == (1.0,)
    if "yes" not in f"{text}no unsure".lower():
        assert read_binary(f"{text}no unsure") == (0.0,)


def test_official_classes_are_case_sensitive_and_longest_first() -> None:
    classes = ["Intron_gpI", "Intron_gpII", "tRNA"]
    assert read_class("tRNA? Intron_gpII", classes) == (1.0,)
    assert read_class("TRNA", classes) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('Sure. {"reason": {"a": 1}} {"ANSWER": " m6A "} rest', "m6A"),
        ('{"answer": {"hk": 0.5, "dev": [1, true]}}', "hk: 0.5, dev: 1, yes"),
        ('{"answer": ""} {"answer": "no"}', "no"),
        ('{"a": {"answer": 3}}', "3"),
        ("{answer: yes}", None),
        ('{"answer": ', None),
        ("{" * 3000, None),
        ('{"answer": ' + "[" * 3000, None),
        ("{'answer': " + "(" * 1500 + "}", None),
        ("no object", None),
    ],
)
def test_json_answers(text: str, expected: str | None) -> None:
    assert json_answer(text) == expected


@given(st.text(max_size=200))
def test_no_answer_breaks_a_parser(text: str) -> None:
    """What models write is anything."""
    for name in (BINARY, CLASS, NUMBER, TWO, MODIFICATION, EC, TEXT):
        task = task_of(name)
        for style in ("strict", "official"):
            parser(task, style=style)(text)  # type: ignore[arg-type]


def test_official_parser_is_the_one_that_the_style_chooses() -> None:
    assert official_parser(task_of(BINARY))("Yesterday") == parser(task_of(BINARY), style="official")("Yesterday")
