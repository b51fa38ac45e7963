"""External clustering programs: distinct sequences in, the cluster of each out, by MMseqs2 or CD-HIT on PATH."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from polysome.config import ConfigurationError, ResourceError
from polysome.data.hashing import Text
from polysome.specs import MoleculeType

Tool = Literal["mmseqs2", "cd-hit"]

_SHORTEST = {"dna": 50, "rna": 50, "protein": 30}
_TAIL = 2000

# Lowest identity that a word length is for (CD-HIT user's guide, 4.8.1).
_CD_HIT_WORDS = ((0.7, 5), (0.6, 4), (0.5, 3), (0.4, 2))
_CD_HIT_EST_WORDS = ((0.95, 10), (0.9, 8), (0.88, 7), (0.85, 6), (0.8, 5))


def find_tool(lengths: npt.NDArray[np.int64], kind: MoleculeType, identity: float) -> Tool | Literal["own"]:
    """The program on PATH that can answer; `own` when none can, as for sequences too short for their seeds."""
    if int(lengths.min(initial=_SHORTEST[kind])) < _SHORTEST[kind]:
        return "own"
    if shutil.which("mmseqs"):
        return "mmseqs2"
    words = _CD_HIT_WORDS if kind == "protein" else _CD_HIT_EST_WORDS
    return "cd-hit" if shutil.which(_cd_hit(kind)) and identity >= words[-1][0] else "own"


def run_tool(
    tool: str, text: Text, kind: MoleculeType, identity: float, coverage: float, *, threads: int
) -> npt.NDArray[np.int64]:
    """int64 [rows], number of each sequence's cluster.

    MMseqs2 gives connected components. CD-HIT is greedy: two sequences that are alike may lie in different clusters
    when each is closer to another one.

    Raises:
        ConfigurationError: the program is not on PATH, or not made for this identity.
        ResourceError: it failed, or left sequences out.
    """
    if not text.rows:
        return np.zeros(0, np.int64)
    with tempfile.TemporaryDirectory(prefix="polysome-clusters-") as folder:
        fasta = Path(folder) / "sequences.fasta"
        with fasta.open("wb") as handle:
            for row in range(text.rows):
                sequence = text.string(row)
                letters = sequence if kind == "protein" else sequence.replace("U", "T")
                handle.write(f">{row}\n{letters}\n".encode())
        result = Path(folder) / "result"
        if tool == "mmseqs2":
            program = _program("mmseqs", tool)
            command = [program, "easy-cluster", str(fasta), str(result), str(Path(folder) / "work")]
            # Coverage is that of the member, the representative is the longest; mode 1: connected components.
            command += [
                "--min-seq-id",
                f"{identity:g}",
                "-c",
                f"{coverage:g}",
                "--cov-mode",
                "1",
                "--cluster-mode",
                "1",
            ]
            _call([*command, "--threads", str(threads), "-v", "1"])
            members = _mmseqs_members(Path(f"{result}_cluster.tsv"))
        else:
            program = _program(_cd_hit(kind), tool)
            command = [program, "-i", str(fasta), "-o", str(result), "-c", f"{identity:g}", "-G", "0"]
            command += ["-aS", f"{coverage:g}", "-g", "1", "-d", "0", "-M", "0", "-T", str(threads)]
            word = _word(kind, identity)
            command += ["-n", str(word), "-l", str(word)]
            if kind != "protein":
                command += ["-r", "1" if kind == "dna" else "0"]
            _call(command)
            members = _cd_hit_members(Path(f"{result}.clstr"))
        return _clusters(members, text, program)


def available_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _clusters(members: Iterator[tuple[str, str]], text: Text, program: str) -> npt.NDArray[np.int64]:
    cluster = np.full(text.rows, -1, np.int64)
    try:
        for name, member in members:
            cluster[int(member)] = int(name)
    except (OSError, ValueError, IndexError) as error:
        raise ResourceError(
            f"the clusters cannot be read: {error}", where=program, fix="check the program's version, or use method own"
        ) from error
    missing = np.flatnonzero(cluster < 0)
    if len(missing):
        length = int(text.lengths[missing[0]])
        raise ResourceError(
            f"{len(missing)} of {text.rows} sequences are in no cluster, the first has {length} letters",
            where=program,
            fix="use method own",
        )
    return cluster


def _mmseqs_members(path: Path) -> Iterator[tuple[str, str]]:
    """(representative, member) of a two-column table."""
    with path.open() as handle:
        for line in handle:
            name, member = line.split()
            yield name, member


def _cd_hit_members(path: Path) -> Iterator[tuple[str, str]]:
    """(cluster, member); `>Cluster 0` opens a cluster, `0  120aa, >17... *` is a member."""
    name = ""
    with path.open() as handle:
        for line in handle:
            if line.startswith(">Cluster"):
                name = line.split()[1]
            else:
                yield name, line.split(">", 1)[1].split("...", 1)[0]


def _cd_hit(kind: MoleculeType) -> str:
    return "cd-hit" if kind == "protein" else "cd-hit-est"


def _word(kind: MoleculeType, identity: float) -> int:
    words = _CD_HIT_WORDS if kind == "protein" else _CD_HIT_EST_WORDS
    for lowest, word in words:
        if identity >= lowest:
            return word
    raise ConfigurationError(
        f"identity {identity:g} is below {words[-1][0]:g}, the lowest of {_cd_hit(kind)}",
        where="method cd-hit",
        fix="raise the identity, or use method mmseqs2",
    )


def _program(name: str, tool: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise ConfigurationError(
            f"{name} is not on PATH", where=f"method {tool}", fix="install it, or use method own or auto"
        )
    return found


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-_TAIL:]
        raise ResourceError(
            f"{Path(command[0]).name} ended with status {done.returncode}: {said or 'no message'}",
            where=" ".join(command),
            fix="run the command by hand to see more, or use method own",
        )
