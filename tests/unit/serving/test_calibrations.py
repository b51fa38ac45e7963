"""Calibrations: of the evaluation of this model, where it asked the same task in the same way, and of no other."""

import pytest
from evaluated import right, write_evaluation

from polysome.config import ConfigurationError, DataError
from polysome.serving import calibrations
from polysome.serving.adapters import Published
from polysome.serving.calibrations import Calibrations
from polysome.serving.calls import Target
from polysome.serving.config import ServeConfig
from polysome.serving.prediction import task_spec
from polysome.storage import read_json, write_json

MODEL = "m" * 64
BASE = Target(deadline=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluated")
    write_evaluation(path, right(0.9), model=MODEL, modes=["text", "scores"], temperature=0, baselines=[])
    return path


def read(folder, **settings):
    return Calibrations.read(ServeConfig(model="unused", calibration=str(folder), **settings), MODEL)


def evidence(found, task="planted_promoter", target=BASE):
    return found.of(task_spec(task), target)


def changed(folder, tmp_path, **changes):
    content = read_json(str(folder / "results.json"))
    for name, value in changes.items():
        (content if name in content else content["settings"])[name] = value
    write_json(str(tmp_path / "results.json"), content)
    return tmp_path


def test_classes_get_their_fit_numbers_their_interval_and_both_their_profiles(folder):
    found = read(folder)
    binary = evidence(found)
    assert binary.calibration is not None
    assert binary.note.startswith("platt, fitted on 40 dev rows; expected calibration error ")
    assert evidence(found, "planted_ncrna_family").calibration.method == "temperature"
    number = evidence(found, "planted_thermostability")
    assert number.calibration is None
    assert number.interval.dev_n == 40
    assert "from 40 dev rows; it holds" in number.note
    (profile,) = number.profiles
    assert (profile.role, profile.rows) == ("sequence", 80)


def test_without_an_evaluation_or_for_a_task_that_it_did_not_ask_there_is_none(folder, tmp_path):
    nothing = evidence(Calibrations.read(ServeConfig(model="unused"), MODEL))
    assert nothing == calibrations.UNKNOWN
    assert "not of this task as it is declared" in evidence(read(folder), "core_promoter").note
    content = read_json(str(folder / "results.json"))["tasks"]
    content[0]["fingerprint"] = "0" * 16
    assert evidence(read(changed(folder, tmp_path, tasks=content))).profiles == ()


@pytest.mark.parametrize(
    "change",
    [
        {"style": "open_llm"},
        {"prompt": "reasoning"},
        {"tagged": True},
        {"prior_correction": True},
        {"wording": {"planted_promoter": "conditioned"}},
        {"adapter_fingerprint": "a" * 16},
    ],
)
def test_an_evaluation_that_asked_otherwise_calibrates_nothing_but_its_rows_are_known(folder, tmp_path, change):
    found = evidence(read(changed(folder, tmp_path, **change)))
    assert found.calibration is None
    assert found.note.startswith("not calibrated: evaluation 'tiny' is of ")
    assert len(found.profiles) == 1


def test_answers_drawn_at_a_temperature_have_no_interval_here(folder, tmp_path):
    found = evidence(read(changed(folder, tmp_path, temperature=0.5)), "planted_thermostability")
    assert found.interval is None


def test_an_adapter_is_calibrated_by_its_own_evaluation_alone(folder, tmp_path):
    own = read(changed(folder, tmp_path, adapter_fingerprint="a" * 16))
    for told, calibrated in (("a" * 16, True), ("b" * 16, False)):
        published = Published("one", 1, "unused", fingerprint="f", base_fingerprint=MODEL, adapter_fingerprint=told)
        assert (evidence(own, target=Target(0, published)).calibration is not None) is calibrated
        assert evidence(read(folder), target=Target(0, published)).calibration is None


def test_an_evaluation_of_another_model_or_none_at_all_ends_the_start(folder, tmp_path):
    with pytest.raises(ConfigurationError, match="is of model mmm"):
        Calibrations.read(ServeConfig(model="unused", calibration=str(folder)), "0" * 16)
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path)
