"""Leakage groups: examples in, groups out between which nothing is alike, so that a split may only cut between them.

Alike are two sequences of which at least a share `coverage` of the shorter one can be laid on the other with at least a
share `identity` of its letters equal (insertions and deletions count as edits). Groups are the connected components:
what is alike over a third stands together, and the groups do not depend on the order of the input (AMB-20, AMB-29).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from polysome.config import ConfigurationError
from polysome.data.alignment import Aligner
from polysome.data.cluster_tools import available_cpus, find_tool, run_tool
from polysome.data.hashing import (
    Hashes,
    ListColumn,
    Text,
    both_strand_hashes,
    bounds,
    combine,
    hash_strings,
    list_text_of,
    mix,
)
from polysome.data.sketches import DNA, PROTEIN, RNA, Pairs, kmer_size, similar_pairs
from polysome.specs import Molecule, MoleculeType

Method = Literal["auto", "own", "mmseqs2", "cd-hit", "equal"]
Link = Literal["both", "either"]

IDENTITY: dict[MoleculeType, float] = {"dna": 0.8, "rna": 0.8, "protein": 0.5}
"""Default threshold; proteins keep fold and function down to far fewer equal letters than genes keep their sequence."""
COVERAGE = 0.8

_LOWEST_IDENTITY: dict[MoleculeType, float] = {"dna": 0.7, "rna": 0.7, "protein": 0.5}
_ALPHABETS = {"dna": DNA, "rna": RNA, "protein": PROTEIN}
_PAIRS_AT_ONCE = 1 << 16
_STEPS = (0.7, 0.8, 0.9, 0.95)
_LARGEST = 0.1


@dataclass(frozen=True)
class LeakageGroups:
    """Groups of examples.

    Attributes:
        groups: int64 [n], number of each example's group, in the order in which groups first appear.
        keys: uint64 [n], a name of each example's group that depends on its members alone: the smallest of their
            hashes.
        method: how they were found, for reports.
    """

    groups: npt.NDArray[np.int64]
    keys: Hashes
    method: str

    @property
    def count(self) -> int:
        """Number of groups."""
        return int(self.groups.max(initial=-1)) + 1


def groups(
    sequences: ListColumn,
    molecules: Sequence[Molecule],
    *,
    identity: float | None = None,
    coverage: float = COVERAGE,
    link: Link = "both",
    method: Method = "auto",
) -> LeakageGroups:
    """Group examples whose molecules are alike; DNA on either strand, RNA and proteins as they are written.

    Args:
        sequences: list<string> [n], cleaned sequences in the order of the molecules.
        molecules: their declarations.
        identity: share of equal letters; by default `IDENTITY` of each molecule's type.
        coverage: share of the shorter sequence that is laid on the other.
        link: what makes two pairs of molecules one group. `both`: each molecule is alike its counterpart; a test then
            asks for new pairs of partners that may be known, as most interaction benchmarks do. `either`: one is
            enough; a test then asks about partners never seen, but one partner of many makes a single group of them
            all, and there may be nothing left to divide.
        method: `own`: shared k-mers on a diagonal, then the edit distance within a band; on every machine the same.
            `mmseqs2`, `cd-hit`: that program. `auto`: MMseqs2, else CD-HIT, else `own`, whichever is on PATH; for short
            molecules always `own`. `equal`: only equal sequences are alike. The result says which.

    Raises:
        ConfigurationError: a threshold that the method cannot answer for, or the program is not on PATH.
        ResourceError: the program failed.
    """
    if not molecules:
        raise ConfigurationError(
            "leakage groups need declared molecules",
            where="molecules: []",
            fix="group the data sets that the rows are from",
        )
    text, offsets = list_text_of(sequences)
    width = len(molecules)
    assert (np.diff(offsets) == width).all(), "every example holds one sequence per declared molecule"
    node = np.zeros((len(offsets) - 1, width), np.int64)
    hashes = np.zeros(node.shape, np.uint64)
    methods = []
    for kind in dict.fromkeys(molecule.type for molecule in molecules):
        columns = [place for place, molecule in enumerate(molecules) if molecule.type == kind]
        rows = (np.arange(len(node))[:, None] * width + columns).ravel()
        part = text if len(columns) == width else text.take(rows)
        threshold = IDENTITY[kind] if identity is None else identity
        found = _cluster(part, kind, threshold, coverage, method)
        node[:, columns] = found.cluster.reshape(-1, len(columns))
        hashes[:, columns] = found.hashes.reshape(-1, len(columns))
        methods.append(found.method)
    number = _examples(node, molecules, link)
    _, first, number = np.unique(number, return_index=True, return_inverse=True)
    appearance = np.argsort(np.argsort(first))
    keys = np.full(len(first), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(keys, number, combine(hashes.ravel(), offsets))
    linked = "" if width == 1 else f"; {link} molecules"
    return LeakageGroups(appearance[number], keys[number], "; ".join(methods) + linked)


def divisible_groups(sequences: ListColumn, molecules: Sequence[Molecule]) -> LeakageGroups:
    """Groups that a split can be divided by: by Polysome's own method, so that they are the same on every machine.

    Variants of one protein, or antibodies, are one group at any usual identity. So the identity is the lowest of the
    default, 0.7, 0.8, 0.9 and 0.95 at which no group holds more than a tenth of the examples; where there is none,
    groups are the equal examples. The result says which.
    """
    lowest = max(IDENTITY[molecule.type] for molecule in molecules)
    for identity in (None, *(step for step in _STEPS if step > lowest)):
        found = groups(sequences, molecules, identity=identity, method="own")
        if not found.count or np.bincount(found.groups).max() <= max(1, _LARGEST * len(found.groups)):
            return found
    return groups(sequences, molecules, method="equal")


def group_shares(sequences: ListColumn, molecules: Sequence[Molecule]) -> npt.NDArray[np.float64]:
    """float64 [n]: the place in [0, 1) of each example's group, see `divisible_groups` and `share_of` (AMB-20)."""
    return share_of(divisible_groups(sequences, molecules).keys)


def share_of(keys: Hashes) -> npt.NDArray[np.float64]:
    """float64 [n]: a place in [0, 1) for each group key, evenly spread."""
    return (mix(keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True)
class _Clusters:
    """Cluster and hash of each row; the hash is that of both strands in DNA."""

    cluster: npt.NDArray[np.int64]
    hashes: Hashes
    method: str


def _cluster(text: Text, kind: MoleculeType, identity: float, coverage: float, method: Method) -> _Clusters:
    hashes = both_strand_hashes(text, np.full(text.rows, kind == "dna"))
    if method == "equal":
        return _Clusters(np.unique(hashes, return_inverse=True)[1], hashes, f"{kind}: equal sequences")
    distinct, number = _distinct(text, hashes, kind)
    chosen = find_tool(distinct.lengths, kind, identity) if method == "auto" else method
    if chosen == "own":
        if identity < _LOWEST_IDENTITY[kind]:
            raise ConfigurationError(
                f"identity {identity} of {kind} is below {_LOWEST_IDENTITY[kind]}, where shared k-mers no longer tell",
                where="method own",
                fix="put MMseqs2 on PATH and use method mmseqs2, or raise the identity",
            )
        size = kmer_size(distinct.size, _ALPHABETS[kind])
        cluster = _own_clusters(distinct, kind, identity, coverage)
        name = f"own, k-mers of {size}"
    else:
        cluster = run_tool(chosen, distinct, kind, identity, coverage, threads=available_cpus())
        name = chosen
    return _Clusters(
        cluster[number], hashes, f"{kind}: {name}, identity {identity:g} over {coverage:g} of the shorter sequence"
    )


def _distinct(text: Text, hashes: Hashes, kind: MoleculeType) -> tuple[Text, npt.NDArray[np.int64]]:
    """The distinct sequences, the longest first, and the number of each row's: nothing depends on the input's order."""
    found, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.lexsort((found, -text.lengths[first]))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    chosen = text.take(first[order])
    if kind == "dna":
        # Of both strands the one whose own hash is the common one.
        turned = np.flatnonzero(hash_strings(chosen) != found[order])
        both = _both_strands(chosen)
        rows = np.arange(chosen.rows)
        rows[turned] = 2 * chosen.rows - 1 - turned
        chosen = both.take(rows)
    return chosen, rank[inverse]


def _both_strands(text: Text) -> Text:
    """All rows, then the other strands of all rows, the last one first."""
    other = text.reverse_complement()
    data = np.concatenate([text.data[: text.size], other.data])
    return Text(data, bounds(np.concatenate([text.lengths, other.lengths])))


def _own_clusters(text: Text, kind: MoleculeType, identity: float, coverage: float) -> npt.NDArray[np.int64]:
    """int64 [distinct sequences]: connected components of the pairs that are alike."""
    pairs = similar_pairs(text, _ALPHABETS[kind], identity)
    cluster = np.arange(text.rows)
    if not len(pairs.first):
        return cluster
    oriented = _both_strands(text) if kind == "dna" else text
    aligner = Aligner(oriented)
    order = np.argsort(-pairs.hits, kind="stable")
    for start in range(0, len(order), _PAIRS_AT_ONCE):
        asked = order[start : start + _PAIRS_AT_ONCE]
        # Pairs that are joined already would join nothing.
        asked = asked[cluster[pairs.first[asked]] != cluster[pairs.second[asked]]]
        alike = asked[_alike(oriented, text.rows, aligner, pairs, asked, identity, coverage)]
        if len(alike):
            # Numbers of components are not rows: each component is held together by its first row.
            joined = np.stack([np.arange(text.rows), np.unique(cluster, return_index=True)[1][cluster]])
            linked = np.stack([pairs.first[alike], pairs.second[alike]])
            cluster = _components(text.rows, np.concatenate([joined, linked], axis=1))
    return cluster


def _alike(
    oriented: Text,
    rows: int,
    aligner: Aligner,
    pairs: Pairs,
    asked: npt.NDArray[np.int64],
    identity: float,
    coverage: float,
) -> npt.NDArray[np.bool_]:
    """Which of the asked pairs overlap far enough on their diagonal and differ in few enough letters there."""
    first, second = pairs.first[asked], pairs.second[asked]
    second = np.where(pairs.reverse[asked], 2 * rows - 1 - second, second)
    diagonal = pairs.diagonal[asked]
    from_first, from_second = np.maximum(0, -diagonal), np.maximum(0, diagonal)
    first_length, second_length = oriented.lengths[first], oriented.lengths[second]
    overlap = np.minimum(first_length - from_first, second_length - from_second)
    alike = overlap >= coverage * np.minimum(first_length, second_length)
    checked = np.flatnonzero(alike)
    limits = np.floor((1 - identity) * overlap[checked] + 1e-9).astype(np.int64)
    starts = oriented.offsets[first] + from_first, oriented.offsets[second] + from_second
    distances = aligner.distances(starts[0][checked], starts[1][checked], overlap[checked], limits)
    alike[checked] = distances <= limits
    return alike


def _examples(node: npt.NDArray[np.int64], molecules: Sequence[Molecule], link: Link) -> npt.NDArray[np.int64]:
    """int64 [n]: group of each example, from the clusters [n, molecules] of its sequences."""
    if node.shape[1] == 1:
        return node[:, 0]
    same_kind = len({molecule.type for molecule in molecules}) == 1
    if link == "both":
        # Partners of one kind are alike in either order.
        wanted = np.sort(node, axis=1) if same_kind else node
        return np.unique(wanted, axis=0, return_inverse=True)[1].ravel()
    if not same_kind:
        node = node + np.concatenate([[0], np.cumsum(node.max(axis=0, initial=0) + 1)[:-1]])
    components = _components(int(node.max(initial=-1)) + 1, node[:, :2].T)
    return components[node[:, 0]]


def _components(nodes: int, edges: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """int64 [nodes]: number of each node's connected component; `edges` is int64 [2, edges]."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(edges.shape[1], np.bool_), (edges[0], edges[1])), shape=(nodes, nodes))
    return connected_components(graph, directed=False)[1].astype(np.int64)
