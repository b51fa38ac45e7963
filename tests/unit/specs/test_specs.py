"""Declared data sets: what a spec may say, and the catalog that finds them."""

from typing import Any

import pytest
import yaml

from polysome import specs
from polysome.config import ConfigurationError, DataError, validate
from polysome.specs import BinaryLabel, MulticlassLabel, RegressionLabel


def spec(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "name": "toy",
        "title": "t",
        "homepage": "h",
        "licence": "l",
        "citation": "c",
        "format": "csv",
        "molecules": [{"type": "dna"}],
        "splits": {"train": [{"uri": "https://x/a.csv"}]},
        "task": {
            "name": "toy",
            "title": "t",
            "label": {"kind": "binary"},
            "metric": "mcc",
            "tag": "[Classification: toy]",
            "hint": "h",
            "templates": {"questions": ["{sequence} yes?"], "answers": {"positive": ["Yes."], "negative": ["No."]}},
        },
    }
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        node = content
        for key in parents:
            node = node[key]
        node[last] = value
    return content


def test_a_whole_spec_is_accepted():
    found = validate(specs.Dataset, spec(), where="toy.yaml")
    assert found.files("train")[0].uri == "https://x/a.csv"
    with pytest.raises(DataError, match="no split 'test'"):
        found.files("test")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"task__templates__questions": ["no placeholder"]}, "needs exactly ['sequence']"),
        ({"task__templates__questions": ["{sequence} {other}"]}, "needs exactly"),
        ({"task__templates__questions": ["{sequence"]}, "template"),
        ({"task__templates__answers": {"any": ["{label}"]}}, "answer pools"),
        ({"task__templates__answers": {"positive": ["{label}"], "negative": ["No."]}}, "positive answer"),
        ({"task__metric": "spearman"}, "does not fit"),
        ({"name": "Toy Set"}, "lower-case"),
        ({"splits__trian": [{"uri": "x"}]}, "trian"),
        ({"molecules": [{"type": "dna"}, {"type": "dna"}]}, "roles must differ"),
        ({"window": 64}, "are for corpora"),
        ({"licens": "x"}, "did you mean 'licence'"),
    ],
)
def test_a_spec_that_would_mislead_is_refused(changes, told):
    with pytest.raises(ConfigurationError) as caught:
        validate(specs.Dataset, spec(**changes), where="toy.yaml")
    assert told in caught.value.what


def test_labels_decode_what_their_codec_holds_and_refuse_the_rest():
    assert BinaryLabel(kind="binary").decode("1") == (1.0,)
    classes = MulticlassLabel(kind="multiclass", classes=["tRNA", "miRNA"])
    assert classes.encode(classes.decode("miRNA")) == "miRNA"
    number = RegressionLabel(kind="regression", decimals=1, minimum=0, maximum=1)
    assert number.encode(number.decode("0.25")) == "0.2"
    for label, text in ((BinaryLabel(kind="binary"), "yes"), (classes, "rRNA"), (number, "nan"), (number, "2")):
        with pytest.raises(ValueError, match="label"):
            label.decode(text)


def test_the_catalog_reads_its_folder_and_tells_the_nearest_name(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYSOME_DATASETS", str(tmp_path))
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(spec()))
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(spec(name="right")))
    assert specs.names() == ["toy", "wrong"]
    assert specs.dataset("toy").title == "t"
    with pytest.raises(ConfigurationError) as caught:
        specs.dataset("toi")
    assert "'toy'" in caught.value.fix
    with pytest.raises(ConfigurationError, match="named 'right'"):
        specs.dataset("wrong")
    monkeypatch.setenv("POLYSOME_DATASETS", str(tmp_path / "none"))
    with pytest.raises(ConfigurationError, match="no datasets_spec"):
        specs.names()
