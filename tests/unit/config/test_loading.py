"""YAML, overrides and validation: what comes in, and how a mistake is told."""

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polysome.config import Config, ConfigurationError, DataError, apply_overrides, load, read_yaml, validate


class Inner(Config):
    rate: float
    steps: tuple[int, ...] = ()


class Outer(Config):
    name: str
    inner: Inner


def test_a_file_with_overrides_becomes_a_frozen_model(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("name: x\ninner: {rate: 1.0, steps: [1, 2]}\n")
    outer = load(Outer, path, ["inner.rate=2e-3", "inner.steps.1=5", "name=y"])
    assert outer == Outer(name="y", inner=Inner(rate=2e-3, steps=(1, 5)))
    with pytest.raises(ValueError, match="frozen"):
        outer.name = "z"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"name": "x", "inner": {"rat": 1}}, "did you mean 'rate'"),
        ({"name": "x", "inner": {}}, "inner.rate: required and missing"),
        ({"name": "x", "inner": {"rate": "fast"}}, "got 'fast'"),
        ({"zzzz": 1}, "known: inner, name"),
    ],
)
def test_what_is_wrong_is_named_with_field_and_value(content, told):
    with pytest.raises(ConfigurationError, match="where") as caught:
        validate(Outer, content, where="a.yaml")
    assert told in caught.value.what


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigurationError) as caught:
        validate(Outer, {"nam": "x", "inner": {"rate": "fast"}}, where="a.yaml")
    assert all(part in caught.value.what for part in ("'nam'", "'fast'", "name: required"))


@pytest.mark.parametrize(
    "override", ["no-sign", "=1", "inner.steps.9=1", "name.deeper=1", "inner.steps.x=1", "name=[1"]
)
def test_an_override_that_leads_nowhere_is_refused(override):
    with pytest.raises(ConfigurationError):
        apply_overrides({"name": "x", "inner": {"steps": [1]}}, [override])


def test_overrides_keep_the_order_of_keys_and_leave_their_input_alone():
    content = {"z": 1, "a": {"y": [1], "b": 2}}
    before = copy.deepcopy(content)
    changed = apply_overrides(content, ["a.b=3"])
    assert content == before
    assert (list(changed), list(changed["a"])) == (["z", "a"], ["y", "b"])


def test_an_override_changes_one_of_two_places_that_a_yaml_alias_shares(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("one: &shared {rate: 1}\ntwo: *shared\nthree:\n  <<: *shared\n  steps: 2\n")
    assert apply_overrides(read_yaml(path), ["one.rate=5"]) == {
        "one": {"rate": 5},
        "two": {"rate": 1},
        "three": {"rate": 1, "steps": 2},
    }


@pytest.mark.parametrize(
    ("text", "told"), [("a: 1\na: 2\n", "stands twice"), ("a: [1\n", "not valid YAML"), ("- 1\n", "mapping")]
)
def test_yaml_that_is_not_one_mapping_is_refused_with_its_line(tmp_path, text, told):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=told):
        read_yaml(path)


@given(st.integers(-(10**6), 10**6) | st.booleans() | st.text("abcXYZ_", min_size=1, max_size=8).filter(str.isalpha))
def test_an_override_sets_what_it_says(value):
    import yaml

    text = yaml.safe_dump(value).removesuffix("\n...\n").strip()
    assert apply_overrides({}, [f"a.b={text}"]) == {"a": {"b": value}}


def test_errors_survive_the_way_between_processes():
    error = pickle.loads(pickle.dumps(DataError("what", where="here", fix="mend")))
    assert (type(error), error.what, error.where, error.fix) == (DataError, "what", "here", "mend")
    assert str(error) == "what\n  where: here\n  fix:   mend"


def test_a_boolean_where_text_is_meant_is_explained():
    from polysome.specs import BinaryLabel

    assert validate(BinaryLabel, {"kind": "binary", "positive": 1, "negative": 0}, where="x").positive == "1"
    with pytest.raises(ConfigurationError, match="quote it"):
        validate(BinaryLabel, {"kind": "binary", "positive": True}, where="x")
