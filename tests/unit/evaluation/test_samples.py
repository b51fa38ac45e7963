"""The samples file keeps what was written, whatever instant the writer was killed at."""

import json
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from polysome.config import DataError, ResourceError
from polysome.evaluation.samples import SAMPLES_FILE, UPLOAD_EVERY, Sample, SampleFile


def sample(number: int) -> Sample:
    return Sample(
        key=f"key{number}",
        id=f"promoter/test/-/{number}",
        dataset="promoter",
        task="cpd",
        split="test",
        mode="text",
        subset=None,
        label=(1.0,),
        reference=None,
        group=3,
        input="<dna>ACGT</dna> ΔG?",
        model_output="Yes.",
        finish_reason="stop",
        prompt_tokens=9,
        completion_tokens=2,
    )


def test_a_line_torn_at_any_byte_is_dropped_and_all_others_kept(tmp_path: Path) -> None:
    with SampleFile(str(tmp_path)) as samples:
        samples.append([sample(0), sample(1)])
    whole = (tmp_path / SAMPLES_FILE).read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        (tmp_path / SAMPLES_FILE).write_bytes(whole[:cut])
        with SampleFile(str(tmp_path)) as samples:
            assert samples.known == {"key0": sample(0)}
            samples.append([sample(2)])
        with SampleFile(str(tmp_path)) as samples:
            assert set(samples.known) == {"key0", "key2"}


def test_scores_and_errors_come_back_as_they_were_and_the_last_of_a_key_counts(tmp_path: Path) -> None:
    failed = replace(sample(0), model_output=None, error="the endpoint answered 500", transient=True)
    scored = replace(sample(1), mode="scores", model_output=None, scores=(-0.25, -1.5), label=(0.0, 2.0))
    with SampleFile(str(tmp_path)) as samples:
        samples.append([failed, scored])
        samples.append([sample(0)])
    with SampleFile(str(tmp_path)) as samples:
        assert samples.known == {"key0": sample(0), "key1": scored}


def test_a_line_from_before_there_were_replicas_is_the_first(tmp_path: Path) -> None:
    content = {key: value for key, value in vars(sample(0)).items() if key != "replica"}
    (tmp_path / SAMPLES_FILE).write_text(json.dumps(content) + "\n")
    with SampleFile(str(tmp_path)) as samples:
        assert samples.known == {"key0": sample(0)}


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / SAMPLES_FILE).write_text('{"key": 1}\n')
    with pytest.raises(DataError, match="line 1"):
        SampleFile(str(tmp_path))


def test_two_writers_are_refused(tmp_path: Path) -> None:
    with SampleFile(str(tmp_path)), pytest.raises(ResourceError, match="another evaluation"):
        SampleFile(str(tmp_path))


def test_a_remote_folder_is_uploaded_as_batches_complete_and_at_the_end() -> None:
    folder = "memory://evaluations/remote"
    url = f"{folder}/{SAMPLES_FILE}"
    with SampleFile(folder) as samples:
        for number in range(UPLOAD_EVERY):
            samples.append([sample(number)])
        with fsspec.open(url, "r") as handle:
            assert len(handle.read().splitlines()) == UPLOAD_EVERY
        samples.append([sample(UPLOAD_EVERY)])
    with fsspec.open(url, "r") as handle:
        assert [json.loads(line)["key"] for line in handle] == [f"key{n}" for n in range(UPLOAD_EVERY + 1)]
    with SampleFile(folder) as samples:
        assert len(samples.known) == UPLOAD_EVERY + 1
