"""AnnData (h5ad): a record per cell, its expressed genes ranked, a block of cells at a time (C-4, C-10)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from polysome.config import ConfigurationError, DataError
from polysome.data.readers.records import BLOCK_BYTES, BLOCK_RECORDS, Records, stretches
from polysome.data.readers.table_files import as_text, local_file
from polysome.specs.formats import AnndataFormat

if TYPE_CHECKING:
    import h5py

COLUMNS = ("cell", "genes", "n_genes")
_MAGIC = (b"\x89HDF", b"AnnData")
"""HDF5, and HDF5 behind the block of text that some writers of h5ad put in front."""


def read(url: str, format: AnndataFormat, *, block_bytes: int = BLOCK_BYTES) -> Iterator[Records]:
    """Each cell's name, `genes` (the `top_genes` most expressed, joined by blanks), `n_genes` (how many are expressed
    at all), and the columns of `obs` as text.

    Expressed is a value above 0. Equal values are ordered by gene name (code points), so that the order is one. Of
    several genes with one name the most expressed counts; a gene without a symbol goes by its index. A column of `obs`
    named like one of the first three is read as `obs.<name>`. Dense and CSR matrices are read a block of cells at a
    time; a CSC matrix, which is stored by gene, is held whole.

    Files of anndata before 0.7 are read too.

    Raises:
        DataError: the file is missing, no h5ad, or damaged; it lacks the matrix or column that is asked for; a value is
            negative (scaled data) or not finite; a gene's name holds a blank.
        ConfigurationError: both a layer and `raw` are asked for.
    """
    import h5py

    if format.layer is not None and format.use_raw:
        raise ConfigurationError("both format.layer and format.use_raw are given", where=url, fix="rank by one of them")
    with local_file(url, _MAGIC, "an h5ad file") as path:
        try:
            with h5py.File(path) as file:
                matrix = _Matrix.of(file, format, url)
                obs, var = _Frame.of(file, "obs", url), _Frame.of(file, matrix.genes, url)
                yield from _cells(matrix, obs, _gene_names(var, format, url), format.top_genes, url, block_bytes)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"damaged, or no h5ad file: {error}", where=url, fix="fetch it again") from error


@dataclass(frozen=True)
class _Matrix:
    """A stored matrix [cells, genes]: `node` a dataset (dense) or the group of a sparse one."""

    node: "h5py.Dataset | h5py.Group"
    name: str
    shape: tuple[int, int]
    layout: str
    """`array`, `csr` or `csc`."""
    genes: str
    """Name of the table of its genes."""

    @classmethod
    def of(cls, file: "h5py.File", format: AnndataFormat, url: str) -> "_Matrix":
        genes = "var"
        if format.layer is not None:
            name, there = f"layers/{format.layer}", [f"layer {layer!r}" for layer in file.get("layers", {})]
        elif format.use_raw:
            name, there = "raw.X" if "raw.X" in file else "raw/X", []
            genes = name.replace("X", "var")
        else:
            name, there = "X", [f"layer {layer!r}" for layer in file.get("layers", {})]
            there += ["raw"] if "raw" in file or "raw.X" in file else []
        if name not in file:
            raise DataError(
                f"there is no {name} to rank genes by; there is {', '.join(there) or 'no other matrix'}",
                where=url,
                fix="mend format.layer or format.use_raw",
            )
        node = file[name]
        if not hasattr(node, "keys"):
            return cls(node, name, node.shape, "array", genes)
        # Before anndata 0.7, the attributes had other names.
        encoding = _attribute(node, "encoding-type") or _attribute(node, "h5sparse_format")
        layout = encoding.removesuffix("_matrix")
        if layout not in ("csr", "csc"):
            raise DataError(f"{name} is stored as {encoding!r}, which is not known", where=url, fix="save it as CSR")
        rows, columns = node.attrs["shape" if "shape" in node.attrs else "h5sparse_shape"]
        return cls(node, name, (int(rows), int(columns)), layout, genes)

    def blocks(self, block_bytes: int) -> Iterator[Any]:
        """Consecutive cells as CSR matrices of about `block_bytes`, of at most BLOCK_RECORDS cells."""
        from scipy import sparse

        cells, genes = self.shape
        if self.layout == "array":
            step = max(1, min(BLOCK_RECORDS, block_bytes // max(1, genes * self.node.dtype.itemsize)))
            for start in range(0, cells, step):
                yield sparse.csr_array(self.node[start : start + step])
            return
        parts = [self.node[part] for part in ("data", "indices", "indptr")]
        if self.layout == "csc":
            whole = sparse.csc_array(tuple(part[:] for part in parts), shape=self.shape).tocsr()
            parts = [whole.data, whole.indices, whole.indptr]
        data, indices, indptr = parts[0], parts[1], parts[2][:].astype(np.int64)
        step = max(1, block_bytes // (data.dtype.itemsize + indices.dtype.itemsize))
        start = 0
        while start < cells:
            end = int(np.searchsorted(indptr, indptr[start] + step, side="right")) - 1
            end = min(max(end, start + 1), start + BLOCK_RECORDS, cells)
            low, high = indptr[start], indptr[end]
            content = (data[low:high], indices[low:high], indptr[start : end + 1] - low)
            yield sparse.csr_array(content, shape=(end - start, genes))
            start = end


@dataclass(frozen=True)
class _Frame:
    """The table of cells, or of genes: names of its rows, and its columns as text."""

    index: list[str]
    columns: dict[str, pa.Array]

    @classmethod
    def of(cls, file: "h5py.File", name: str, url: str) -> "_Frame":
        if name not in file:
            raise DataError(f"there is no {name}", where=url, fix="check that this is a whole h5ad file")
        node = file[name]
        if hasattr(node, "keys"):
            index, names = _attribute(node, "_index"), [_decoded(name) for name in node.attrs.get("column-order", [])]
            columns = {name: _column(node[name], name, url, file) for name in names}
            return cls(_column(node[index], index, url, file).to_pylist(), columns)
        # Before anndata 0.7 a table was one array of records, and the categories of its codes stood in `uns`.
        records = node[:]
        columns = {name: _values(records[name], name, url) for name in records.dtype.names}
        for name, codes in columns.items():
            if f"uns/{name}_categories" in file:
                columns[name] = _column(file[f"uns/{name}_categories"], name, url, file).take(codes.cast(pa.int64()))
        return cls(columns.pop(records.dtype.names[0]).to_pylist(), columns)


def _column(node: Any, name: str, url: str, file: "h5py.File") -> pa.Array:
    """A stored column as text, by the encodings of anndata's on-disk format."""
    if "categories" in node.attrs:
        # anndata 0.7: the codes refer to where their categories stand.
        categories, codes = file[node.attrs["categories"]], node[:]
    elif not hasattr(node, "keys"):
        return _values(node.asstr()[:] if node.dtype.kind == "O" else node[:], name, url)
    elif "codes" in node:
        categories, codes = node["categories"], node["codes"][:]
    elif "mask" in node:
        values = _column(node["values"], name, url, file)
        return pc.if_else(pa.array(node["mask"][:]), None, values)
    else:
        what = f"the column {name!r} is stored as {_attribute(node, 'encoding-type')!r}, which is not known"
        raise DataError(what, where=url, fix="leave it out of the file")
    return _column(categories, name, url, file).take(pa.array(codes, mask=codes < 0))


def _values(values: npt.NDArray[Any], name: str, url: str) -> pa.Array:
    if values.dtype.kind in "SO":
        return pa.array([_decoded(value) for value in values.tolist()], pa.string())
    # Among numbers, NaN is how a missing one is stored.
    return as_text(pa.array(values, from_pandas=True), name, url)


def _attribute(node: Any, name: str) -> str:
    return _decoded(node.attrs.get(name, ""))


def _decoded(text: Any) -> str:
    return text.decode() if isinstance(text, bytes) else str(text)


def _gene_names(var: _Frame, layout: AnndataFormat, url: str) -> list[str]:
    names = var.index
    if layout.symbols is not None:
        if layout.symbols not in var.columns:
            raise DataError(
                f"var has no column {layout.symbols!r}; it has {', '.join(map(repr, var.columns)) or 'none'}",
                where=url,
                fix="mend format.symbols",
            )
        symbols = var.columns[layout.symbols].to_pylist()
        names = [symbol or name for symbol, name in zip(symbols, names, strict=True)]
    spoilt = next((name for name in names if not name or len(name.split()) > 1), None)
    if spoilt is not None:
        raise DataError(
            f"the gene name {spoilt!r} cannot stand in a list that blanks separate", where=url, fix="rename the gene"
        )
    return names


def _cells(
    matrix: _Matrix,
    obs: _Frame,
    names: list[str],
    top_genes: int,
    url: str,
    block_bytes: int,
) -> Iterator[Records]:
    if matrix.shape != (len(obs.index), len(names)):
        raise DataError(
            f"{matrix.name} is {matrix.shape[0]} x {matrix.shape[1]}, but there are {len(obs.index)} cells and "
            f"{len(names)} genes",
            where=url,
            fix="the file is damaged: save it again",
        )
    described = {f"obs.{name}" if name in COLUMNS else name: column for name, column in obs.columns.items()}
    cells = pa.array(obs.index, pa.string())
    ranking = _Ranking(names, top_genes)
    number = 0
    for block in matrix.blocks(block_bytes):
        _require_expression(block.data, matrix.name, url)
        rows = [
            ranking.of(block.data[low:high], block.indices[low:high])
            for low, high in zip(block.indptr[:-1], block.indptr[1:], strict=True)
        ]
        columns = {
            "cell": cells.slice(number, len(rows)),
            "genes": pa.array([genes for genes, _ in rows], pa.string()),
            "n_genes": pa.array([str(count) for _, count in rows], pa.string()),
        }
        columns |= {name: column.slice(number, len(rows)) for name, column in described.items()}
        yield from stretches(number, pa.table(columns), [])
        number += len(rows)


def _require_expression(values: npt.NDArray[Any], name: str, url: str) -> None:
    if not np.isfinite(values).all():
        raise DataError(f"{name} holds values that are not finite", where=url, fix="rank by another layer, or by raw")
    if (values < 0).any():
        raise DataError(
            f"{name} holds values below 0 (the least is {values.min()}): scaled data, in which 0 is the mean",
            where=url,
            fix="rank by counts: format.use_raw: true where the file has raw, or format.layer",
        )


class _Ranking:
    """The order of genes within a cell."""

    def __init__(self, names: list[str], top: int) -> None:
        self._names, self._top = names, top
        self._distinct = len(set(names)) == len(names)
        # Rank of each gene's name: what decides between equal values.
        self._rank = np.empty(len(names), np.int64)
        self._rank[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))

    def of(self, values: npt.NDArray[Any], genes: npt.NDArray[Any]) -> tuple[str, int]:
        """The cell's top genes, joined, and how many are expressed.

        Args:
            values: [stored] expression.
            genes: [stored] index of each value's gene.
        """
        expressed = values > 0
        values, genes = values[expressed], genes[expressed]
        count = len(values)
        if self._distinct and count > self._top:
            # Sorting is needed only for those that can be among the first, with all that equal the last of them.
            candidates = values >= np.partition(values, count - self._top)[count - self._top]
            values, genes = values[candidates], genes[candidates]
        order = np.lexsort((self._rank[genes], -values.astype(np.float64)))
        ranked = [self._names[gene] for gene in genes[order]]
        if not self._distinct:
            ranked = list(dict.fromkeys(ranked))
            count = len(ranked)
        return " ".join(ranked[: self._top]), count
