"""AnnData: cell sentences equal to a plain ranking, whatever the matrix is stored as."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from polysome.config import ConfigurationError, DataError
from polysome.data.readers.cells import read
from polysome.specs.formats import AnndataFormat

TEXT = h5py.string_dtype()


def rows_of(path: Path, layout: AnndataFormat | None = None, **options: int) -> list[dict[str, str | None]]:
    stretches = list(read(str(path), layout or AnndataFormat(), **options))
    assert [number for stretch in stretches for number in stretch.numbers] == list(
        range(sum(stretch.columns.num_rows for stretch in stretches))
    )
    return [row for stretch in stretches for row in stretch.columns.to_pylist()]


def ranked(values: np.ndarray, names: list[str], top: int) -> str:
    pairs = sorted((-value, name) for value, name in zip(values, names, strict=True) if value > 0)
    return " ".join(name for _, name in pairs[:top])


def put_matrix(parent: h5py.Group, name: str, matrix: Any, *, legacy: bool = False) -> None:
    if isinstance(matrix, np.ndarray):
        parent[name] = matrix
        return
    group = parent.create_group(name)
    kind = matrix.format
    named = {"h5sparse_format": kind} if legacy else {"encoding-type": f"{kind}_matrix"}
    group.attrs.update(named | {("h5sparse_shape" if legacy else "shape"): matrix.shape})
    for part in ("data", "indices", "indptr"):
        group[part] = getattr(matrix, part)


def put_frame(parent: h5py.Group, name: str, index: list[str], columns: dict[str, Any]) -> None:
    """Columns: arrays, lists of text, or dictionaries with the parts of an encoded column."""
    group = parent.create_group(name)
    group.attrs["_index"] = "_index"
    group.attrs.create("column-order", list(columns), dtype=TEXT)
    for key, column in {"_index": index, **columns}.items():
        if isinstance(column, dict):
            parts = group.create_group(key)
            for part, values in column.items():
                parts[part] = np.array(values, TEXT) if isinstance(values[0], str) else np.array(values)
        else:
            group[key] = np.array(column, TEXT) if isinstance(column[0], str) else column


def write(path: Path, matrix: Any, names: list[str], *, var: Any = None, obs: Any = None, layers: Any = None) -> Path:
    with h5py.File(path, "w") as file:
        put_matrix(file, "X", matrix)
        put_frame(file, "var", names, var or {})
        put_frame(file, "obs", [f"cell {row}" for row in range(matrix.shape[0])], obs or {})
        for layer, values in (layers or {}).items():
            put_matrix(file.require_group("layers"), layer, values)
    return path


@pytest.mark.parametrize("store", [np.asarray, sparse.csr_array, sparse.csc_array], ids=["dense", "csr", "csc"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), cells=st.integers(1, 9), genes=st.integers(1, 30), block_bytes=st.integers(1, 600))
def test_genes_are_ranked_by_value_then_name(store, seed, cells, genes, block_bytes, tmp_path):
    draw = np.random.default_rng(seed)
    # Few distinct values, so that many are equal and the names decide.
    values = draw.integers(0, 4, (cells, genes)).astype(np.float32)
    names = [f"G{number}" for number in draw.permutation(genes)]
    path = write(tmp_path / "x.h5ad", store(values), names)

    rows = rows_of(path, AnndataFormat(top_genes=5), block_bytes=block_bytes)

    assert [row["genes"] for row in rows] == [ranked(row, names, 5) for row in values]
    assert [row["n_genes"] for row in rows] == [str((row > 0).sum()) for row in values]
    assert [row["cell"] for row in rows] == [f"cell {number}" for number in range(cells)]


def test_layer_raw_symbols_and_columns_of_obs(tmp_path: Path):
    path = write(
        tmp_path / "x.h5ad",
        np.array([[-1, 0, 1], [2, 2, 2]], np.float32),
        ["E1", "E2", "E3"],
        var={"symbol": {"codes": [0, -1, 1], "categories": ["S1", "S3"]}},
        obs={
            "kind": {"codes": [0, -1], "categories": ["T"]},
            "batch": {"codes": [1, 0], "categories": [10, 20]},
            "age": {"values": [5, 1], "mask": [False, True]},
            "score": np.array([0.1, np.nan]),
            "n_genes": np.array([7, 8]),
            "good": np.array([True, False]),
            "note": ["NA", ""],
        },
        layers={"counts": sparse.csr_array(np.array([[1, 2, 3], [0, 5, 0]]))},
    )
    with h5py.File(path, "a") as file:
        put_matrix(file, "raw/X", np.array([[3, 2, 1, 9], [1, 0, 2, 0]]))
        put_frame(file, "raw/var", ["R1", "R2", "R3", "R4"], {})

    shared = [
        {"kind": "T", "batch": "20", "age": "5", "score": "0.1", "obs.n_genes": "7", "good": "true", "note": "NA"},
        {"kind": None, "batch": "10", "age": None, "score": None, "obs.n_genes": "8", "good": "false", "note": ""},
    ]
    assert rows_of(path, AnndataFormat(layer="counts", symbols="symbol")) == [
        {"cell": "cell 0", "genes": "S3 E2 S1", "n_genes": "3", **shared[0]},
        {"cell": "cell 1", "genes": "E2", "n_genes": "1", **shared[1]},
    ]
    assert [row["genes"] for row in rows_of(path, AnndataFormat(use_raw=True, top_genes=2))] == ["R4 R1", "R3 R1"]
    with pytest.raises(DataError, match=r"X holds values below 0 .*: scaled data") as caught:
        rows_of(path)
    assert "format.use_raw: true" in caught.value.fix


def test_files_of_anndata_before_0_7(tmp_path: Path):
    """Tables as arrays of records, categories in `uns`, other names of attributes and of raw."""
    cells = np.array([(b"a", 1, 0.5), (b"b", 0, 1.5)], [("index", "S1"), ("kind", "i1"), ("score", "f4")])
    with h5py.File(tmp_path / "x.h5ad", "w") as file:
        put_matrix(file, "X", np.array([[-1.0, 1.0], [0.0, 0.0]]))
        put_matrix(file, "raw.X", sparse.csr_array(np.array([[1, 2], [0, 3]])), legacy=True)
        file["obs"] = cells
        file["var"] = file["raw.var"] = np.array([(b"G1",), (b"G2",)], [("index", "S2")])
        file["uns/kind_categories"] = np.array(["T", "B"], TEXT)

    assert rows_of(tmp_path / "x.h5ad", AnndataFormat(use_raw=True)) == [
        {"cell": "a", "genes": "G2 G1", "n_genes": "2", "kind": "B", "score": "0.5"},
        {"cell": "b", "genes": "G2", "n_genes": "1", "kind": "T", "score": "1.5"},
    ]


def test_of_genes_with_one_name_the_most_expressed_counts(tmp_path: Path):
    values = np.array([[1, 2, 3, 1], [0, 0, 0, 0]])
    path = write(tmp_path / "x.h5ad", values, list("1234"), var={"symbol": ["A", "B", "A", "C"]})

    rows = rows_of(path, AnndataFormat(symbols="symbol", top_genes=3))

    assert [(row["genes"], row["n_genes"]) for row in rows] == [("A B C", "3"), ("", "0")]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (AnndataFormat(layer="counts"), "there is no layers/counts to rank genes by; there is layer 'logs'"),
        (AnndataFormat(use_raw=True), "there is no raw/X"),
        (AnndataFormat(symbols="name"), "var has no column 'name'; it has 'symbol'"),
        (AnndataFormat(symbols="symbol"), "the gene name 'B C' cannot stand in a list"),
        (AnndataFormat(layer="logs"), "layers/logs holds values that are not finite"),
    ],
)
def test_what_cannot_be_ranked_is_refused(tmp_path: Path, layout: AnndataFormat, message: str):
    values = np.array([[1.0, 2.0]])
    var = {"symbol": ["A", "B C"]}
    path = write(tmp_path / "x.h5ad", values, ["1", "2"], var=var, layers={"logs": values * np.nan})
    with pytest.raises(DataError, match=message):
        rows_of(path, layout)


def test_files_that_are_no_h5ad_and_contradictions_are_refused(tmp_path: Path):
    path = write(tmp_path / "x.h5ad", np.ones((50, 50)), [str(gene) for gene in range(50)])
    with pytest.raises(ConfigurationError, match=r"both format\.layer and format\.use_raw"):
        rows_of(path, AnndataFormat(layer="a", use_raw=True))
    with h5py.File(path, "a") as file:
        put_frame(file, "few", ["1"], {})
        file.move("var", "other")
        file.move("few", "var")
    with pytest.raises(DataError, match="X is 50 x 50, but there are 50 cells and 1 genes"):
        rows_of(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match="damaged, or no h5ad file"):
        rows_of(path)
    path.write_bytes(b"cell,genes\n")
    with pytest.raises(DataError, match="not an h5ad file"):
        rows_of(path)


_MEASURE = """
import resource, sys
from polysome.data.readers.cells import read
from polysome.specs.formats import AnndataFormat
peaks = []
for path in sys.argv[1:]:
    for stretch in read(path, AnndataFormat(top_genes=2), block_bytes=1 << 20):
        pass
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print((peaks[-1] - peaks[0]) // 1024)
"""


def test_the_matrix_is_not_held_whole(tmp_path: Path):
    """A dense matrix of 64 MB, after one of 1 MB has paid for the imports."""
    for name, cells in (("small", 128), ("large", 8_192)):
        write(tmp_path / name, np.eye(cells, 2000, dtype=np.float32), [f"G{gene}" for gene in range(2000)])
    found = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path / "small"), str(tmp_path / "large")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert int(found.stdout) < 24


DATA = {
    "helical_cell_type_sample.h5ad": (AnndataFormat(symbols="gene_symbols"), "X", "var/gene_symbols", 100),
    "scimilarity_test.h5ad": (AnndataFormat(layer="counts"), "layers/counts", "var/_index", 1000),
    "scvijl_pbmc_7480x200.h5ad": (AnndataFormat(), "X", "var/gene_names", 7480),
    "anndata_legacy/v0.7.0.h5ad": (AnndataFormat(use_raw=True), "raw/X", "raw/var/_index", 30),
}


@pytest.mark.data
@pytest.mark.parametrize("file", DATA)
def test_real_files_give_a_plain_ranking(file: str):
    layout, matrix, genes, cells = DATA[file]
    path = Path(os.environ["POLYSOME_MIRROR"]) / "single_cell" / file
    with h5py.File(path) as stored:
        node = stored[matrix]
        if isinstance(node, h5py.Group):
            parts = tuple(node[part][:] for part in ("data", "indices", "indptr"))
            values = sparse.csr_array(parts, shape=tuple(node.attrs["shape"])).toarray()
        else:
            values = node[:]
        names = list(stored[genes].asstr()[:])

    rows = rows_of(path, layout)

    assert len(rows) == cells
    assert [row["genes"] for row in rows] == [ranked(row, names, 100) for row in values]


@pytest.mark.data
def test_the_columns_of_real_files():
    folder = Path(os.environ["POLYSOME_MIRROR"]) / "single_cell"
    old = rows_of(folder / "pbmc68k_reduced_old_h5ad.h5ad", AnndataFormat(use_raw=True))
    labels = [row["bulk_labels"] for row in old]
    assert len(old) == 700
    assert (labels.count("Dendritic"), labels.count("CD14+ Monocyte"), labels.count("CD34+")) == (240, 129, 13)
    types = [row["cell_type"] for row in rows_of(folder / "scvijl_pbmc_7480x200.h5ad")]
    assert (types.count("CD8+ T-cells"), types.count("NA"), types.count(None)) == (2740, 32, 0)
    mouse = rows_of(folder / "t-cells.h5ad", AnndataFormat(layer="raw_counts", symbols="gene_symbols"))
    assert {row["location"] for row in mouse} == {"dLN"}


@pytest.mark.data
def test_scaled_and_empty_real_files_are_refused():
    folder = Path(os.environ["POLYSOME_MIRROR"]) / "single_cell"
    with pytest.raises(DataError, match="X holds values below 0"):
        rows_of(folder / "pbmc68k_reduced_old_h5ad.h5ad")
    with pytest.raises(DataError, match="there is no X to rank genes by; there is no other matrix"):
        rows_of(folder / "anndata_legacy" / "v0.11.4.h5ad")
