"""The strict parsers on the fixtures of the requirements (F-3..F-5) and on answers that models really give."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polysome.data.render import answer
from polysome.evaluation import parsers
from polysome.specs import MultilabelLabel, Value, dataset, names

CLASSES = ["5S_rRNA", "5_8S_rRNA", "tRNA", "Intron_gpI", "Intron_gpII", "HACA-box", "leader"]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        # F-4 strict
        ("Yes", 1.0),
        ("There is no evidence", 0.0),
        ("Yesterday nothing", None),
        ("unknown", None),
        ("This protein shows positive solubility.", 1.0),
        # the product's templates
        ("Yes, this sequence contains a promoter.", 1.0),
        ("No promoter is present.", 0.0),
        ("TATAAA stands at position 12. Therefore the answer is yes.", 1.0),
        ("No TATAAA is found. It is present in one changed form. Therefore the answer is no.", 0.0),
        # the marked final answer comes before all that was said on the way
        ("<think>No, no, absent.</think>Yes", 1.0),
        ("<think>yes, present, yes", None),
        ('{"answer": "No"} although a box is present', 0.0),
        ("So \\boxed{\\text{Yes}} it is, not no.", 1.0),
        ("The answer is: no. Final answer: **Yes**", 1.0),
        ("Yes, it does. My answer is based on the motif.", 1.0),
        ("Yes, a box is present. Final answer: cannot be determined", None),
        ("A promoter is present. \\boxed{-} The answer is yes.", None),
        ("A promoter is present. \\boxed{} The answer is no.", 0.0),
        # negation
        ("This sequence does not contain a promoter.", 0.0),
        ("It doesn\u2019t bind.", 0.0),
        ("The promoter is not absent.", 1.0),
        ("No doubt, a promoter is present.", 1.0),
        ("A non-promoter sequence.", 0.0),
        # no clear side
        ("Yes/No", None),
        ('"No" or "yes"?', None),
        ("Yes or no? Yes.", 1.0),
        ("**Yes**", 1.0),
        ('"No", the other side says yes.', 0.0),
        ("It could be yes or no.", None),
        ("The box is present. The initiator is absent.", None),
        ("I don't know whether one is present.", None),
        ("ACGTACGTTA", None),
        ("", None),
    ],
)
def test_binary(text: str, label: float | None) -> None:
    assert parsers.parse_binary(text) == label


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # F-3 strict
        ("HK - 0.53, Dev - -1.2", [0.53, -1.2]),
        ("5' UTR loading is 6.10", [6.1]),
        ("0.123456789", [0.123457]),
        ("1e-3", [0.001]),
        ("between 1-2", [1.0, 2.0]),
        ("H3K4me3, m6A, IL-2 and 25nM hold no number", []),
        ("3\u2032 end \N{MINUS SIGN}4.0 and 1,234.5, then .5", [-4.0, 1234.5, 0.5]),
        ("version 1.2.3", []),
    ],
)
def test_numbers(text: str, expected: list[float]) -> None:
    assert parsers.numbers(text) == expected


@given(st.floats(min_value=-1e6, max_value=1e6).map(lambda value: round(value, 3)))
def test_a_written_number_is_read_back_to_six_digits(value: float) -> None:
    assert parsers.parse_number(f"The value is {value:.3f}.") == pytest.approx(value, rel=5e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The value is 0.43 (scale 0-1).", 0.43),
        ("27 of 40 residues are charged. Therefore the answer is 63.75.", 63.75),
        ("<think>1 2 3</think> 4.5", 4.5),
        ("<think>1 2 3", None),
        ("very stable", None),
        ("It has 249 residues. Final answer: cannot be determined", None),
        ('{"answer": "cannot determine", "confidence": 0.2}', None),
        ("It has 249 residues, \\boxed{unknown} of them charged.", None),
        ('{"answer": null, "confidence": 0.2}', 0.2),
        ("249. Final answer:", 249.0),
        ("The answer is 7. My answer is based on 249 residues.", 7.0),
    ],
)
def test_a_single_number_comes_from_the_final_answer_first(text: str, value: float | None) -> None:
    assert parsers.parse_number(text) == value


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("The class is tRNA.", "tRNA"),
        ("The non-coding RNA family is tRNA.", "tRNA"),
        ("Intron_gpII", "Intron_gpII"),  # F-5: never Intron_gpI
        ("It is an intron gpI.", "Intron_gpI"),
        ("5_8S_rRNA", "5_8S_rRNA"),
        ("scaRNA or preleader", None),
        ("It may be tRNA or leader.", None),
        ("Not a tRNA but a HACA-box.", "HACA-box"),
        ("It is not a tRNA.", None),
        ("A tRNA or a leader? The answer is leader.", "leader"),
        ("<think>tRNA</think>tRNA, no: leader", "leader"),
        ("It looks like a tRNA. Final answer: none of these", None),
    ],
)
def test_classes(text: str, name: str | None) -> None:
    index = parsers.parse_class(text, CLASSES)
    assert (None if index is None else CLASSES[int(index)]) == name


def test_names_that_differ_in_case_alone_are_told_apart() -> None:
    assert parsers.parse_class("it is AM", ["Am", "AM"]) == 1.0
    assert parsers.parse_class("it is am", ["Am", "AM"]) is None


@pytest.mark.parametrize(
    ("text", "names"),
    [
        # F-5
        ("m6Am", ["m6Am"]),
        ("m6A,m5C", ["m5C", "m6A"]),
        ("m6A, m6Am and Am", ["Am", "m6A", "m6Am"]),
        ("M1A or m1a", ["m1A"]),
        ("I am sure it is psi.", None),
        ("There is Am but neither Cm nor Gm.", ["Am"]),
        ("Modifications: none.", []),
        ("It carries no modification.", []),
        ("The fragment is unmodified.", []),
        ("It is not m6A.", None),
        ("It is unclear whether m6A is present.", None),
        ("<think>Am, Cm</think>none", []),
        ("Am, perhaps. Final answer: m7G", ["m7G"]),
        ("It holds Am. Final answer: some", None),
    ],
)
def test_sets_of_names(text: str, names: list[str] | None) -> None:
    label = dataset("rna_modification").task.label  # type: ignore[union-attr]
    assert isinstance(label, MultilabelLabel)
    told = parsers.parse_labels(text, label)
    assert (None if told is None else [label.classes[int(index)] for index in told]) == names


def test_a_task_without_none_cannot_be_answered_by_none() -> None:
    label = MultilabelLabel(kind="multilabel", classes=["a1", "b2"])
    assert parsers.parse_labels("There are none.", label) is None
    assert parsers.parse_labels("b2", label) == (1.0,)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        # F-14, AMB-15
        ("2.7.7.n1", ["2.7.7.n1"]),
        ("EC2.7.7.N1.", ["2.7.7.n1"]),
        ("EC:1.4.3.\N{EN DASH} and ec 4.2.1.1.", ["1.4.3.-", "4.2.1.1"]),
        ("version 14.2.1.1.5", None),
        ("x4.2.1.1", None),
        ("4.2.1.11", ["4.2.1.11"]),
        ("9.9.9.9", []),
        ("Like 4.2.1.1. Final answer: another", None),
    ],
)
def test_enzyme_numbers(text: str, numbers: list[str] | None) -> None:
    label = dataset("ec_number").task.label  # type: ignore[union-attr]
    assert isinstance(label, MultilabelLabel)
    assert (len(label.classes), sum(name.endswith("-") for name in label.classes)) == (538, 161)
    told = parsers.parse_ec_numbers(text, label.classes)
    assert (None if told is None else [label.classes[int(index)] for index in told]) == numbers


def test_parents_of_enzyme_numbers_are_named_where_they_are_listed_and_wished() -> None:
    classes = ["2.7.7.7", "2.7.7.-", "2.7.-.-", "1.1.1.1"]
    assert parsers.parse_ec_numbers("2.7.7.7", classes) == (0.0,)
    assert parsers.parse_ec_numbers("2.7.7.7", classes, parents=True) == (0.0, 1.0, 2.0)
    assert parsers.parse_ec_numbers("2.7.7.-", classes, parents=True) == (1.0, 2.0)
    assert parsers.parse_ec_numbers("2.7.9.9", classes, parents=True) == (2.0,)


@given(st.permutations(["ON", "OFF", "ON_OFF"]), st.lists(st.integers(-99, 99), min_size=3, max_size=3))
def test_named_numbers_are_read_in_any_order(order: list[str], values: list[int]) -> None:
    told = dict(zip(order, values, strict=True))
    for wording in ("{}: {}", "{} state = {}"):
        text = ", ".join(wording.format(name, value) for name, value in told.items())
        assert parsers.parse_numbers(text, ["ON", "OFF", "ON_OFF"]) == (told["ON"], told["OFF"], told["ON_OFF"])


def test_every_answer_that_a_declared_template_can_give_is_parsed_as_its_label() -> None:
    for spec in map(dataset, names()):
        if spec.task is None or spec.task.label.kind == "generation":
            continue
        label = spec.task.label
        values: list[Value] = {
            "binary": [(0.0,), (1.0,)],
            "multiclass": [(0.0,), (1.0,)],
            "multilabel": [(0.0,), (0.0, 3.0)] + ([()] if getattr(label, "none", None) else []),
            "regression": [(0.75,)],
            "multi_regression": [tuple(0.25 + 0.5 * place for place in range(len(getattr(label, "outputs", ()))))],
        }[label.kind]
        parse = parsers.parser(spec.task)
        for value in values:
            for template in range(len(spec.task.templates.answers[label.pool(value)])):
                text = answer(spec, value, template)
                told = (float(label.encode(value)),) if label.kind == "regression" else value
                assert parse(text) == told, text
