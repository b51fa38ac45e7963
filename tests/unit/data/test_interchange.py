"""Interchange: nothing of the authors' rows is lost, and declared data leave in their form."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polysome.config import DataError
from polysome.data.clean import Refused
from polysome.data.interchange import (
    IMPORTED,
    ParsedInput,
    TaggedMolecule,
    export_imported,
    export_rows,
    import_rows,
    join_task_name,
    parse_input,
    split_task_name,
    write_input,
)
from polysome.data.render import Style, TaskTag
from polysome.data.schema import EXAMPLES
from polysome.specs import METRICS, Dataset, dataset


@pytest.mark.parametrize(
    ("text", "wording", "molecules", "tag"),
    [
        (
            "<dna>ACGT</dna> Are there any characteristic epigenetic marks in this DNA?",
            "{dna} Are there any characteristic epigenetic marks in this DNA?",
            [("dna", "ACGT", "xml")],
            None,
        ),
        (
            "<rna>ACGU<rna> [RNA modification classification] Which RNA modifications are inferred?",
            "{rna} [RNA modification classification] Which RNA modifications are inferred?",
            [("rna", "ACGU", "release")],
            "[RNA modification classification]",
        ),
        (
            "[Classification: core promoter dection] <dna>AC<dna>: Evaluate this.",
            "[Classification: core promoter dection] {dna}: Evaluate this.",
            [("dna", "AC", "release")],
            "[Classification: core promoter dection]",
        ),
        (
            "<dna>AA<dna> promoter + <dna>CC<dna> enhancer: connected?",
            "{dna1} promoter + {dna2} enhancer: connected?",
            [("dna", "AA", "release"), ("dna", "CC", "release")],
            None,
        ),
        (
            "Is there any recognition between this pair: <protein>MK<protein>>-<protein>MV<protein>>?",
            "Is there any recognition between this pair: {protein1}-{protein2}?",
            [("protein", "MK", "stray"), ("protein", "MV", "stray")],
            None,
        ),
        (
            "<rna>AC<rna> <dna>GT<dna> How does it perform?",
            "{rna} {dna} How does it perform?",
            [("rna", "AC", "release"), ("dna", "GT", "release")],
            None,
        ),
        ("What is a [promoter]? a < b > c {x}", "What is a [promoter]? a < b > c {x}", [], None),
    ],
)
def test_the_shapes_of_the_paper_are_taken_apart_and_put_together(text, wording, molecules, tag):
    """A-53, with both closing forms (A-52, AMB-4)."""
    parsed = parse_input(text)

    assert parsed == ParsedInput(wording, tuple(TaggedMolecule(*molecule) for molecule in molecules), tag)
    assert write_input(parsed) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<dna>ACGT Is it?", "<dna>: a molecule tag without its counterpart"),
        ("ACGT</rna> Is it?", "</rna>: a molecule tag without its counterpart"),
        ("<dna>AC<dna>GT<dna>", "<dna>: a molecule tag without its counterpart"),
        ("<dna>AC</rna>", "<dna>: a molecule tag without its counterpart"),
        ("<dna>AC</dna> and {dna}?", "{dna}: the text holds a placeholder of its own"),
    ],
)
def test_an_input_in_which_a_molecule_would_be_hidden_is_refused_with_the_reason(text, reason):
    with pytest.raises(Refused, match=f"^{reason}$"):
        parse_input(text)


fragments = st.sampled_from(
    [
        "<dna>",
        "</dna>",
        "<rna>",
        "</rna>",
        "<protein>",
        "</protein>",
        ">",
        "<",
        "{dna}",
        "{",
        "ACGT",
        " is it? ",
        "[",
        ": ",
    ]
)
inputs = st.lists(fragments | st.text(max_size=5), max_size=9).map("".join)


@settings(max_examples=200)
@given(text=inputs)
def test_any_input_that_is_taken_apart_is_put_together_equal(text):
    try:
        parsed = parse_input(text)
    except Refused:
        return
    assert write_input(parsed) == text


sequences = st.text(alphabet="ACGT", min_size=1, max_size=9)
plain = st.text(st.characters(exclude_characters="<>{}[]", exclude_categories=["Cs"]), max_size=9)
molecules = st.builds(
    TaggedMolecule, st.sampled_from(["dna", "rna", "protein"]), sequences, st.sampled_from(["xml", "release", "stray"])
)


@given(start=plain, parts=st.lists(st.tuples(molecules, plain), max_size=4))
def test_every_molecule_is_found_in_whatever_closing_form(start, parts):
    closings = {"xml": "</{0}>", "release": "<{0}>", "stray": "<{0}>>"}
    text = start + "".join(
        f"<{one.type}>{one.sequence}{closings[one.closing].format(one.type)}{after}" for one, after in parts
    )

    assert parse_input(text).molecules == tuple(molecule for molecule, _ in parts)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
rows = st.fixed_dictionaries(
    {},
    optional={
        "input": inputs | values,
        "output": st.text(st.characters(exclude_categories=["Cs"])) | values,
        "label": values,
        "task": st.sampled_from(["tf-h-0", "Isoform-Isoform", "enhancer_activity"]) | values,
        "result": values,
        "note": values,
    },
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(rows, max_size=5), block_bytes=st.integers(1, 300), escaped=st.booleans())
def test_what_was_imported_is_exported_equal_in_every_field(rows, block_bytes, escaped, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=escaped) + "\n" for row in [*rows, {}]), encoding="utf-8")

    tables = list(import_rows(str(path), block_bytes=block_bytes))
    written = [json.loads(line) for table in tables for line in export_imported(table)]

    assert written == [*rows, {}]
    assert [list(row) for row in written] == [list(row) for row in [*rows, {}]]
    assert [number for table in tables for number in table["record"].to_pylist()] == list(range(len(rows) + 1))


def imported(path: Path, *lines: str) -> list[dict[str, Any]]:
    path.write_text("\n".join(lines))
    tables = list(import_rows(str(path)))
    assert all(table.schema == IMPORTED for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def test_imported_rows_hold_molecules_wording_and_values_as_text(tmp_path: Path):
    one, two, three = imported(
        tmp_path / "x.jsonl",
        '{"input": "<rna>AC<rna> [Isoform prediction] How much?", "output": "It is 0.50.", "label": 0.50, '
        '"task": "Isoform-Isoform", "result": "0.4", "id": 7}',
        '{"input": "<dna>AC</dna>?", "output": "ON 1", "label": {"hk": 1.0, "dev": [null]}, "task": "tf-m-1"}',
        '{"input": "<dna>AC", "output": null, "label": null, "task": "emp-H3"}',
    )
    assert one == {
        "record": 0,
        "task": "Isoform",
        "subset": "Isoform",
        "types": ["rna"],
        "sequences": ["AC"],
        "closings": ["release"],
        "question": "{rna} [Isoform prediction] How much?",
        "answer": "It is 0.50.",
        "label": "0.50",
        "model_output": "0.4",
        "rest": '{"input":null,"output":null,"label":0.50,"task":"Isoform-Isoform","result":"0.4","id":7}',
    }
    assert (two["task"], two["subset"], two["label"]) == ("tf_m", "1", '{"hk":1.0,"dev":[null]}')
    assert (three["question"], three["sequences"], three["answer"]) == (None, [], None)
    assert '"input":"<dna>AC"' in three["rest"]


def test_a_line_that_is_no_row_is_named_by_its_byte(tmp_path: Path):
    for line, what in (("[1]", "not a JSON object"), ("{", "not one JSON object"), ('{"input": "\\ud800"}', "not one")):
        with pytest.raises(DataError, match=what) as caught:
            imported(tmp_path / "x.jsonl", "{}", "", line)
        assert caught.value.where.endswith(", byte 4")


def test_a_wording_that_lost_a_place_is_refused():
    with pytest.raises(DataError, match="1 places for 2 molecules"):
        write_input(ParsedInput("{dna1}", (TaggedMolecule("dna", "A", "xml"),) * 2, None))


@pytest.mark.parametrize(
    ("name", "task", "subset"),
    [
        ("emp-H3K9ac", "emp", "H3K9ac"),
        ("tf-h-0", "tf_h", "0"),
        ("tf-m-4", "tf_m", "4"),
        ("promoter_enhancer_interaction-HeLa-S3", "promoter_enhancer_interaction", "HeLa-S3"),
        ("Isoform-Isoform", "Isoform", "Isoform"),
        ("enhancer_activity", "enhancer_activity", None),
        ("rna_protein_interaction", "ncRNAProteinInter", None),
        ("antibody_antigen", "AntibodyAntigen", None),
        ("cpd-prom_core_all", "cpd", "prom_core_all"),
    ],
)
def test_task_names_are_those_of_the_evaluator(name, task, subset):
    """A-6."""
    assert split_task_name(name) == (task, subset)
    assert join_task_name(task, subset) == name


def examples(
    label: list[float] | None, subset: str | None = None, answer: str | None = None, count: int = 1
) -> pa.Table:
    row = {"id": "d/test/-/0", "dataset": "d", "split": "test", "subset": subset, "sequences": ["ACGT"] * count}
    return pa.Table.from_pylist([row | {"label": label, "answer": answer}], schema=EXAMPLES)


def declared(name: str, **label: Any) -> Dataset:
    """A declared task, with another label where one is given."""
    content = dataset(name).model_dump()
    if label:
        template = "".join(f" {{label_{output}}}" for output in label.get("outputs", [])) or "{label}"
        content["task"] |= {"label": label, "reasoning": [], "metric": METRICS[label["kind"]][0]}
        content["task"]["templates"]["answers"] = {"any": [f"It is {template}."]}
    return Dataset.model_validate(content)


def test_a_declared_example_leaves_as_the_authors_row():
    spec = declared("core_promoter")
    untagged = Style(task_tag=TaskTag(fraction=0), tag_style="release")
    (line,) = export_rows(examples([0.0], "prom_core_tata"), spec, style=untagged)
    row = json.loads(line)

    assert list(row) == ["input", "output", "label", "task"]
    assert row["input"].startswith("<dna>ACGT<dna>")
    assert (row["label"], row["task"]) == ("negative", "cpd-prom_core_tata")
    assert row["output"] in spec.task.templates.answers["negative"]

    tagged = Style(task_tag=TaskTag(fraction=1, style="release"))
    (line,) = export_rows(examples([1.0]), spec, style=tagged)
    assert parse_input(json.loads(line)["input"]).tag == "[Classification: core promoter dection]"
    assert json.loads(line)["label"] == "positive"


@pytest.mark.parametrize(
    ("label", "value", "written"),
    [
        ({"kind": "regression"}, [0.123456], 0.123456),
        ({"kind": "multiclass", "classes": ["tRNA", "IRES"]}, [1.0], "IRES"),
        ({"kind": "multilabel", "classes": ["Am", "Cm", "Gm"], "separator": "; "}, [0.0, 2.0], "Am,Gm"),
        ({"kind": "multilabel", "classes": ["Am", "Cm"], "none": "none"}, [], "none"),
        ({"kind": "multi_regression", "outputs": ["hk", "dev"]}, [1.0, -0.5], {"hk": 1.0, "dev": -0.5}),
    ],
)
def test_labels_leave_in_the_authors_form(label, value, written):
    spec = declared("core_promoter", **label)
    (line,) = export_rows(examples(value), spec)

    assert json.loads(line)["label"] == written
