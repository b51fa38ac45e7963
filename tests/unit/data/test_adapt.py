"""Adapters: declared steps turn public files into examples; what a step cannot use is set aside with its reason."""

import pytest

from polysome.config import ConfigurationError, DataError, validate
from polysome.data.examples import FileReport, read_file
from polysome.specs import Dataset

TASK = {
    "name": "t",
    "title": "t",
    "metric": "spearman",
    "tag": "[t]",
    "hint": "h",
    "label": {"kind": "regression"},
    "templates": {"questions": ["{sequence} ?"], "answers": {"any": ["It is {label}."]}},
}
COLUMNS = {"kind": "csv", "quote": ""}


def dataset(path, steps, **changes):
    content = {
        "name": "d",
        "title": "d",
        "homepage": "h",
        "licence": "l",
        "citation": "c",
        "format": COLUMNS,
        "adapter": steps,
        "molecules": [{"type": "protein"}],
        "maximum_quarantined": 1,
        "splits": {"train": [{"uri": str(path)}]},
        "task": TASK,
        **changes,
    }
    return validate(Dataset, content, where="test")


def read(tmp_path, text, steps, **changes):
    """(sequence, label) of every example, the report, and the reasons for what was set aside."""
    path = tmp_path / "source.txt"
    path.write_text(text)
    spec = dataset(path, steps, **changes)
    report = FileReport("source")
    (batch,) = read_file(spec, "train", spec.files("train")[0], report)
    rows = batch.examples.to_pylist()
    found = [(*row["sequences"], row["label"] and row["label"][0]) for row in rows]
    return found, report, batch.quarantine["reason"].to_pylist()


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_extract_takes_named_groups_and_sets_the_rest_aside(tmp_path):
    steps = [{"step": "extract", "column": "header", "pattern": r"\|(?P<label>-?\d+\.\d+)$"}]
    text = ">a|1.5\nMKV\n>b\nMKL\n>c|x 2|-0.25\nMKI\n"
    found, report, reasons = read(tmp_path, text, steps, format="fasta")
    assert found == [("MKV", 1.5), ("MKI", -0.25)]
    assert (report.records, report.quarantined) == (3, 1)
    assert "does not match" in reasons[0]


def test_where_leaves_records_to_other_splits(tmp_path):
    steps = [{"step": "where", "column": "split", "values": ["seen"]}]
    found, report, reasons = read(tmp_path, "sequence,label,split\nMK,1,seen\nML,2,unseen\nMI,3,seen\n", steps)
    assert found == [("MK", 1.0), ("MI", 3.0)]
    assert (report.records, report.not_selected, reasons) == (2, 1, [])


def test_a_sample_is_the_same_records_each_time_and_near_its_fraction(tmp_path):
    text = "sequence,label\n" + "".join(f"MK,{number}\n" for number in range(2000))
    first, report, _ = read(tmp_path, text, [{"step": "sample", "fraction": 0.25}])
    assert first == read(tmp_path, text, [{"step": "sample", "fraction": 0.25}])[0]
    assert first != read(tmp_path, text, [{"step": "sample", "fraction": 0.25, "seed": 1}])[0]
    assert 420 < len(first) < 580
    assert report.not_selected == 2000 - len(first)


def test_lookup_and_among_join_files_by_case_sensitive_keys(tmp_path):
    fasta = write(tmp_path, "proteins.fa", ">1abc-A chain\nMKV\n>1ABC-A chain\nMKL\n")
    ids = write(tmp_path, "ids.txt", "1abc-A\n1ABC-A\n9xyz-Z\n")
    steps = [
        {"step": "among", "column": "chain", "file": {"uri": ids, "format": "lines"}, "file_column": "line"},
        {
            "step": "lookup",
            "column": "chain",
            "file": {"uri": fasta, "format": "fasta"},
            "file_column": "header",
            "file_pattern": r"^(?P<key>\S+)",
            "take": {"sequence": "sequence"},
        },
    ]
    found, report, reasons = read(tmp_path, "chain,label\n1abc-A,1\n1ABC-A,2\n9xyz-Z,3\n7not-A,4\n", steps)
    assert found == [("MKV", 1.0), ("MKL", 2.0)]
    assert (report.not_selected, report.quarantined) == (1, 1)
    assert "'9xyz-Z' is not in" in reasons[0]


def test_a_key_with_two_values_is_refused(tmp_path):
    fasta = write(tmp_path, "proteins.fa", ">a\nMKV\n>a\nMKL\n")
    steps = [
        {
            "step": "lookup",
            "column": "chain",
            "file": {"uri": fasta, "format": "fasta"},
            "file_column": "header",
            "take": {"sequence": "sequence"},
        }
    ]
    with pytest.raises(DataError, match="more than once"):
        read(tmp_path, "chain,label\na,1\n", steps)


def test_parallel_files_keep_step_and_must_end_together(tmp_path):
    labels = write(tmp_path, "labels.txt", "1\n0.5\n")
    steps = [{"step": "beside", "file": {"uri": labels, "format": "lines"}, "take": {"label": "line"}}]
    molecules = [{"type": "protein", "column": "line"}]
    found, *_ = read(tmp_path, "MKV\nMKL\n", steps, format="lines", molecules=molecules)
    assert found == [("MKV", 1.0), ("MKL", 0.5)]
    for text in ("MKV\n", "MKV\nMKL\nMKI\n"):
        with pytest.raises(DataError, match="in the file beside it"):
            read(tmp_path, text, steps, format="lines", molecules=molecules)


def test_numbers_are_rewritten_joined_and_scaled(tmp_path):
    steps = [
        {"step": "replace", "column": "on", "pattern": ",", "by": "."},
        {"step": "linear", "column": "on", "scale": -100, "offset": 100},
        {"step": "join", "columns": ["on", "off"], "into": "label"},
    ]
    label = {"kind": "multi_regression", "outputs": ["ON", "OFF"]}
    templates = {"questions": ["{sequence} ?"], "answers": {"any": ["{label_ON} and {label_OFF}"]}}
    task = {**TASK, "label": label, "metric": "mean_pearson_r2", "templates": templates}
    path = tmp_path / "source.txt"
    path.write_text("sequence\ton\toff\nMK\t0,25\t3\nML\tnone\t4\n")
    spec = dataset(path, steps, format={"kind": "csv", "delimiter": "\t", "quote": ""}, task=task)
    (batch,) = read_file(spec, "train", spec.files("train")[0], FileReport("x"))
    assert batch.examples["label"].to_pylist() == [[75.0, 3.0]]
    assert batch.quarantine["reason"].to_pylist() == ["on 'none' is not a number"]


def test_mutations_are_applied_to_the_wild_type(tmp_path):
    steps = [
        {
            "step": "mutate",
            "column": "mutations",
            "wild_type": "SKGEE",
            "count_into": "count",
            "remove": "*",
        },
        {"step": "where", "column": "count", "values": ["0", "1", "2"]},
    ]
    text = "mutations,label\n,1\nSS0A,2\nSK1*:SE4D,3\nSG0A,4\nSS0A:SK1A:SG2A,5\n"
    found, report, reasons = read(tmp_path, text, steps)
    assert found == [("SKGEE", 1.0), ("AKGEE", 2.0), ("SGED", 3.0)]
    assert report.not_selected == 1
    assert "the wild type has no G there" in reasons[0]


def test_a_file_may_have_steps_of_its_own(tmp_path):
    path = write(tmp_path, "positive.txt", "MKV\n")
    splits = {"train": [{"uri": path, "adapter": [{"step": "constant", "column": "label", "value": "1"}]}]}
    spec = dataset(path, [], format="lines", molecules=[{"type": "protein", "column": "line"}], splits=splits)
    (batch,) = read_file(spec, "train", spec.files("train")[0], FileReport("x"))
    assert batch.examples["label"].to_pylist() == [[1.0]]


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        ({"step": "extract", "column": "a", "pattern": "(x)"}, "named group"),
        ({"step": "extract", "column": "a", "pattern": "(?P<x>"}, "no RE2 regular expression"),
        ({"step": "extract", "column": "a", "pattern": "(?P<x>A)(?=C)"}, "no RE2 regular expression"),
        ({"step": "replace", "column": "a", "pattern": "A(?!C)"}, "no RE2 regular expression"),
        ({"step": "filter", "column": "a"}, "adapter"),
        ({"step": "where", "column": "a", "values": []}, "values"),
    ],
)
def test_wrong_steps_are_refused_with_the_spec(tmp_path, step, problem):
    with pytest.raises(ConfigurationError, match=problem):
        dataset(tmp_path / "x", [step])


def test_a_step_that_names_no_column_says_which_there_are(tmp_path):
    with pytest.raises(DataError, match="no column 'partition'; there are sequence, label"):
        read(tmp_path, "sequence,label\nMK,1\n", [{"step": "where", "column": "partition", "values": ["x"]}])
