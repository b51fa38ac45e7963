"""One-hot arrays: letters by a declared order of channels, and nothing else."""

import csv
import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polysome.config import ConfigurationError, DataError
from polysome.data.readers.onehot import read
from polysome.specs.formats import OneHotFormat


def encoded(sequences: list[str], alphabet: str) -> np.ndarray:
    length = len(sequences[0])
    return np.array([[[letter == base for letter in alphabet] for base in text] for text in sequences]).reshape(
        len(sequences), length, len(alphabet)
    )


def rows_of(path: Path, layout: OneHotFormat, **options: int) -> list[tuple[int, str, str]]:
    return [
        (int(number), row["sequence"], row["label"])
        for stretch in read(str(path), layout, **options)
        for number, row in zip(stretch.numbers, stretch.columns.to_pylist(), strict=True)
    ]


@settings(max_examples=40)
@given(
    data=st.data(),
    alphabet=st.permutations("ACGT").map("".join),
    length=st.integers(1, 6),
    flat=st.booleans(),
    order=st.sampled_from("CF"),
    dtype=st.sampled_from([np.uint8, np.float32, np.float64, bool]),
    compressed=st.booleans(),
    block_bytes=st.integers(1, 500),
)
def test_what_was_encoded_is_decoded(
    data, alphabet, length, flat, order, dtype, compressed, block_bytes, tmp_path_factory
):
    texts = st.text(alphabet="ACGT", min_size=length, max_size=length)
    sequences = data.draw(st.lists(texts, min_size=1, max_size=6))
    array = np.asarray(encoded(sequences, alphabet).astype(dtype), order=order)
    array = array.reshape(len(sequences), -1) if flat else array
    labels = np.arange(len(sequences), dtype=np.float64).reshape(-1, 1) / 2
    path = tmp_path_factory.getbasetemp() / "onehot.npz"
    (np.savez_compressed if compressed else np.savez)(path, x=array, y=labels)

    found = rows_of(path, OneHotFormat(array="x", alphabet=alphabet, label="y"), block_bytes=block_bytes)

    expected = [str(number // 2 if number % 2 == 0 else number / 2) for number in range(len(sequences))]
    assert found == list(zip(range(len(sequences)), sequences, expected, strict=True))


def test_rows_that_are_not_one_hot_are_damaged(tmp_path: Path):
    array = encoded(["ACG"] * 6, "ACGT").astype(float)
    array[1, 1] = 0
    array[2, 2] = 1
    array[3, 0] *= 0.5
    array[4, 2, 3] = np.nan
    np.savez(tmp_path / "x.npz", x=array, label=np.array(["a", "b", "c", "d", "e", "f"]))

    (stretch,) = read(str(tmp_path / "x.npz"), OneHotFormat(array="x"))

    assert stretch.columns.to_pylist() == [{"sequence": "ACG", "label": "a"}, {"sequence": "ACG", "label": "f"}]
    assert list(stretch.numbers) == [0, 5]
    assert [tuple(row.values()) for row in stretch.damaged.to_pylist()] == [
        (1, -1, "not one-hot at position 2"),
        (2, -1, "not one-hot at position 3"),
        (3, -1, "not one-hot at position 1"),
        (4, -1, "not one-hot at position 3"),
    ]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.zeros((2, 3, 4))}, "no array 'x'; the arrays are 'y'"),
        ({"x": np.zeros((2, 3, 4))}, "no array 'label'; the arrays are 'x'"),
        ({"x": np.zeros((2, 3, 5)), "label": np.zeros(2)}, r"x has shape \(2, 3, 5\), neither"),
        ({"x": np.zeros((2, 3, 4)), "label": np.zeros(3)}, r"label has shape \(3,\) where x has 2 rows"),
        ({"x": np.zeros((2, 3, 4)), "label": np.array([1, "a"], object)}, "label holds pickled objects"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path / "x.npz", OneHotFormat(array="x"))


def test_an_archive_that_is_cut_short_and_a_wrong_alphabet_are_refused(tmp_path: Path):
    np.savez(tmp_path / "x.npz", x=encoded(["ACGT" * 50] * 50, "ACGT"), label=np.zeros(50))
    content = (tmp_path / "x.npz").read_bytes()
    with pytest.raises(ConfigurationError, match="'ACGA' needs distinct ASCII letters"):
        rows_of(tmp_path / "x.npz", OneHotFormat(array="x", alphabet="ACGA"))
    for cut in (content[: len(content) // 2], gzip.compress(content)[:-20]):
        (tmp_path / "x.npz").write_bytes(cut)
        with pytest.raises(DataError, match="damaged"):
            rows_of(tmp_path / "x.npz", OneHotFormat(array="x"))


@pytest.mark.data
def test_the_pairs_of_promoters_are_those_that_were_decoded_beside_them():
    folder = Path(os.environ["POLYSOME_MIRROR"]) / "enhancer_promoter"
    with gzip.open(folder / "derived" / "deeptact_demo_PP_pairs.csv.gz", "rt", newline="") as handle:
        expected = list(csv.reader(handle))[1:]
    layout = OneHotFormat(array="sequence", alphabet="AGCT")
    first, second = (rows_of(folder / "deeptact_demo" / f"P-P_promoter{which}_Seq.npz.gz", layout) for which in (1, 2))

    assert len(first) == len(expected) == 100
    assert [{one[1], two[1], one[2]} for one, two in zip(first, second, strict=True)] == [set(row) for row in expected]
    assert sum(label == "1" for _, _, label in first) == 2
